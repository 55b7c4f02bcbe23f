"""`evaluate`, what eval.py and `flipped eval` call: from folders of checkpoints to the results of suites.

As in `training`, what is slow to import waits until `evaluate` is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flipped_cli import errors, provenance, quiet
from flipped_cli.checks import check_data_dir, method_of
from flipped_core.errors import UserError

if TYPE_CHECKING:
    from flipped_eval.jobs import Run, Told
    from flipped_eval.planning import Size


def evaluate(
    *,
    checkpoint_path: str | Sequence[str],
    output_dir: str,
    suites: Sequence[str] = ("nlp14", "labels"),
    method: str | Sequence[str] | None = None,
    vocab_path: str | None = None,
    data_dir: str | None = None,
    lengths: Mapping[str, int] | None = None,
    input_eos: bool | None = None,
    batch_size: int | None = None,
    model_parallelism: int = 1,
    max_examples: int | None = None,
    templates: str = "original",
    splits: Mapping[str, str] | None = None,
    exclude_datasets: Sequence[str] = (),
    label_sets: str | None = None,
    length_normalize: bool = False,
    label: str | Sequence[str] | None = None,
    seed: int = 0,
    task_modules: Sequence[str] = (),
    plan_only: bool = False,
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
    coordinator_timeout: float = 300.0,
) -> dict[str, Any]:
    """Scores suites with the newest checkpoint of each folder by each method; what is None is as in its training.

    Of several processes all call it alike and score together; the first one writes and prints.

    Args:
      checkpoint_path: what `t5_engine.exchange` reads (ours, T5X's, Hugging Face's); or several.
      output_dir: gets scores, predictions and `results.json`; a job that was killed goes on where it stopped.
      suites: names of suites; a dataset's name, one's own included, or DATASET:TEMPLATE.
      method: "direct", "channel" or "flipped", or several, each for all checkpoints.
      vocab_path: a SentencePiece model.
      data_dir: a folder `<dataset, / as __>/<split>.jsonl[.gz]` or `.parquet`; None, the made-up world.
      lengths: most tokens of "inputs" and "targets".
      input_eos: whether encoder inputs end with the end-of-sequence id.
      batch_size: targets that the model scores at a time; None, the scorer's own.
      model_parallelism: devices that share one copy of the weights.
      max_examples: examples of a template; of a larger split some are drawn, with `seed`.
      templates: "original" for T0's, "all" for every usable one.
      splits: dataset -> split, where another than the suite's is wanted.
      exclude_datasets: datasets to leave out, such as "story_cloze/2016", whose rows are handed out on request.
      label_sets: a file like `mixtures/label_sets.yaml`, for the suite "labels".
      length_normalize: rank by log-probability per target token (DIRECT only).
      label: the name of each run in reports, checkpoint by checkpoint; made of folder and method where None.
      seed: of the sample of examples and the templates' random draws.
      task_modules: modules or files that register datasets of one's own; see `mixtures.modules`.
      plan_only: print the plan and score nothing.
      coordinator_address: "host:port" of process 0; None looks for SLURM or a TPU pod.
      process_count: of the job; with an address only.
      process_id: this process's number, from 0; with an address only.
      coordinator_timeout: seconds to wait for the other processes.

    Returns:
      What was written to `results.json`; {} with `plan_only`.

    Raises:
      UserError: an argument that does not fit the checkpoints or the data.
    """
    with _joined(coordinator_address, process_count, process_id, coordinator_timeout):
        trained = _trained(checkpoint_path, output_dir, method, vocab_path)
        check_data_dir(data_dir)
        _load_modules(task_modules, data_dir)
        from flipped_eval import jobs, planning

        runs = _runs(trained, method, _Given(vocab_path, lengths, input_eos, length_normalize))
        request = planning.Request(
            suites=_names("suites", suites),
            templates=templates,
            splits=dict(splits or {}),
            exclude_datasets=tuple(exclude_datasets),
            max_examples=max_examples,
            seed=seed,
            data_dir=data_dir,
            label_sets=label_sets,
        )
        return jobs.evaluate(
            _labelled(runs, label),
            request,
            output_dir,
            batch_size=batch_size,
            model_parallelism=model_parallelism,
            announce=_announce,
            tell_plan=_show_plan,
            plan_only=plan_only,
        )


@contextlib.contextmanager
def _joined(*group: Any) -> Iterator[None]:
    """Joins the job's other processes, where it has several; a mistake in one of them then ends all."""
    from t5_engine import launch

    before = signal.getsignal(signal.SIGTERM)
    if not launch.start(*group):
        launch.check_devices()
        yield
        return
    from t5_engine import processes

    # JAX's own service only notes a signal, for training. Here nothing is lost by ending at once.
    signal.signal(signal.SIGTERM, before)
    with processes.one_for_all():
        yield


