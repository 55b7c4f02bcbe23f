"""A training step of ours beside T5X's or transformers' with PyTorch: the same model, batch and kind of optimizer, in
one run.

    python benchmarks/train_step.py [--beside t5x,transformers] [--sizes mini,small] [--batch 16] [--inputs 128]
        [--targets 32] [--rounds 7]
    python benchmarks/train_step.py --packed --data_dir FOLDER --vocab MODEL [--sizes mini] [--batch 32] [--rounds 3]
    python benchmarks/train_step.py --shapes 5000 --data_dir FOLDER --vocab MODEL
    python benchmarks/train_step.py --lengths flipped_cli/mixture_lengths.json --data_dir FOLDER --vocab MODEL
    python benchmarks/train_step.py --compile xl,xxl

Prints a Markdown table. All sides of a comparison start from the same random weights in float32 and run forward pass,
loss, backward pass and an update, without dropout, on the processor's cores: beside T5X with Adafactor on both sides
(T5X's own loss and optimizer, its parameters laid out as it does by default, unscanned), beside transformers with
plain gradient descent, so that two Adafactors are not compared. The rounds take turns, so that other work on the
machine disturbs all; the table has the medians and their ratio. The losses after the last round are compared too: they
differ where the two do not compute the same. T5X is on no registry: docs/checkpoints.md says how it gets on the path.

`--packed` runs the packed and the padded step of each method's mixture in turn, on the same batches of real rows at
the recipe's 512/128 tokens, with Adafactor and dropout. `--shapes` packs so many steps of the recipe's 240 examples by
their lengths alone, for one device: it counts the shapes that a run compiles, and how full its rows are. `--lengths`
writes the lengths, in tokens, of every second of a mixture's first 960 examples, by which `flipped plan` packs.

`--compile` compiles the recipe's step (batch 240, 512/128 tokens, bfloat16, Adafactor, the model's own remat) of a size
for one CPU device, from abstract arrays: no weights are made and nothing is run.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from flipped_cli import errors  # noqa: E402
from t5_engine import huggingface, ladder, optimizer, packing, partitioning, speed  # noqa: E402
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
LENGTHS = {"inputs": 512, "targets": 128}
METHODS = ("direct", "channel", "flipped")
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


def real_batches(method: str, data_dir: str, vocab: str, batch: int) -> Iterator[dict[str, Any]]:
    """Padded batches of a method's training mixture, as a run gets them."""
    from flipped_tasks.batches import batches
    from mixtures import registration

    registration.register(data_dir, vocab, [method])
    for found in batches(f"{method}_train", LENGTHS, batch, seed=0):
        found.pop("example_ids")
        yield found


def fitted(config: T5Config, sample: list[dict[str, Any]]) -> ladder.Ladder:
    return ladder.fit(sample, 1, lambda *lengths: speed.forward_flops(config, *lengths))


def compare_packed(name: str, method: str, source: Iterator[dict[str, Any]], rounds: int) -> None:
    """One row of the table: the packed step beside the padded one, on the same batches."""
    config = config_of(name).replace(dropout_rate=0.1)
    sample = list(itertools.islice(source, ladder.SAMPLE))
    found = fitted(config, sample)
    batches = sample[:rounds]
    sides = {"padded": batches, "packed": [found.pack(batch) for batch in batches]}
    layout = Layout(partitioning.make_mesh(devices=jax.devices()[:1]))
    transform = optimizer.make("adafactor", RATE)
    abstract = jax.eval_shape(lambda: make_state(config, transform, 0))
    shardings = state_shardings(abstract, config, layout)
    weight = 3.0 if method == "flipped" else 0.0
    step = make_step(config, transform, layout, lambda_unlikelihood=weight)
    compiled = compiled_step(step, shardings)
    state = jax.jit(lambda: make_state(config, transform, 0), out_shardings=shardings)()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, float] = {}

    def run(side: str, batch: dict[str, Any]) -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        losses[side] = float(jax.block_until_ready((state, metrics))[1]["loss"])
        return time.perf_counter() - began

    for side, made in sides.items():  # compile each shape
        for batch in {tuple(one["encoder_input_tokens"].shape): one for one in made}.values():
            run(side, batch)
    for number in range(rounds):
        for side in sides:
            seconds[side].append(run(side, sides[side][number]))
    examples = rounds * len(batches[0]["encoder_input_tokens"])
    rates = {side: examples / sum(times) for side, times in seconds.items()}
    tokens = sum(int((batch["encoder_segment_ids"] != 0).sum()) for batch in sides["packed"])
    tokens += sum(int((batch["decoder_segment_ids"] != 0).sum()) for batch in sides["packed"])
    positions = sum(
        batch[name].size
        for batch in sides["packed"]
        for name in ("encoder_segment_ids", "decoder_segment_ids")
    )
    print(
        f"| {name} | {method} | {rates['padded']:.2f} | {rates['packed']:.2f} "
        f"| {rates['packed'] / rates['padded']:.1f} | {tokens / positions:.1%} |",
        flush=True,
    )


