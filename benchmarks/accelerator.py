"""What an accelerator makes of training and scoring: seconds a step, MFU, choices/s, and bfloat16 beside float32.

    python benchmarks/accelerator.py train --size xl --methods direct,flipped --ways cudnn/minimal/10,plain/full/10
    python benchmarks/accelerator.py score --size xl --methods direct,flipped
    python benchmarks/accelerator.py parity --size small

Prints Markdown tables. Needs neither TensorFlow nor data: random words without padding for `train`, random lengths
for `score`. A way of `train` is attention kernel/remat/microbatches; the step is the trainer's own (dropout,
Adafactor, bfloat16 activations, float32 parameters), with one device's whole batch. FLOPs are those of
`t5_engine.speed`: matrix products and attention of three forward passes, what remat computes again not counted.
MFU is against the device's nominal bfloat16 rate. A way that does not fit into memory is printed as such.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from t5_engine import optimizer, partitioning, speed  # noqa: E402
from t5_engine.axes import Layout  # noqa: E402
from t5_engine.config import T5Config, size  # noqa: E402
from t5_engine.losses import objective  # noqa: E402
from t5_engine.losses import statistics as token_statistics
from t5_engine.model import T5, init_params  # noqa: E402
from t5_engine.scorer import Scorer  # noqa: E402
from t5_engine.step import compiled_step, make_state, make_step, state_shardings  # noqa: E402

UNLIKELIHOOD_WEIGHT = 3.0


def make_batch(config: T5Config, rows: int, lengths: tuple[int, int], flipped: bool) -> Any:
    """Random words without padding."""
    rng = np.random.default_rng(0)

    def words(length: int) -> np.ndarray:
        return rng.integers(3, config.vocab_size, (rows, length)).astype(np.int32)

    target = words(lengths[1])
    batch = {
        "encoder_input_tokens": words(lengths[0]),
        "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": target,
        "decoder_loss_weights": np.ones(target.shape, np.float32),
    }
    if flipped:
        batch["wrong_encoder_input_tokens"] = words(lengths[0])
        batch["wrong_weights"] = np.ones(rows, np.float32)
    return batch


def train(arguments: argparse.Namespace) -> None:
    """One row for each method and way."""
    device = jax.devices()[0]
    rate = speed.nominal_rate(device.device_kind)
    lengths = (arguments.inputs, arguments.targets)
    print(
        f"{arguments.size}, batch {arguments.batch}, {lengths[0]}/{lengths[1]} tokens, {device.device_kind}, "
        f"jax {jax.__version__}\n\n"
        "| method | attention | remat | microbatches | seconds a step | TFLOP/s | MFU | compiled in, s | memory, GiB |"
        "\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for method in arguments.methods.split(","):
        for way in arguments.ways.split(","):
            attention, remat, microbatches = way.split("/")
            config = size(
                arguments.size, dtype="bfloat16", attention=attention, remat=remat, dropout_rate=0.1
            )
            shown = f"| {method} | {attention} | {remat} | {microbatches} |"
            try:
                found = time_step(config, method == "flipped", int(microbatches), arguments)
            except Exception as error:  # a kernel or an allocation that the device refuses
                print(f"{shown} {str(error).splitlines()[0][:90]} | | | | |", flush=True)
                continue
            seconds, compiling, gibibytes = found
            one = speed.step_flops(config, *lengths, with_wrong=method == "flipped")
            reached = arguments.batch * one / seconds
            mfu = "" if rate is None else f"{reached / rate:.1%}"
            print(
                f"{shown} {seconds:.3f} | {reached / 1e12:.0f} | {mfu} | {compiling:.0f} | {gibibytes:.1f} |",
                flush=True,
            )


def time_step(
    config: T5Config, flipped: bool, microbatches: int, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """The median of a step's seconds, the seconds of compiling, the bytes that the program needs in GiB."""
    layout = Layout(partitioning.make_mesh(devices=jax.devices()[:1]))
    transform = optimizer.adafactor(1e-4)
    step = make_step(
        config,
        transform,
        layout,
        lambda_unlikelihood=UNLIKELIHOOD_WEIGHT if flipped else 0.0,
        microbatches=microbatches,
    )
    abstract = jax.eval_shape(lambda: make_state(config, transform, 0))
    shardings = state_shardings(abstract, config, layout)
    batch = partitioning.put_batch(
        make_batch(config, arguments.batch, (arguments.inputs, arguments.targets), flipped),
        layout.mesh,
    )
    began = time.perf_counter()
    compiled = compiled_step(step, shardings).lower(abstract, batch).compile()
    compiling = time.perf_counter() - began
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    state = jax.jit(lambda: make_state(config, transform, 0), out_shardings=shardings)()
    seconds = []
    try:
        for _ in range(arguments.rounds + 1):
            began = time.perf_counter()
            state, metrics = compiled(state, batch)
            loss = float(metrics["loss"])
            seconds.append(time.perf_counter() - began)
        if not np.isfinite(loss):
            raise ValueError(f"loss {loss}")
    finally:
        del state
        gc.collect()
    return statistics.median(seconds[1:]), compiling, needed / 2**30


