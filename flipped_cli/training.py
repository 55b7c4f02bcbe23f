"""`train`, what train.py calls: from a mixture's name and a recipe to checkpoints in a folder.

What is slow to import waits until `train` is called, so that a mistake in a setting is reported at once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flipped_cli import provenance, quiet, run_summary
from flipped_cli.checks import WORLD_TEXTS, check_data_dir, check_paths, method_of
from flipped_cli.runs import TrainRun
from flipped_core import hub, interrupts
from flipped_core.errors import UserError

if TYPE_CHECKING:
    from t5_engine import processes
    from t5_engine.partitioning import HostShare

_EXAMPLE_ID = re.compile(r"(.+?)/[^/]+/\d+/")


def train(run: TrainRun, operative_gin: str = "") -> Any:
    """Trains a model on a mixture, or resumes from the newest checkpoint in `run.model_dir`.

    Args:
      run: all settings.
      operative_gin: the gin bindings in force, which are written to `model_dir`.

    Returns:
      The final state, as `t5_engine.trainer.train` gives it.

    Raises:
      UserError: a setting that does not fit the data, the model or what `model_dir` holds.
    """
    run.join(functools.partial(_check, run))
    from t5_engine import launch, processes

    launch.check_devices()
    kept = f"nothing was trained yet since this start; what {run.model_dir} held before is kept"
    with (
        interrupts.at_once(lambda: kept),
        processes.hold(run.model_dir, "MODEL_DIR") as held,
    ):
        return _run(_pinned(run), operative_gin, held)


def _pinned(run: TrainRun) -> TrainRun:
    """The run with the commits of repositories of the hub, of which the first checkpoint is now downloaded.

    The first process asks for the commits, so that all take the same; a run that resumes keeps its own. What fails in
    one process ends all.
    """
    paths = {name: getattr(run, name) for name in ("initial_checkpoint_path", "vocab_path")}
    paths = {name: path for name, path in paths.items() if path and hub.is_reference(path)}
    if not paths:
        return run
    from t5_engine import exchange, processes

    def ask() -> dict[str, str]:
        before = provenance.read_recipe(run.model_dir)
        return {name: hub.pin(path, before.get(name)) for name, path in paths.items()}

    with processes.one_for_all():
        pinned = processes.from_first(ask)
        if "initial_checkpoint_path" in pinned and not provenance.has_checkpoints(run.model_dir):
            exchange.prepare(pinned["initial_checkpoint_path"], run.model)
        if "vocab_path" in pinned:
            hub.vocabulary(pinned["vocab_path"])
    return dataclasses.replace(run, **pinned)


def _check(run: TrainRun) -> None:
    """Refuses what can be refused before anything slow is imported."""
    check_paths(run, written=("model_dir", "compilation_cache_dir"))
    check_data_dir(run.data_dir)
    if run.mixture not in WORLD_TEXTS:
        method_of(run.mixture)
    from flipped_tasks.tokens import Vocabulary

    provenance.refuse_earlier_end(run)
    needed = Vocabulary.from_file(run.vocab_path).num_ids
    if needed > run.model.vocab_size:
        raise UserError(
            f"T5Config.vocab_size: expected at least {needed}, the ids of {run.vocab_path} with its "
            f"sentinels, got {run.model.vocab_size}"
        )


def _run(run: TrainRun, operative_gin: str, held: processes.Hold) -> Any:
    """What `train` does once the processes have found each other."""
    quiet.import_tensorflow()
    import jax

    from t5_engine import partitioning, processes, trainer

    primary = jax.process_index() == 0
    with processes.one_for_all():
        _register(run)
        mesh = partitioning.make_mesh(run.model_parallelism)
        # Packed, processes agree without asking each other, since each reads the whole batch.
        whole = partitioning.HostShare()
        share = whole if run.pack else partitioning.host_share(mesh, run.batch_size)
        stream = functools.partial(_arrays, run, share)
        # The first batch is drawn before anything is written: bad rows must not leave a folder behind.
        from_start = stream(0)
        first = next(from_start)
        provenance.open_run(run, operative_gin, write=primary)

    # Steps from which batches were asked for; none where the run is complete already.
    starts: list[int] = []
    if primary and provenance.newest_step(run.model_dir) != run.steps:
        run_summary.show_header(run, mesh)

    def source(done: int) -> Iterator[dict[str, Any]]:
        if primary and not starts:
            print(run_summary.starting_from(run, done), flush=True)
        starts.append(done)
        return stream(done) if done else itertools.chain([first], from_start)

    state = trainer.train(run, run.model, source, task_of, held)
    if primary:
        if starts:
            run_summary.show_counts(run.mixture)
        for line in run_summary.ending(run, trained=bool(starts)):
            print(line, flush=True)
    return state


def _register(run: TrainRun) -> None:
    """Makes the mixture known to SeqIO."""
    from mixtures import modules, own, registration

    modules.load(run.task_modules)
    own.exclude_templates(run.exclude_templates or {})
    if run.mixture in WORLD_TEXTS:
        registration.register_world_text(run.vocab_path, run.seed, run.input_eos, run.mixture)
        return
    registration.register_named(
        run.mixture, run.data_dir, run.vocab_path, run.mixture_rates, run.input_eos
    )


def _arrays(run: TrainRun, share: HostShare, start_step: int) -> Iterator[dict[str, Any]]:
    """This process's rows of the batches from `start_step` on."""
    from flipped_tasks import batches

    found = batches.batches(
        run.mixture,
        run.lengths,
        run.batch_size,
        run.seed,
        start_step=start_step,
        host_index=share.index,
        host_count=share.count,
        length_buckets=run.length_buckets,
        length_window=run.length_window,
    )
    yield from map(share.rows, found)


def task_of(example_id: bytes) -> str:
    """The dataset of an example's id, which is dataset/split/row/template."""
    name = example_id.decode(errors="replace")
    found = _EXAMPLE_ID.match(name)
    return found[1] if found else name
