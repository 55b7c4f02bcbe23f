"""`evaluate`, what eval.py and `flipped eval` call: from folders of checkpoints to the results of suites.

As in `training`, what is slow to import waits until `evaluate` is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from flipped_cli import errors, provenance, quiet
from flipped_cli.checks import check_data_dir, check_paths
from flipped_cli.runs import EvalRun
from flipped_core import hub
from flipped_core.errors import UserError
from flipped_core.paths import to_path
from flipped_core.settings import declared

if TYPE_CHECKING:
    from flipped_eval.jobs import Run, Told
    from flipped_eval.planning import Size
    from flipped_eval.recipes import Recipe


def evaluate(run: EvalRun) -> dict[str, Any]:
    """Scores suites with the newest checkpoint of each folder by each method.

    Of several processes all call it alike and score together; the first one writes and prints.

    Args:
      run: all settings.

    Returns:
      What was written to `results.json`; {} with `plan_only`.

    Raises:
      UserError: a setting that does not fit the checkpoints or the data; with `plan_only` also where a task cannot be
        run.
    """
    cache = "compilation_cache_dir"
    written = (cache,) if run.plan_only else (cache, "output_dir")
    with _joined(run, functools.partial(check_paths, run, written=written)):
        run = _pinned(run)
        trained = _recipes(run)
        check_data_dir(run.data_dir)
        _load_modules(run)
        _check_suites(run, trained)
        from flipped_eval import jobs

        lines = [line for recipe in trained for line in recipe.lines()]
        failed: list[Mapping[str, Any]] = []

        def show_plan(told: Told) -> None:
            failed.extend(told.plan.failed)
            _show_plan(lines, run.plan_only, told)

        found = jobs.evaluate(
            _labelled(_runs(run, trained), run.label),
            run,
            run.output_dir,
            batch_size=run.batch_size,
            model_parallelism=run.model_parallelism,
            verify_checkpoints=run.verify_checkpoints,
            announce=_announce,
            tell_plan=show_plan,
            plan_only=run.plan_only,
            commit=provenance.git_commit(),
        )
        if (
            run.plan_only and failed
        ):  # the same exit code as that of the job itself, and of `flipped data prepare`
            tasks = dict.fromkeys(f"{one['suite']} {one['task']}" for one in failed)
            raise UserError(f"tasks that cannot be run: {', '.join(tasks)}; the reasons are above")
        return found


@contextlib.contextmanager
def _joined(run: EvalRun, check: Callable[[], object]) -> Iterator[None]:
    """Joins the job's other processes, where it has several; a mistake in one of them then ends all."""
    before = signal.getsignal(signal.SIGTERM)
    if not run.join(check):
        from t5_engine import launch

        launch.check_devices()
        yield
        return
    from t5_engine import processes

    # JAX's own service only notes a signal, for training. Here nothing is lost by ending at once.
    signal.signal(signal.SIGTERM, before)
    with processes.one_for_all():
        yield


def conclude(summary: Mapping[str, Any]) -> None:
    """Prints the means, then raises `UserError` with the tasks that could not be run, if any; all is written then.

    Of several processes only the first says anything; the exit code is that of all.
    """
    if not summary:  # only planned
        return
    from flipped_eval.report.content import collect
    from flipped_eval.results import missing_tasks
    from t5_engine import processes

    missing = missing_tasks(dict(summary))
    if not processes.is_first():
        sys.exit(errors.USER_ERROR_CODE if missing else 0)
    print(collect([summary]).summary(), flush=True)
    if missing:
        raise UserError(f"tasks that could not be run and are in no mean: {'; '.join(missing)}")


def _check_suites(run: EvalRun, trained: Sequence[Recipe]) -> None:
    """Refuses a suite that is not known where a module of the training, which was not named here, may register it.

    The module is not loaded to see: reading a checkpoint runs no code.
    """
    from flipped_eval.planning import SUITES
    from flipped_tasks.datasets import dataset_names

    named = {os.path.basename(module) for module in run.task_modules}
    modules = dict.fromkeys(
        module
        for recipe in trained
        for module in recipe.run.get("task_modules") or ()
        if os.path.basename(module) not in named
    )
    for suite in run.suites if modules else ():
        known = dataset_names()
        if suite not in SUITES and suite not in known and suite.partition(":")[0] not in known:
            raise UserError(
                f"unknown suite or dataset {suite!r}: the checkpoint was trained with a module that may register it; "
                f"give --module {' '.join(modules)} (gin: TASK_MODULES)"
            )


def _load_modules(run: EvalRun) -> None:
    quiet.import_for_rows(run.data_dir)
    from mixtures import modules

    modules.load(run.task_modules)


# Field of a recipe -> how the user gives it.
_HOW = {
    name: f"--gin.{one.setting.macro}=… (flipped eval: {option} …)"
    for name, option in (
        ("method", "--method"),
        ("lengths", "--inputs_length … --targets_length"),
        ("input_eos", "--eos or --no_eos"),
        ("vocab_path", "--vocab"),
    )
    for one in [declared(EvalRun)[name]]
}


def _pinned(run: EvalRun) -> EvalRun:
    """The run with the commits of repositories of the hub: the first process asks, so that all take the same."""
    paths = [*run.checkpoint_path, *([run.vocab_path] if run.vocab_path else [])]
    if not any(map(hub.is_reference, paths)):
        return run
    from t5_engine import processes

    pinned = processes.from_first(lambda: [hub.pin(path) for path in paths])
    count = len(run.checkpoint_path)
    return dataclasses.replace(
        run,
        checkpoint_path=tuple(pinned[:count]),
        vocab_path=pinned[count] if run.vocab_path else None,
    )


