"""A training step of ours beside one of transformers with PyTorch: the same model, batch and optimizer steps, in one
run.

    python benchmarks/train_step.py [--sizes mini,small] [--batch 16] [--inputs 128] [--targets 32] [--rounds 7]

Prints a Markdown table. Both start from the same random weights in float32 and run forward pass, loss, backward pass
and an update (plain gradient descent, so that two Adafactors are not compared), without dropout, on the processor's
cores. The rounds of the two take turns, so that other work on the machine disturbs both; the table has the medians
and their ratio. The losses after the last round are compared too: they differ where the two do not compute the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from t5_engine import huggingface, partitioning  # noqa: E402
from t5_engine.axes import Layout  # noqa: E402
from t5_engine.config import T5Config, size  # noqa: E402
from t5_engine.model import init_params  # noqa: E402
from t5_engine.step import (  # noqa: E402
    TrainState,
    compiled_step,
    dropout_key_data,
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


def ours(config: T5Config, params: Any, batch: dict[str, np.ndarray]) -> Step:
    layout = Layout(partitioning.make_mesh(devices=jax.devices()[:1]))
    transform = optax.sgd(RATE)
    state = TrainState(params, transform.init(params), np.int32(0), dropout_key_data(0))
    shardings = state_shardings(jax.eval_shape(lambda: state), config, layout)
    compiled = compiled_step(make_step(config, transform, layout), shardings)
    place = [jax.device_put(state, shardings)]
    arrays = partitioning.put_batch(batch, layout.mesh)

    def step() -> float:
        place[0], metrics = compiled(place[0], arrays)
        return float(jax.block_until_ready((place[0], metrics))[1]["loss"])

    return step


def theirs(config: T5Config, params: Any, batch: dict[str, np.ndarray]) -> Step:
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


def compare(name: str, rows: int, inputs: int, targets: int, rounds: int) -> None:
    config = config_of(name)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    batch = make_batch(config, rows, inputs, targets)
    host = jax.device_get(params)
    steps = {"ours": ours(config, params, batch), "theirs": theirs(config, host, batch)}
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
        f"| {name} | {rows / middle['ours']:.1f} | {rows / middle['theirs']:.1f} "
        f"| {middle['theirs'] / middle['ours']:.2f} | {losses['ours']:.4f} | {losses['theirs']:.4f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="mini,small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(
        f"batch {arguments.batch}, {arguments.inputs}/{arguments.targets} tokens, "
        f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"transformers {transformers.__version__}\n"
    )
    print("| model | ours, sequences/s | transformers, sequences/s | ratio | loss | loss |")
    print("|---|---|---|---|---|---|")
    for name in arguments.sizes.split(","):
        compare(name, arguments.batch, arguments.inputs, arguments.targets, arguments.rounds)


if __name__ == "__main__":
    main()