def count_shapes(method: str, source: Iterator[dict[str, Any]], steps: int) -> None:
    """One row of the table: the shapes of so many steps, and how full their rows are."""
    sample = list(itertools.islice(source, ladder.SAMPLE))
    found = fitted(size("xl"), sample)
    shapes: collections.Counter[packing.Shape] = collections.Counter()
    sums: collections.Counter[str] = collections.Counter()
    for batch in itertools.islice(itertools.chain(sample, source), steps):
        packed = found.pack(batch)
        rows, inputs = packed["encoder_segment_ids"].shape
        shapes[packing.Shape(rows, inputs, packed["decoder_segment_ids"].shape[1])] += 1
        for side in ("encoder", "decoder"):
            ids = packed[f"{side}_segment_ids"]
            sums.update({side: int((ids != 0).sum()), f"{side}_positions": ids.size})
    shares = {side: sums[side] / sums[f"{side}_positions"] for side in ("encoder", "decoder")}
    both = (sums["encoder"] + sums["decoder"]) / (
        sums["encoder_positions"] + sums["decoder_positions"]
    )
    shown = ", ".join(
        f"{rows} x {inputs}/{targets}: {count:,}"
        for (rows, inputs, targets), count in sorted(shapes.items())
    )
    print(
        f"| {method} | {steps:,} | {len(shapes)} | {shown} "
        f"| {both:.1%} | {shares['encoder']:.1%} | {shares['decoder']:.1%} |",
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


def write_lengths(path: pathlib.Path, data_dir: str, vocab: str, methods: list[str]) -> None:
    """The file of `--lengths`."""
    names = {"inputs": "encoder_input_tokens", "targets": "decoder_target_tokens"}
    parts = []
    for method in methods:
        source = real_batches(method, data_dir, vocab, 240)
        four = list(itertools.islice(source, 4))
        known = {
            key: np.concatenate([(batch[name] != 0).sum(axis=1) for batch in four])[::2].tolist()
            for key, name in names.items()
        }
        lines = ",\n".join(f'  "{key}": {json.dumps(found)}' for key, found in known.items())
        parts.append(f' "{method}": {{\n{lines}\n }}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def packed_tables(arguments: argparse.Namespace) -> None:
    """What `--packed` and `--shapes` print."""
    rows = (arguments.data_dir, arguments.vocab)
    if arguments.lengths:
        print()
        write_lengths(arguments.lengths, *rows, arguments.methods.split(","))
        return
    if arguments.shapes:
        print("\n\n| method | steps | shapes | steps of each | full | inputs | targets |")
        print("|---|---|---|---|---|---|---|")
        for method in arguments.methods.split(","):
            count_shapes(method, real_batches(method, *rows, 240), arguments.shapes)
        return
    print(f", batch {arguments.batch}, {LENGTHS['inputs']}/{LENGTHS['targets']} tokens\n")
    print("| model | method | padded, examples/s | packed, examples/s | ratio | rows full |")
    print("|---|---|---|---|---|---|")
    for name in arguments.sizes.split(","):
        for method in arguments.methods.split(","):
            source = real_batches(method, *rows, arguments.batch)
            compare_packed(name, method, source, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", default="transformers")
    parser.add_argument("--compile", default="", metavar="SIZES")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--shapes", type=int, default=0, metavar="STEPS")
    parser.add_argument("--lengths", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--methods", default=",".join(METHODS), help="of the three before")
    parser.add_argument("--data_dir", help="real rows, for these")
    parser.add_argument("--vocab", help="T5's sentencepiece.model, likewise")
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
    if arguments.packed or arguments.shapes or arguments.lengths:
        for name in ("data_dir", "vocab"):
            if not getattr(arguments, name):
                parser.error(f"--{name} is required with --packed, --shapes and --lengths")
        packed_tables(arguments)
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