def _recipes(run: EvalRun) -> list[Recipe]:
    """How each checkpoint was trained, with what the user gave; refuses what is not there, or leaves something open."""
    for name in ("suites", "checkpoint_path", "method", "label"):
        if getattr(run, name) == ():
            raise UserError(f"{name}: expected a name or a list of names, got an empty list")
    for checkpoint in run.checkpoint_path:
        if not hub.is_reference(checkpoint):
            _check_folders(to_path(checkpoint), to_path(run.output_dir))
    return [_recipe(run, checkpoint) for checkpoint in dict.fromkeys(run.checkpoint_path)]


def _recipe(run: EvalRun, checkpoint: str) -> Recipe:
    from flipped_eval import recipes

    found = recipes.of(checkpoint)[0].given(
        method=", ".join(run.method) if run.method else None,
        lengths=run.lengths,
        input_eos=run.input_eos,
        vocab_path=run.vocab_path,
    )
    found.require(_HOW)
    return found


def _check_folders(checkpoint: epath.Path, output_dir: epath.Path) -> None:
    if not checkpoint.is_dir():
        raise UserError(f"checkpoint_path: expected a folder, there is none at {checkpoint}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir: expected a folder, or nothing yet, got the file {output_dir}")
    if os.path.realpath(output_dir) == os.path.realpath(checkpoint):
        raise UserError(
            f"output_dir: expected another folder than checkpoint_path, got {output_dir}; both keep "
            f"a {provenance.RUN_FILE}"
        )


def _runs(run: EvalRun, trained: Sequence[Recipe]) -> list[Run]:
    """One column for each checkpoint and method. The labels are made later."""
    from flipped_eval.jobs import Run

    return [
        Run(
            method=method,
            vocab_path=str(recipe.vocab_path),
            label="",
            checkpoint=recipe.checkpoint,
            lengths=recipe.lengths or {},
            input_eos=bool(recipe.input_eos),
            length_normalize=run.length_normalize,
            exact_vocabulary=recipe.exact_vocabulary,
            sources=recipe.sources,
        )
        for recipe in trained
        for method in run.method or (str(recipe.method),)
    ]


def _labelled(runs: Sequence[Run], labels: tuple[str, ...] | None) -> list[Run]:
    """The runs with the labels given, or with names made of what they differ in: folder, method, or both."""
    if labels is not None:
        if len(labels) != len(runs):
            raise UserError(
                f"label: expected {len(runs)} names, one for each checkpoint and method, got {len(labels)}"
            )
    else:
        folders = {run.checkpoint: hub.name_of(run.checkpoint or "") for run in runs}
        if len(set(folders.values())) < len(folders):
            folders = {name: name or "" for name in folders}
        methods = len({run.method for run in runs}) > 1 or len(folders) == 1
        labels = tuple(
            " ".join([folders[run.checkpoint]] * (len(folders) > 1) + [run.method] * methods)
            for run in runs
        )
    return [dataclasses.replace(run, label=name) for run, name in zip(runs, labels, strict=True)]


def _announce(line: str) -> None:
    """A line above the progress bar."""
    import tqdm

    tqdm.tqdm.write(line)


def _show_plan(lines: Sequence[str], plan_only: bool, told: Told) -> None:
    """Prints how the checkpoints are asked (`lines`), what will be scored, and about how long it takes.

    A small job has no table, unless it is only planned.
    """
    from rich.table import Table

    from flipped_cli import tables
    from flipped_eval.planning import Size
    from flipped_eval.scoring import SMALL_JOB

    for line in lines:
        _announce(line)
    by_task: dict[tuple[str, str], Size] = {}
    for unit in told.plan.units():
        size = by_task.setdefault((unit.task.suite, unit.task.task), Size())
        size.add(told.plan.sizes[unit.key])
    table = Table("suite", "task", box=None)
    for column in ("templates", "examples", "choices", "tokens"):
        table.add_column(column, justify="right")
    for (suite, task), size in by_task.items():
        table.add_row(suite, task, *_numbers(size))
    total = Size()
    for size in by_task.values():
        total.add(size)
    runs = len({group.model.label for group in told.plan.groups})
    table.add_row("all", f"{len(by_task)} tasks, {runs} runs", *_numbers(total), end_section=True)
    if plan_only or told.waiting.choices > SMALL_JOB:
        tables.show(table)
    for line in _not_run(told.plan.failed):
        _announce(f"not run: {line}")
    left = _numbers(told.waiting)
    time = "" if told.seconds is None else f", about {_duration(told.seconds)}"
    numbers = f"{left[0]} templates, {left[2]} choices, {left[3]} tokens{time}"
    _announce(f"left to score: {numbers if told.waiting.templates else 'nothing'}")


def _not_run(failed: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each task and reason, with the templates where they are few."""
    together: dict[tuple[str, str, str], dict[str, dict[str, None]]] = {}
    for one in failed:
        names = together.setdefault((one["suite"], one["task"], one["why"]), {})
        names.setdefault(one["method"], {})[one["template"]] = None
    lines = []
    for (suite, task, why), methods in together.items():
        templates = list(dict.fromkeys(name for found in methods.values() for name in found))
        which = repr(templates[0]) if len(templates) == 1 else f"{len(templates)} templates"
        lines.append(f"{suite} {task}, {which} ({', '.join(methods)}): {why}")
    return lines


def _numbers(size: Size) -> list[str]:
    about = "" if size.exact else "≈ "
    numbers = (size.examples, size.choices, size.tokens)
    return [str(size.templates), *(f"{about}{round(number):,}" for number in numbers)]


def _duration(seconds: float) -> str:
    """Rounded as a guess is: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
