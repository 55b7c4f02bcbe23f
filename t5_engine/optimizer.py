"""Adafactor as T5X configures it, and Adam with warm-up for small models from scratch.

Adafactor clips each parameter's update by its root mean square, scales it by the parameter's own, and factors the
second moments of its two largest dimensions. On a stack of layers [L, D, F] all three would span the layers and
train something else (by tens to hundreds of percent), so its update is mapped over the layer axis: each layer is
a parameter of its own, as in T5X, where layers are not stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from flipped_core.errors import UserError, unknown
from t5_engine.model import STACKED, STACKS
from t5_engine.run_settings import DECAYS


def schedule(
    learning_rate: float, *, warmup_steps: int = 0, decay: str = "constant", steps: int = 0
) -> optax.Schedule:
    """The learning rate by step (from 0): linear warm-up to `learning_rate`, then constant or down to 0.

    Args:
      learning_rate: the highest rate.
      warmup_steps: steps from 0 to the highest rate.
      decay: "constant", "linear" or "cosine".
      steps: the step at which a decaying rate is 0.
    """
    if decay not in DECAYS:
        raise unknown("decay", decay, DECAYS)
    if learning_rate <= 0:
        raise UserError(f"learning_rate: expected more than 0, got {learning_rate!r}")
    rest = steps - warmup_steps
    if decay != "constant" and rest < 1:
        raise UserError(
            f"decay {decay!r}: expected steps > warmup_steps, got {steps} and {warmup_steps}"
        )
    after = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest),
    }[decay]()
    if not warmup_steps:
        return after
    # The first step already moves: step 0 has rate learning_rate / warmup_steps.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def adafactor(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """T5X's Adafactor: no momentum, decay t^-0.8, updates clipped at RMS 1 and scaled by the parameter's RMS.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), with T5X's settings (`t5x/adafactor.py`).

    Args:
      learning_rate: relative to a parameter's root mean square.

    Returns:
      A transformation for the parameters of `t5_engine.model.T5`; see `per_layer`.
    """
    return per_layer(
        optax.adafactor(
            learning_rate,
            min_dim_size_to_factor=128,
            decay_rate=0.8,
            multiply_by_parameter_scale=True,
            clipping_threshold=1.0,
            momentum=None,
        )
    )


def adam(
    learning_rate: optax.ScalarOrSchedule, *, clip_norm: float = 1.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """AdamW with gradients clipped to a global norm; it works on each number alone, so stacking is no matter."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=0.9, b2=0.98, weight_decay=weight_decay),
    )


def make(
    name: str,
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay: str = "constant",
    steps: int = 0,
) -> optax.GradientTransformation:
    """The optimizer of that name with the rate of `schedule`; an unknown name is a `UserError`."""
    makers = {"adafactor": adafactor, "adam": adam}
    if name not in makers:
        raise unknown("optimizer", name, makers)
    return makers[name](
        schedule(learning_rate, warmup_steps=warmup_steps, decay=decay, steps=steps)
    )


def per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, applied to each layer of a stack on its own (`jax.vmap` over axis 0) and to the rest as it is.

    Its state is a dictionary: "encoder" and "decoder" hold the stacked layers' (every leaf begins with L), "rest"
    that of all other parameters.
    """

    def init(params: Mapping[str, Any]) -> dict[str, Any]:
        stacks, rest = _split(params)
        return {
            **{name: jax.vmap(inner.init)(layers) for name, layers in stacks.items()},
            "rest": inner.init(rest),
        }

    def update(
        updates: Mapping[str, Any],
        state: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        assert params is not None
        stack_updates, rest_updates = _split(updates)
        stack_params, rest_params = _split(params)
        new_state: dict[str, Any] = {}
        for name in stack_updates:
            stack_updates[name], new_state[name] = jax.vmap(inner.update)(
                stack_updates[name], state[name], stack_params[name]
            )
        rest_updates, new_state["rest"] = inner.update(rest_updates, state["rest"], rest_params)
        return _join(stack_updates, rest_updates), new_state

    return optax.GradientTransformation(init, update)


def _split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # With their whole path, by which the state's layout on a mesh is derived from the parameters'.
    stacks = {name: {name: {STACKED: params[name][STACKED]}} for name in STACKS}
    rest = dict(params)
    for name in STACKS:
        rest[name] = {key: value for key, value in params[name].items() if key != STACKED}
    return stacks, rest


def _join(stacks: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(rest)
    for name in STACKS:
        joined[name] = {**rest[name], **stacks[name][name]}
    return joined
