"""About how long a plan takes: the arithmetic of its pairs, and what the devices at hand do in a second."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from flipped_eval.examples import Case
from flipped_eval.planning import Plan, Unit

# Of the rate of one large matrix product: what padding, attention, softmax and the host leave of it. Measured on
# 2 CPU cores, see docs/evaluation.md; a plan's time is a guess within a factor of about two.
SHARE = 0.4
_SIZE = 1024


def flops(config: Any, case: Case) -> float:
    """The arithmetic of scoring one example: each distinct input is encoded once, each distinct target decoded once.

    Args:
      config: a `t5_engine.config.T5Config`.
      case: the example with its pairs.
    """
    attention, mlp = config.emb_dim * config.joined_kv, 3 * config.emb_dim * config.mlp_dim
    logits = config.emb_dim * config.vocab_size
    products = 0.0
    for ids in {inputs for inputs, _ in case.pairs}:
        scores = 2 * len(ids) * config.joined_kv
        encoder = config.num_encoder_layers * (4 * attention + mlp + scores)
        keys_and_values = config.num_decoder_layers * 2 * attention
        products += len(ids) * (encoder + keys_and_values)
    for inputs, targets in set(case.pairs):
        scores = 2 * (len(inputs) + len(targets)) * config.joined_kv
        products += len(targets) * (
            config.num_decoder_layers * (6 * attention + mlp + scores) + logits
        )
    return 2 * products


def seconds(plan: Plan, share: Callable[[Unit], float]) -> float | None:
    """About how long that share of each unit takes on all devices; None where a model's sizes are not known.

    Units with equal keys are scored once.
    """
    total = 0.0
    models = {group.model.label: group.model for group in plan.groups}
    units = {unit.key: unit for unit in plan.units()}.values()
    for model in models.values():
        if model.example_flops is None:
            return None
        own = [unit for unit in units if unit.model is model]
        work = sum(share(unit) * plan.sizes[unit.key].flops for unit in own)
        total += work / (SHARE * _flops_per_second(model.config.dtype)) if work else 0.0
    return total


@functools.cache
def _flops_per_second(dtype: str) -> float:
    """What all devices together do of a large matrix product in that dtype, each on its own."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((_SIZE, _SIZE), dtype)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        for _ in range(8):
            result = product(matrix)
        result.block_until_ready()
        times += 8
    one = 2 * _SIZE**3 * times / (time.perf_counter() - began)
    on_cpu = jax.devices()[0].platform == "cpu"  # its devices share the cores
    return one if on_cpu else one * jax.device_count()
