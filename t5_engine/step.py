"""One training step: its state, its program, and how both lie on a mesh.

`compiled_step` is what the trainer runs; who only wants to know what a step costs lowers it with abstract arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5_engine import axes, partitioning
from t5_engine.axes import Layout
from t5_engine.config import T5Config
from t5_engine.losses import divisor_of, objective
from t5_engine.model import Params, init_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes, and the key that it draws from.

    Attributes:
      params: float32.
      opt_state: the optimizer's.
      step: the number of steps done, int32 scalar.
      dropout_key: the data (uint32) of the random key from whose fold by its number each step draws.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    dropout_key: jax.Array


Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_state(
    model_config: T5Config, transform: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step, from the initialisers; traceable."""
    params = init_params(model_config, jax.random.key(seed))
    return TrainState(
        params, transform.init(params), jnp.zeros((), jnp.int32), dropout_key_data(seed)
    )


def dropout_key_data(seed: int) -> jax.Array:
    """`TrainState.dropout_key` of a run with that seed."""
    return jax.random.key_data(jax.random.key(seed))


def state_shardings(abstract: TrainState, model_config: T5Config, layout: Layout) -> TrainState:
    """The shardings of a state, in its form; `abstract` says the shapes."""
    params = partitioning.param_shardings(model_config, layout)
    opt_state = partitioning.like_params(abstract.opt_state, abstract.params, params, layout.mesh)
    whole = partitioning.whole(layout.mesh)
    return TrainState(params, opt_state, whole, whole)


# Products with gathered weights stay whole. Cut into pieces that run beside the gathering, as the compiler does above
# some size, they take longer by more than the gathering does (docs/scaling.md).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiled_step(step: Step, shardings: TrainState) -> Any:
    """`jax.jit` of a step that overwrites its state and leaves it laid out as it was."""
    mesh = shardings.step.mesh
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, partitioning.whole(mesh)),
        compiler_options=TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None,
    )


def make_step(
    model_config: T5Config,
    transform: optax.GradientTransformation,
    layout: Layout,
    *,
    lambda_unlikelihood: float = 0.0,
    z_loss: float = 0.0,
    microbatches: int = 1,
) -> Step:
    """The function of one training step, to be compiled: (state, batch) -> (state, metrics).

    The metrics are those of `losses.objective` and `grad_norm`, the global norm of the gradient.

    Args:
      model_config: the model's.
      transform: the optimizer.
      layout: the mesh and its rules.
      lambda_unlikelihood: the weight of the unlikelihood term.
      z_loss: see `losses.cross_entropy`.
      microbatches: the batch is worked off in so many equal parts one after the other, whose gradients are added;
        the activations take so many times less memory.
    """

    def loss(params: Params, batch: Batch, key: Any, divisor: Any) -> tuple[jax.Array, Metrics]:
        return objective(
            model_config,
            params,
            batch,
            lambda_unlikelihood=lambda_unlikelihood,
            z_loss=z_loss,
            dropout_key=key,
            divisor=divisor,
        )

    def gradient(params: Params, batch: Batch, key: Any) -> tuple[Metrics, Params]:
        if microbatches > 1:
            return accumulated(loss, params, batch, key, microbatches)
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key, None)
        return metrics, grads

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The key is a function of the step, so that a resumed run draws what an uninterrupted one does.
        root = jax.random.wrap_key_data(state.dropout_key)
        key = jax.random.fold_in(root, state.step) if model_config.dropout_rate else None
        with axes.laid_out(layout):
            metrics, grads = gradient(state.params, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = transform.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(params, opt_state, state.step + 1, state.dropout_key), metrics

    return step


def accumulated(
    loss: Callable[..., tuple[jax.Array, Metrics]],
    params: Params,
    batch: Batch,
    key: jax.Array | None,
    microbatches: int,
) -> tuple[Metrics, Params]:
    """The metrics and the gradient of a batch, added up over its microbatches in float32.

    Every part is divided by the number of target tokens of the *whole* batch, so that parts with few tokens weigh as
    little as they do in the batch.

    Args:
      loss: (params, batch, key, divisor) -> (loss, metrics), as `losses.objective` gives them.
      params: the parameters.
      batch: arrays [B, …], B a multiple of `microbatches`.
      key: of dropout; each part folds its number in. None is no dropout.
      microbatches: how many parts.
    """
    divisor = divisor_of(batch)

    def split(x: jax.Array) -> jax.Array:
        # Part i takes every n-th row from the i-th on: each device has an equal share of it at hand.
        x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return axes.constrain(x, None, "batch", *[None] * (x.ndim - 2))

    parts = jax.tree.map(split, dict(batch))

    def add(total: Any, numbered: Any) -> tuple[Any, None]:
        number, part = numbered
        part_key = None if key is None else jax.random.fold_in(key, number)
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, part, part_key, divisor
        )
        return jax.tree.map(jnp.add, total, (metrics, grads)), None

    _, metrics = jax.eval_shape(loss, params, jax.tree.map(lambda x: x[0], parts), key, divisor)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (metrics, params))
    (metrics, grads), _ = jax.lax.scan(add, nothing, (jnp.arange(microbatches), parts))
    return metrics, grads
