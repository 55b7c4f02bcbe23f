"""The training loop: initialise or resume, step, report, save.

The parameters come from, in this order:
  1. the newest checkpoint in `model_dir`, with the optimizer's state: the run resumes;
  2. `initial_checkpoint_path`, parameters only;
  3. the initialisers, from `seed`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flipped_errors import UserError
from t5_engine import checkpoints, optimizer, partitioning
from t5_engine.config import T5Config
from t5_engine.losses import objective
from t5_engine.model import Params, init_params
from t5_engine.reporting import Reporter

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      model_dir: where checkpoints, metrics.jsonl and TensorBoard's files go.
      steps: the number of steps in all, those before a restart included.
      learning_rate: the highest; relative to each parameter's size for Adafactor.
      seed: of the initialisation and of dropout.
      lambda_unlikelihood: the weight of the unlikelihood term; 0 for DIRECT, CHANNEL and the ablation.
      z_loss: see `losses.cross_entropy`.
      optimizer: "adafactor" (T5X's recipe) or "adam" (small models from scratch).
      warmup_steps: steps of linear warm-up.
      decay: "constant", "linear" or "cosine", down to 0 at `steps`.
      initial_checkpoint_path: a checkpoint, or a run's folder, whose parameters to begin from.
      checkpoint_period: steps between checkpoints; one is always written at the end.
      keep_checkpoints: how many of the newest stay; None keeps all.
      log_period: steps between reports.
      model_parallelism: devices that share one copy of the weights; the rest multiply the batch's speed.
      label: the name in front of the progress bar.
    """

    model_dir: str
    steps: int
    learning_rate: float
    seed: int = 0
    lambda_unlikelihood: float = 0.0
    z_loss: float = 0.0
    optimizer: str = "adafactor"
    warmup_steps: int = 0
    decay: str = "constant"
    initial_checkpoint_path: str | None = None
    checkpoint_period: int = 1000
    keep_checkpoints: int | None = None
    log_period: int = 50
    model_parallelism: int = 1
    label: str = "train"

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_period", "log_period"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)!r}")
        if self.lambda_unlikelihood < 0:
            raise UserError(
                f"lambda_unlikelihood: expected at least 0, got {self.lambda_unlikelihood!r}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes: parameters, optimizer's state, and the number of steps done (int32 scalar)."""

    params: Params
    opt_state: Any
    step: jax.Array


Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    config: TrainConfig, model_config: T5Config, transform: optax.GradientTransformation
) -> Step:
    """The function of one training step, to be compiled: (state, batch) -> (state, metrics).

    The metrics are those of `losses.objective` and `grad_norm`, the global norm of the gradient.
    """
    root = jax.random.key(config.seed)

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # The key is a function of the step, so that a resumed run draws what an uninterrupted one does.
        key = jax.random.fold_in(root, state.step) if model_config.dropout_rate else None

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            return objective(
                model_config,
                params,
                batch,
                lambda_unlikelihood=config.lambda_unlikelihood,
                z_loss=config.z_loss,
                dropout_key=key,
            )

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        with jax.named_scope("optimizer"):
            updates, opt_state = transform.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(params, opt_state, state.step + 1), metrics

    return step