def score(arguments: argparse.Namespace) -> None:
    """Choices/s of the scorer with bfloat16 activations."""
    device = jax.devices()[0]
    rate = speed.nominal_rate(device.device_kind)
    config = size(arguments.size, dtype="bfloat16", dropout_rate=0.0)
    scorer = Scorer(config, jax.jit(lambda key: init_params(config, key))(jax.random.key(0)))
    print(
        f"{arguments.size}, {device.device_kind}, jax {jax.__version__}, "
        f"{arguments.prompts} prompts of four choices\n\n"
        "| method | choices/s | prompts/s | TFLOP/s | share of the nominal rate | shapes | compiled in, s |"
        "\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for method in arguments.methods.split(","):
        pairs, flops = make_pairs(config, arguments.prompts, method == "flipped")
        timed = [seconds_of(lambda pairs=pairs: scorer.score(pairs)) for _ in range(2)]
        seconds = timed[1]
        share = "" if rate is None else f"{flops / seconds / rate:.1%}"
        shapes = len({batch.shape for batch in scorer.plan(pairs)})
        print(
            f"| {method} | {len(pairs) / seconds:,.0f} | {arguments.prompts / seconds:,.0f} "
            f"| {flops / seconds / 1e12:.0f} | {share} | {shapes} | {timed[0] - seconds:.0f} |",
            flush=True,
        )


def make_pairs(
    config: T5Config, prompts: int, flipped: bool
) -> tuple[list[tuple[list[int], list[int]]], float]:
    """Prompts of 20 to 512 tokens with four choices each, as pairs, and the arithmetic that they need."""
    rng = np.random.default_rng(0)

    def words(length: int) -> list[int]:
        return rng.integers(3, config.vocab_size, length).tolist()

    pairs, flops = [], 0.0
    for _ in range(prompts):
        length = int(np.clip(rng.lognormal(4.6, 0.7), 20, 512))
        prompt = words(length)
        if flipped:
            target = words(int(rng.integers(8, 48)))
            some = [(prompt[:-4] + words(4), target) for _ in range(4)]
            flops += 4 * speed.forward_flops(config, length, len(target))
        else:
            some = [(prompt, words(int(rng.integers(2, 9)))) for _ in range(4)]
            encoder = speed.forward_flops(config, length, 0)
            flops += encoder
            flops += sum(speed.forward_flops(config, length, len(t)) - encoder for _, t in some)
        pairs += some
    return pairs, flops


def seconds_of(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def parity(arguments: argparse.Namespace) -> None:
    """Loss, log-probabilities and gradient in bfloat16, by each attention kernel, beside float32."""
    exact = size(arguments.size, dropout_rate=0.0)
    params = jax.jit(lambda key: init_params(exact, key))(jax.random.key(0))
    batch = make_batch(exact, 4, (arguments.inputs, arguments.targets), flipped=True)
    # Half of the second example is padding.
    batch["encoder_input_tokens"][1, arguments.inputs // 2 :] = 0
    batch["wrong_encoder_input_tokens"][1, arguments.inputs // 2 :] = 0

    def run(config: T5Config) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> Any:
            return objective(config, params, batch, lambda_unlikelihood=UNLIKELIHOOD_WEIGHT)[0]

        def log_probs(params: Any) -> Any:
            tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
            logits = T5(config).apply({"params": params}, *tokens)
            return -jax.nn.softplus(
                -token_statistics(logits, batch["decoder_target_tokens"]).margin
            )

        return jax.jit(lambda p: (*jax.value_and_grad(loss)(p), log_probs(p)))(params)

    with jax.default_matmul_precision("highest"):
        reference = run(exact)
    print(
        f"{arguments.size}, random weights, {jax.devices()[0].device_kind}, jax {jax.__version__}\n\n"
        "| | loss, relative difference | log p of a token, largest difference | gradient, cosine |\n|---|---|---|---|"
    )
    for attention in arguments.ways.split(","):
        config = exact.replace(dtype="bfloat16", attention=attention)
        found = run(config)
        flat = [
            jnp.concatenate([x.ravel() for x in jax.tree.leaves(r[1])]) for r in (reference, found)
        ]
        cosine = jnp.vdot(*flat) / (jnp.linalg.norm(flat[0]) * jnp.linalg.norm(flat[1]))
        print(
            f"| bfloat16, {attention} | {abs(found[0] / reference[0] - 1):.1e} "
            f"| {jnp.abs(found[2] - reference[2]).max():.3f} of {jnp.abs(reference[2]).mean():.1f} | {cosine:.5f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "score", "parity"))
    parser.add_argument("--size", default="xl")
    parser.add_argument("--methods", default="direct,flipped")
    parser.add_argument("--ways", default="plain/minimal/10")
    parser.add_argument("--batch", type=int, default=240)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--targets", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=500)
    arguments = parser.parse_args()
    {"train": train, "score": score, "parity": parity}[arguments.what](arguments)


if __name__ == "__main__":
    main()
