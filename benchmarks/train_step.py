"""A training step of ours beside T5X's or transformers' with PyTorch: the same model, batch and kind of optimizer, in
one run.

    python benchmarks/train_step.py [--beside t5x,transformers] [--sizes mini,small] [--batch 16] [--inputs 128]
        [--targets 32] [--rounds 7]
    python benchmarks/train_step.py --compile xl,xxl

Prints a Markdown table. All sides of a comparison start from the same random weights in float32 and run forward pass,
loss, backward pass and an update, without dropout, on the processor's cores: beside T5X with Adafactor on both sides
(T5X's own loss and optimizer, its parameters laid out as it does by default, unscanned), beside transformers with
plain gradient descent, so that two Adafactors are not compared. The rounds take turns, so that other work on the
machine disturbs all; the table has the medians and their ratio. The losses after the last round are compared too: they
differ where the two do not compute the same. T5X is on no registry: docs/checkpoints.md says how it gets on the path.

`--compile` compiles the recipe's step (batch 240, 512/128 tokens, bfloat16, Adafactor, the model's own remat) of a size
for one CPU device, from abstract arrays: no weights are made and nothing is run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from flipped_cli import errors  # noqa: E402
from t5_engine import huggingface, optimizer, partitioning  # noqa: E402
from t5_engine.axes import Layout  # noqa: E402
from t5_engine.config import T5Config, size  # noqa: E402
from t5_engine.model import init_params, unstack  # noqa: E402
from t5_engine.step import (  # noqa: E402
    TrainState,
    compiled_step,
    dropout_key_data,
    make_state,
    make_step,
    state_shardings,
)

RATE = 1e-3
# Not public: what a laptop trains in minutes.
MINI = size("tiny", emb_dim=256, num_heads=4, head_dim=64, mlp_dim=512, vocab_size=32128)
Step = Callable[[], float]


def config_of(name: str) -> T5Config:
    found = MINI if name == "mini" else size(name)
    return found.replace(dropout_rate=0.0)


def make_batch(config: T5Config, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Random words without padding."""
    rng = np.random.default_rng(0)
    words = rng.integers(3, config.vocab_size, (rows, inputs + targets)).astype(np.int32)
    target = words[:, inputs:]
    return {
        "encoder_input_tokens": words[:, :inputs],
        "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": target,
        "decoder_loss_weights": np.ones(target.shape, np.float32),
    }


def ours(config: T5Config, params: Any, batch: dict[str, np.ndarray], transform: Any) -> Step:
    layout = Layout(partitioning.make_mesh(devices=jax.devices()[:1]))
    state = TrainState(params, transform.init(params), np.int32(0), dropout_key_data(0))
    shardings = state_shardings(jax.eval_shape(lambda: state), config, layout)
    compiled = compiled_step(make_step(config, transform, layout), shardings)
    place = [jax.device_put(state, shardings)]
    arrays = partitioning.put_batch(batch, layout.mesh)

    def step() -> float:
        place[0], metrics = compiled(place[0], arrays)
        return float(jax.block_until_ready((place[0], metrics))[1]["loss"])

    return step


def t5x_step(config: T5Config, params: Any, batch: dict[str, np.ndarray]) -> Step:
    """T5X's model, loss and Adafactor, as its own T5 configurations put them together."""
    from flipped_t5x import requirement

    requirement.prepare()
    import seqio
    from t5x import adafactor, models, train_state
    from t5x.examples.t5 import network

    fields = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim")
    fields += ("num_encoder_layers", "num_decoder_layers")
    module = network.Transformer(
        network.T5Config(
            **{name: getattr(config, name) for name in fields},
            mlp_activations=("gelu", "linear"),
            dropout_rate=0.0,
            logits_via_embedding=False,
            dtype="float32",
        )
    )
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size)
    rules = adafactor.standard_logical_factor_rules()
    chosen = adafactor.Adafactor(decay_rate=0.8, step_offset=0, logical_factor_rules=rules)
    by_tokens = models.losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS
    model = models.EncoderDecoderModel(
        module, vocabulary, vocabulary, chosen, loss_normalizing_factor=by_tokens, z_loss=0.0
    )
    shapes = {name: array.shape for name, array in batch.items() if "weights" not in name}
    variables = jax.eval_shape(
        lambda key: model.get_initial_variables(key, shapes), jax.random.key(0)
    )
    state = train_state.FlaxOptimTrainState.create(chosen, {**variables, "params": unstack(params)})

    def one(state: Any, example: Any) -> Any:
        gradient = jax.value_and_grad(model.loss_fn, has_aux=True)
        (loss, _), grads = gradient(state.params, example, None)
        return state.apply_gradient(grads, learning_rate=RATE), loss

    compiled = jax.jit(one, donate_argnums=0)
    place = [state]
    arrays = jax.device_put(batch)

    def step() -> float:
        place[0], loss = compiled(place[0], arrays)
        return float(jax.block_until_ready((place[0], loss))[1])

    return step