@dataclasses.dataclass(frozen=True)
class _Given:
    """What the user said of all runs; None is taken from each checkpoint's recipe."""

    vocab_path: str | None
    lengths: Mapping[str, int] | None
    input_eos: bool | None
    length_normalize: bool


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


def _names(field: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as gin and the command line give them."""
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{field}: expected a name or a list of names, got {value!r}")
    return names


def _load_modules(task_modules: Sequence[str], data_dir: str | None) -> None:
    quiet.import_for_rows(data_dir)
    from mixtures import modules

    modules.load(task_modules)


def _trained(
    checkpoint_path: str | Sequence[str], output_dir: str, method: object, vocab_path: str | None
) -> dict[str, dict[str, Any]]:
    """Checkpoint -> what training wrote of it; refuses what is not there, or leaves something open."""
    trained = {}
    for checkpoint in _names("checkpoint_path", checkpoint_path):
        if "://" not in checkpoint:
            _check_folders(pathlib.Path(checkpoint), pathlib.Path(output_dir))
        recipe = trained[checkpoint] = provenance.read_recipe(checkpoint)
        for missing, flag, found in (
            ("METHOD", "methods", method or recipe.get("mixture")),
            ("VOCAB_PATH", "vocab", vocab_path or recipe.get("vocab_path")),
        ):
            if not found:
                from t5_engine import exchange

                exchange.detect(checkpoint)
                raise UserError(
                    f"{missing} is not given, and {checkpoint} has no {provenance.RUN_FILE} that says it: "
                    f"--gin.{missing}=… (flipped eval: --{flag} …)"
                )
    return trained


def _check_folders(checkpoint: pathlib.Path, output_dir: pathlib.Path) -> None:
    if not checkpoint.is_dir():
        raise UserError(f"checkpoint_path: expected a folder, there is none at {checkpoint}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir: expected a folder, or nothing yet, got the file {output_dir}")
    if output_dir.resolve() == checkpoint.resolve():
        raise UserError(
            f"output_dir: expected another folder than checkpoint_path, got {output_dir}; both keep "
            f"a {provenance.RUN_FILE}"
        )


def _runs(
    trained: Mapping[str, Mapping[str, Any]], method: str | Sequence[str] | None, given: _Given
) -> list[Run]:
    return [
        _run(checkpoint, recipe, one, given)
        for checkpoint, recipe in trained.items()
        for one in _names("method", method or method_of(recipe["mixture"]))
    ]


def _run(checkpoint: str, recipe: Mapping[str, Any], method: str, given: _Given) -> Run:
    """One column; what is not given is the recipe's. The label is made later."""
    from flipped_eval.jobs import LENGTHS, Run
    from flipped_eval.keys import file_hash

    before = recipe.get("vocab_path")
    vocab_path = str(given.vocab_path or before)
    if before and pathlib.Path(before).is_file() and file_hash(vocab_path) != file_hash(before):
        raise UserError(
            f"vocab_path: {checkpoint} was trained with {before}, and {vocab_path} is another vocabulary"
        )
    input_eos = given.input_eos
    return Run(
        method=method,
        vocab_path=vocab_path,
        label="",
        checkpoint=checkpoint,
        lengths=given.lengths or recipe.get("lengths") or LENGTHS,
        input_eos=recipe.get("input_eos", True) if input_eos is None else input_eos,
        length_normalize=given.length_normalize,
        exact_vocabulary=before is None,
    )


def _labelled(runs: Sequence[Run], label: str | Sequence[str] | None) -> list[Run]:
    """The runs with the labels given, or with names made of what they differ in: folder, method, or both."""
    if label is not None:
        labels = _names("label", label)
        if len(labels) != len(runs):
            raise UserError(
                f"label: expected {len(runs)} names, one for each checkpoint and method, got {len(labels)}"
            )
    else:
        folders = {run.checkpoint: pathlib.Path(run.checkpoint or "").name for run in runs}
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


def _show_plan(told: Told) -> None:
    """Prints what will be scored: tasks, templates, examples, choices, tokens, and about how long it takes."""
    from rich.table import Table

    from flipped_cli import tables
    from flipped_eval.planning import Size

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