def make_state(
    config: TrainConfig, model_config: T5Config, transform: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, from the initialisers; traceable."""
    params = init_params(model_config, jax.random.key(config.seed))
    return TrainState(params, transform.init(params), jnp.zeros((), jnp.int32))


def state_shardings(
    abstract: TrainState, model_config: T5Config, mesh: jax.sharding.Mesh
) -> TrainState:
    """The shardings of a state, in its form; `abstract` says the shapes."""
    params = partitioning.param_shardings(model_config, mesh)
    opt_state = partitioning.like_params(abstract.opt_state, abstract.params, params, mesh)
    return TrainState(params, opt_state, partitioning.whole(mesh))


def train(config: TrainConfig, model_config: T5Config, batches: Batches) -> TrainState:
    """Trains to `config.steps` and returns the final state.

    Args:
      config: the run.
      model_config: the model.
      batches: called with the number of steps already done; gives the batch of each step from there on, as this
        process's rows (see `losses.objective` for the arrays). Batches may come in several lengths; each new
        shape is compiled once.

    Raises:
      UserError: the loss or the gradient is not finite (with the step and the last checkpoint); a checkpoint is of
        another size; the batches end early.
      SystemExit: with code 0, after saving, where the process was asked to end (SIGTERM).
    """
    mesh = partitioning.make_mesh(config.model_parallelism)
    transform = _transform(config)
    store = checkpoints.Checkpoints(config.model_dir, config.keep_checkpoints)
    state, done = _initial_state(config, model_config, transform, mesh, store)
    if done >= config.steps:
        store.close()
        return state
    reporter = Reporter(
        pathlib.Path(config.model_dir),
        first_step=done,
        steps=config.steps,
        period=config.log_period,
        label=config.label,
    )
    try:
        with _Termination() as termination:
            return _loop(
                config, model_config, batches, mesh, store, reporter, state, done, termination
            )
    finally:
        reporter.close()
        store.close()


def _loop(
    config: TrainConfig,
    model_config: T5Config,
    batches: Batches,
    mesh: jax.sharding.Mesh,
    store: checkpoints.Checkpoints,
    reporter: Reporter,
    state: TrainState,
    done: int,
    termination: _Termination,
) -> TrainState:
    compiled = jax.jit(make_step(config, model_config, _transform(config)), donate_argnums=0)
    rate = _schedule(config)
    pending: dict[str, jax.Array] | None = None

    def read(step: int) -> None:
        """Waits for that step's metrics, checks and reports them."""
        assert pending is not None
        metrics = {name: float(value) for name, value in jax.device_get(pending).items()}
        _refuse_non_finite(metrics, step, store)
        reporter.step(step, metrics, float(rate(step - 1)))

    source = batches(done)
    for step in range(done + 1, config.steps + 1):
        batch = next(source, None)
        if batch is None:
            raise UserError(
                f"batches: expected one for each of {config.steps} steps, got {step - 1}"
            )
        state, metrics = compiled(state, partitioning.put_batch(batch, mesh))
        # Step N is on its way; only now wait for step N - 1, so that the devices never wait for this loop.
        if pending is not None:
            read(step - 1)
        pending = metrics
        last = step == config.steps or termination.asked
        if last or step % config.checkpoint_period == 0:
            read(step)
            pending = None
            store.save(step, state.params, state.opt_state, model_config, config.optimizer)
        if termination.asked and step < config.steps:
            store.wait()
            raise SystemExit(0)
    return state


def _transform(config: TrainConfig) -> optax.GradientTransformation:
    return optimizer.make(
        config.optimizer,
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay=config.decay,
        steps=config.steps,
    )


def _schedule(config: TrainConfig) -> optax.Schedule:
    return optimizer.schedule(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay=config.decay,
        steps=config.steps,
    )


def _initial_state(
    config: TrainConfig,
    model_config: T5Config,
    transform: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    store: checkpoints.Checkpoints,
) -> tuple[TrainState, int]:
    """(state, steps done), by the precedence in the module's docstring."""

    def fresh() -> TrainState:
        return make_state(config, model_config, transform)

    abstract = jax.eval_shape(fresh)
    shardings = state_shardings(abstract, model_config, mesh)
    newest = store.newest
    if newest is not None:
        target = checkpoints.with_shardings(abstract, shardings)
        params, opt_state = store.restore(
            newest, target.params, target.opt_state, model_config, config.optimizer
        )
        step = jax.device_put(np.int32(newest), shardings.step)
        return TrainState(params, opt_state, step), newest
    if config.initial_checkpoint_path:
        params = checkpoints.load_for(
            config.initial_checkpoint_path, model_config, shardings.params
        )
        opt_state = jax.jit(transform.init, out_shardings=shardings.opt_state)(params)
        step = jax.device_put(np.int32(0), shardings.step)
        return TrainState(params, opt_state, step), 0
    return jax.jit(fresh, out_shardings=shardings)(), 0


def _refuse_non_finite(
    metrics: Mapping[str, float], step: int, store: checkpoints.Checkpoints
) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            store.wait()
            newest = store.newest
            last = (
                f"the last checkpoint is {store.folder / str(newest)}"
                if newest
                else "no checkpoint"
            )
            raise UserError(
                f"{name} is {metrics[name]} at step {step}; {last}. A lower learning rate, a warm-up or "
                f"float32 activations usually help"
            )


class _Termination:
    """While entered, SIGTERM is noted in `asked` and does not end the process."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> _Termination:
        # Only the main thread may set handlers; elsewhere a signal keeps its meaning.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.asked = True