def transformers_step(config: T5Config, params: Any, batch: dict[str, np.ndarray]) -> Step:
    import torch
    import transformers

    their_config = transformers.T5Config(**huggingface.config_fields(config))
    their_config.tie_word_embeddings = False  # transformers 5 sets it to True whatever it is given
    model = transformers.T5ForConditionalGeneration(their_config)
    state = {
        name: torch.from_numpy(np.array(array))
        for name, array in huggingface.to_state_dict(config, jax.device_get(params)).items()
    }
    model.load_state_dict(state, strict=True)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    words = {
        "input_ids": torch.from_numpy(batch["encoder_input_tokens"]).long(),
        "labels": torch.from_numpy(batch["decoder_target_tokens"]).long(),
    }

    def step() -> float:
        optimizer.zero_grad()
        loss = model(**words).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def compare(beside: str, name: str, rows: int, inputs: int, targets: int, rounds: int) -> None:
    config = config_of(name)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    batch = make_batch(config, rows, inputs, targets)
    host = jax.device_get(params)
    if beside == "t5x":
        other, transform = t5x_step(config, host, batch), optimizer.make("adafactor", RATE)
    else:
        other, transform = transformers_step(config, host, batch), optax.sgd(RATE)
    steps = {"ours": ours(config, params, batch, transform), "theirs": other}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    losses: dict[str, float] = {}
    for number in range(rounds + 2):
        for side, step in steps.items():
            began = time.perf_counter()
            losses[side] = step()
            if number >= 2:  # the first compile, or fill caches
                seconds[side].append(time.perf_counter() - began)
    middle = {side: statistics.median(times) for side, times in seconds.items()}
    print(
        f"| {name} | {beside} | {rows / middle['ours']:.1f} | {rows / middle['theirs']:.1f} "
        f"| {middle['theirs'] / middle['ours']:.2f} | {losses['ours']:.4f} | {losses['theirs']:.4f} |",
        flush=True,
    )


def compile_only(name: str) -> None:
    """Compiles the recipe's step of that size and prints how long tracing and compiling took."""
    config = size(name, dropout_rate=0.1, dtype="bfloat16")
    layout = Layout(partitioning.make_mesh(devices=jax.devices()[:1]))
    transform = optimizer.make("adafactor", RATE)
    abstract = jax.eval_shape(lambda: make_state(config, transform, 0))
    compiled = compiled_step(
        make_step(config, transform, layout), state_shardings(abstract, config, layout)
    )
    batch = {
        key: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for key, array in make_batch(config, 240, 512, 128).items()
    }
    began = time.perf_counter()
    lowered = compiled.lower(abstract, batch)
    traced = time.perf_counter()
    lowered.compile()
    ended = time.perf_counter()
    print(f"| {name} | {traced - began:.1f} | {ended - traced:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", default="transformers")
    parser.add_argument("--compile", default="", metavar="SIZES")
    parser.add_argument("--sizes", default="mini,small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, jax {jax.__version__}", end="")
    if arguments.compile:
        print("\n\n| model | tracing, s | compiling, s |\n|---|---|---|")
        for name in arguments.compile.split(","):
            compile_only(name)
        return
    print(f", batch {arguments.batch}, {arguments.inputs}/{arguments.targets} tokens\n")
    print("| model | beside | ours, sequences/s | theirs, sequences/s | ratio | loss | loss |")
    print("|---|---|---|---|---|---|---|")
    shape = (arguments.batch, arguments.inputs, arguments.targets, arguments.rounds)
    for name in arguments.sizes.split(","):
        for beside in arguments.beside.split(","):
            compare(beside, name, *shape)


if __name__ == "__main__":
    sys.exit(errors.run(lambda _: main(), []))
