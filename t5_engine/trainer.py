"""The training loop: initialise or resume, step, report, save.

The parameters come from, in this order:
  1. the newest whole checkpoint in `model_dir`, with the optimizer's state, the random key, the position in the data
     and the metrics not yet reported: the run goes on as if it had not been interrupted;
  2. `initial_checkpoint_path`, parameters only;
  3. the initialisers, from `seed`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flipped_core import uploads
from flipped_core.errors import UserError
from flipped_core.paths import to_path
from t5_engine import (
    axes,
    checkpoints,
    exchange,
    ladder,
    partitioning,
    processes,
    run_folder,
    speed,
)
from t5_engine.axes import Layout
from t5_engine.config import T5Config
from t5_engine.reporting import Reporter
from t5_engine.run_settings import TrainConfig
from t5_engine.step import (
    TrainState,
    compiled_step,
    dropout_key_data,
    make_state,
    state_shardings,
)
from t5_engine.stopping import Termination

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
EXAMPLE_IDS = "example_ids"
PROFILE_FOLDER = "profile"
_TASKS_NAMED = 5


def train(
    config: TrainConfig,
    model_config: T5Config,
    batches: Batches,
    task_of: Callable[[bytes], str] = bytes.decode,
    hold: processes.Hold | None = None,
) -> TrainState:
    """Trains to `config.steps` and returns the final state.

    Args:
      config: the run.
      model_config: the model.
      batches: called with the number of batches already used; gives the batch of each step from there on, padded (see
        `losses.objective` for the arrays). With `config.pack` every process gives all rows, else its own
        (`partitioning.host_share`). Batches may come in several lengths; each new shape is compiled once.
        `example_ids` may name the rows.
      task_of: the task of an example's id, for the message about a loss that is not finite.
      hold: of `model_dir`, where the callers of all processes hold it (`processes.hold`); else it is taken here.

    Raises:
      UserError: another run holds `model_dir`; its disk is full or broken; the loss or the gradient is not finite (with
        the step, the tasks and the last checkpoint); a checkpoint is of another size; the batches end early.
      SystemExit: after saving, where the process was asked to stop: with code 0 by SIGTERM, 130 by Ctrl-C, 129 by
        SIGHUP.
    """
    if hold is None:
        with processes.hold(config.model_dir, "model_dir") as own:
            return _train(config, model_config, batches, task_of, own)
    return _train(config, model_config, batches, task_of, hold)


def _train(
    config: TrainConfig,
    model_config: T5Config,
    batches: Batches,
    task_of: Callable[[bytes], str],
    hold: processes.Hold,
) -> TrainState:
    """`train`, in a folder that is held."""
    layout = Layout(partitioning.make_mesh(config.model_parallelism), axes.rules(config.fsdp))
    if jax.process_index() == 0:
        run_folder.remove_leftovers(config.model_dir)
    store = checkpoints.Checkpoints(
        config.model_dir,
        config.keep_checkpoints,
        config.keep_every,
        verify=config.verify_checkpoints,
    )
    reporter = None
    with (
        run_folder.storage_errors(config.model_dir, store),
        Termination(lambda: run_folder.kept(store)) as termination,
    ):
        try:
            state, progress = _initial_state(config, model_config, layout, store)
            done = int(state.step)
            if done >= config.steps:
                return state
            if jax.process_index() == 0:
                reporter = _reporter(config, done, progress)
            source, packing = _source(
                config, model_config, layout, batches, progress.get("batches", done)
            )
            loop = _Loop(
                config, model_config, layout, store, reporter, termination, task_of, hold, packing
            )
            with processes.leaving_lost_peers():
                return loop.run(state, done, source)
        finally:
            if reporter is not None:
                reporter.close()
            store.close()


@dataclasses.dataclass
class _Started:
    """A step that is on its way: its number, metrics to come, and what the host knows about it."""

    step: int
    metrics: dict[str, jax.Array]
    example_ids: Any
    positions: int
    input_seconds: float


class _Loop:
    """The steps of one process."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: T5Config,
        layout: Layout,
        store: checkpoints.Checkpoints,
        reporter: Reporter | None,
        termination: Termination,
        task_of: Callable[[bytes], str],
        hold: processes.Hold,
        packing: ladder.Ladder | None,
    ) -> None:
        self._hold, self._packing = hold, packing
        self._config, self._model_config, self._layout = config, model_config, layout
        self._store, self._reporter = store, reporter
        self._termination, self._task_of = termination, task_of
        self._rate = config.schedule
        self._started: _Started | None = None
        self._first = self._saved = 0
        self._profile_files: uploads.Uploaded | None = None

    def run(
        self, state: TrainState, done: int, source: Iterator[Mapping[str, np.ndarray]]
    ) -> TrainState:
        """Steps from `done` to the end."""
        config = self._config
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        compiled = compiled_step(config.step(self._model_config, self._layout), shardings)
        self._first, self._saved = done + 1, done
        if config.profile is not None and self._first + config.profile[0] > config.steps:
            raise UserError(
                f"profile: {config.profile[0]} steps to let pass leave none to trace of steps {done + 1} "
                f"to {config.steps}"
            )
        for step in range(done + 1, config.steps + 1):
            if self._termination.at(step - 1):
                self._leave(step - 1, state)
            self._profile(step, state)
            began = time.perf_counter()
            arrays, example_ids = self._next_batch(step, source)
            waited = time.perf_counter() - began
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = compiled(state, arrays)
            if step == self._first:
                self._termination.arm()  # before the first step, which is compiled for minutes, nothing can be lost
            # Step N is on its way; only now wait for step N - 1, so that the devices never wait for this loop.
            self._read()
            self._started = _Started(step, metrics, example_ids, _positions(arrays), waited)
            if step == config.steps or step % config.checkpoint_period == 0:
                self._save(step, state)
        self._profile(config.steps + 1, state)
        return state

    def _next_batch(
        self, step: int, source: Iterator[Mapping[str, np.ndarray]]
    ) -> tuple[dict[str, jax.Array], Any]:
        batch = dict(next(source, {}))
        if not batch:
            raise UserError(
                f"batches: expected one for each of {self._config.steps} steps, got {step - 1}"
            )
        example_ids = batch.pop(EXAMPLE_IDS, None)
        batch = _trained_on(batch, self._config)
        if self._packing is not None:
            packed = self._packing.pack(batch)
            return partitioning.put_whole_batch(packed, self._layout.mesh), example_ids
        put = partitioning.put_batch(batch, self._layout.mesh, self._config.microbatches)
        return put, example_ids

    def _read(self) -> None:
        """Waits for the metrics of the step that was started last, checks and reports them."""
        started, self._started = self._started, None
        if started is None:
            return
        metrics = {name: float(value) for name, value in jax.device_get(started.metrics).items()}
        self._refuse_non_finite(started, metrics)
        if self._reporter is not None:
            with_wrong = bool(self._config.unlikelihood_weight)
            self._reporter.step(
                started.step,
                metrics,
                learning_rate=float(self._rate(started.step - 1)),
                positions=started.positions,
                flops=speed.useful_flops(self._model_config, metrics, with_wrong=with_wrong),
                input_seconds=started.input_seconds,
                examples_by_dataset=_by_task(started.example_ids, self._task_of),
            )

    def _save(self, step: int, state: TrainState) -> None:
        self._hold.check()
        self._read()
        began = time.perf_counter()
        progress = {
            "batches": step,
            "dropout_key": np.asarray(state.dropout_key).tolist(),
            "unreported": {} if self._reporter is None else self._reporter.unreported,
        }
        self._store.save(
            step,
            state.params,
            state.opt_state,
            self._model_config,
            self._config.optimizer,
            progress,
        )
        self._saved = step
        if self._reporter is not None:
            self._reporter.saved(time.perf_counter() - began)

    def _leave(self, step: int, state: TrainState) -> None:
        """Ends the process in good order after that step."""
        if step > self._saved:
            self._save(step, state)
        self._store.wait()
        if jax.process_index() == 0:
            print(
                f"{self._config.mixture}: stopped by {self._termination.cause}; step {step} of {self._config.steps} is "
                f"saved in {self._config.model_dir}, and the same command resumes from there",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(self._termination.exit_code)

    def _profile(self, step: int, state: TrainState) -> None:
        """Called before each step, and after the last: begins and ends the trace."""
        if self._config.profile is None:
            return
        begin = self._first + self._config.profile[0]
        end = min(begin + self._config.profile[1], self._config.steps + 1)
        if step == begin < end:
            jax.block_until_ready(state)
            folder = to_path(self._config.model_dir, "model_dir") / PROFILE_FOLDER
            self._profile_files = uploads.Uploaded(folder)
            jax.profiler.start_trace(str(self._profile_files.local))
        elif step == end and self._profile_files is not None:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._profile_files.close()
            self._profile_files = None

    def _refuse_non_finite(self, started: _Started, metrics: Mapping[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                self._store.wait()
                newest = self._store.newest
                last = f"{self._store.folder / str(newest)}" if newest else "none"
                raise UserError(
                    f"{name} is {metrics[name]} at step {started.step}"
                    f"{_shares(started.example_ids, self._task_of)}; last good checkpoint: {last}. "
                    f"A lower learning rate, a warm-up or float32 activations usually help"
                )


def _shares(example_ids: Any, task_of: Callable[[bytes], str]) -> str:
    """ ", with a batch of 50% this, 25% that", the largest shares; nothing where the rows have no names."""
    found = _by_task(example_ids, task_of)
    if not found:
        return ""
    total, counts = found.total(), found.most_common()
    words = [f"{count / total:.0%} {name}" for name, count in counts[:_TASKS_NAMED]]
    if len(counts) > _TASKS_NAMED:
        rest = sum(count for _, count in counts[_TASKS_NAMED:])
        words.append(f"{rest / total:.0%} {len(counts) - _TASKS_NAMED} others")
    return f", with a batch of {', '.join(words)}"


def _by_task(example_ids: Any, task_of: Callable[[bytes], str]) -> collections.Counter[str]:
    """task -> examples of this process's rows of a batch; rows without a name are padding."""
    names = () if example_ids is None else example_ids
    return collections.Counter(task_of(name) for name in names if name)


def _positions(arrays: Mapping[str, jax.Array]) -> int:
    """The positions that the model computes, of inputs and targets."""
    positions = arrays["encoder_input_tokens"].size + arrays["decoder_target_tokens"].size
    return 2 * positions if "wrong_encoder_input_tokens" in arrays else positions


def _trained_on(batch: Mapping[str, np.ndarray], config: TrainConfig) -> dict[str, np.ndarray]:
    """The arrays that the step reads: without ids, and without wrong inputs where they have no weight."""
    return {
        name: array
        for name, array in batch.items()
        if name != EXAMPLE_IDS and (config.unlikelihood_weight or not name.startswith("wrong_"))
    }


def _source(
    config: TrainConfig, model_config: T5Config, layout: Layout, batches: Batches, done: int
) -> tuple[Iterator[Mapping[str, np.ndarray]], ladder.Ladder | None]:
    """The batches behind the first `done`, and how they are packed: by the lengths of the run's first batches."""
    source = batches(done)
    if not config.pack:
        return source, None
    first = list(itertools.islice(batches(0) if done else source, ladder.SAMPLE))
    if not done:
        source = itertools.chain(first, source)
    if not first:
        return source, None
    found = ladder.fit(
        [_trained_on(batch, config) for batch in first],
        layout.mesh.shape[axes.DATA] * config.microbatches,
        lambda inputs, targets: speed.forward_flops(model_config, inputs, targets),
        config.pack_lengths,
        config.pack_rows,
    )
    processes.refuse_differences({"first batches": found.digest})
    if processes.is_first():
        print(f"{config.mixture}: {found}", file=sys.stderr, flush=True)
    return source, found


def _reporter(config: TrainConfig, done: int, progress: Mapping[str, Any]) -> Reporter:
    rate = config.nominal_rate or speed.nominal_rate(jax.devices()[0].device_kind)
    return Reporter(
        config.model_dir,
        first_step=done,
        steps=config.steps,
        period=config.log_period,
        label=config.mixture,
        nominal_rate=None if rate is None else rate * jax.device_count(),
        unreported=progress.get("unreported"),
    )


def _initial_state(
    config: TrainConfig,
    model_config: T5Config,
    layout: Layout,
    store: checkpoints.Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, what else a checkpoint says to go on from), by the precedence in the module's docstring."""
    transform = config.transform

    def fresh() -> TrainState:
        return make_state(model_config, transform, config.seed)

    abstract = jax.eval_shape(fresh)
    shardings = state_shardings(abstract, model_config, layout)

    def complete(params: Any, opt_state: Any, step: int, key: Any) -> TrainState:
        return TrainState(
            params,
            opt_state,
            jax.device_put(np.int32(step), shardings.step),
            jax.device_put(np.asarray(key, np.uint32), shardings.dropout_key),
        )

    newest = store.resumable()
    if newest is not None:
        target = checkpoints.with_shardings(abstract, shardings)
        params, opt_state = store.restore(
            newest, target.params, target.opt_state, model_config, config.optimizer
        )
        progress = store.progress(newest)
        key = progress.get("dropout_key", dropout_key_data(config.seed))
        return complete(params, opt_state, newest, key), progress
    if config.initial_checkpoint_path:
        params = exchange.load_for(
            config.initial_checkpoint_path,
            model_config,
            shardings.params,
            verify=config.verify_checkpoints,
        )
        opt_state = jax.jit(transform.init, out_shardings=shardings.opt_state)(params)
        return complete(params, opt_state, 0, dropout_key_data(config.seed)), {}
    return jax.jit(fresh, out_shardings=shardings)(), {}
