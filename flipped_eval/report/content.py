"""What the report says, before it is laid out: rows of all runs side by side, tables, notes.

A *method* is a column of the report: the label of a run. Runs with the same label (training seeds) are
one method: their values are averaged, and so are the ends of their intervals; `runs`, `run_min` and
`run_max` say how far they lie apart.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from flipped_core import hub
from flipped_core.errors import UserError, unknown
from flipped_core.files import Json
from flipped_core.paths import explain, has_scheme, is_bucket, to_path
from flipped_core.sealed import parse_json, read_json_file
from flipped_eval import metrics, recipes, run_files, significance
from flipped_eval import results as stored
from flipped_eval.aggregates import SUBSTITUTES
from mixtures.suites import CHOSEN, ORIGINAL

log = logging.getLogger(__name__)

TRAINING_LOG = "metrics.jsonl"
PUBLISHED = pathlib.Path(__file__).with_name("published.json")  # figures with their sources
UNSEEN, LABELS, SEEN = "nlp14", "labels", "seen"
UNSEEN_TASKS = 14
TITLES = {
    UNSEEN: "Unseen tasks",
    "bigbench14": "BIG-bench",
    SEEN: "Seen tasks",
    LABELS: "Label generalization",
    CHOSEN: "Chosen datasets",
}
METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1"}
_ORDER = (
    "untrained",
    "pretrained",
    "warm-up",
    "warmup",
    "direct",
    "channel",
    "flipped",
    "flipped_no_ul",
)
_AVERAGED = (
    "value", "low", "high", "templates_low", "templates_high", "median", "min", "max", "std", "chance", "majority",
    "drop", "drop_low", "drop_high",
)  # fmt: skip

Key = tuple[str, str, str | None, str | None, str, str]


@dataclass(frozen=True)
class Report:
    """All that the three forms of the report are made of.

    Attributes:
      methods: the columns, in order.
      results: the rows of `report.json`.
      runs: the request of each run, as it was made.
      training: name of a training run -> what it logged, and the labels of its evaluations.
      checkpoints: label -> where the weights were read, and what `records.CheckpointInfo` says of them.
      compare: the two methods whose difference is asked for; None compares each with the first run.
      counts: for each run, task and template: rows, scored, dropped, cut, which choice was taken for which.
      shown: one example as text for each (method, task).
      worst: examples in which a wrong choice led by most, as text with their scores.
      comparisons: the methods in pairs: difference, interval, p-values.
      not_run: templates and tasks that could not be run, with the reason.
      made_up: the labels of the runs whose data is the embedded world.
    """

    methods: tuple[str, ...]
    results: list[Json]
    runs: list[Json]
    training: dict[str, Json]
    counts: list[Json]
    shown: list[Json]
    worst: list[Json]
    comparisons: list[Json]
    not_run: list[Json]
    bootstrap: list[Json]
    made_up: tuple[str, ...]
    published: Json
    title: str
    extra: Json
    checkpoints: dict[str, Json] = field(default_factory=dict)
    compare: tuple[str, str] | None = None
    index: dict[Key, Json] = field(repr=False, default_factory=dict)

    def row(
        self, method: str, suite: str, task: str | None, metric: str, *,
        template: str | None = None, label_set: str = ORIGINAL,
    ) -> Json | None:  # fmt: skip
        """The row with these names, or None where the run did not measure it."""
        return self.index.get((method, suite, task, template, label_set, metric))

    def tasks(self, suite: str) -> list[str]:
        """The tasks of a suite, in the order of the suite."""
        return list(
            dict.fromkeys(
                row["task"] for row in self.results if row["suite"] == suite and row["task"]
            )
        )

    @property
    def first(self) -> str:
        """The label of the first run, with which the others are compared."""
        return str(self.runs[0]["label"])

    def suites(self) -> list[str]:
        """The suites that were measured: those with a section of their own first."""
        found = dict.fromkeys(row["suite"] for row in self.results)
        return [name for name in TITLES if name in found] + [
            name for name in found if name not in TITLES
        ]

    def summary(self) -> str:
        """The mean of each suite for each method and its 95% interval, as lines for a terminal."""
        columns = [
            (suite, *(("macro_f1", SUBSTITUTES) if suite == LABELS else ("accuracy", ORIGINAL)))
            for suite in self.suites()
        ]
        lines = [["mean, %", *(f"{TITLES.get(s, s)}, {METRIC_NAMES[m]}" for s, m, _ in columns)]]
        chances: list[str] = []
        for suite, metric, label_set in columns:
            rows = [
                self.row(method, suite, None, metric, label_set=label_set)
                for method in self.methods
            ]
            chances.append(percent(next((row["chance"] for row in rows if row), None)))
        lines.append(["chance", *chances])
        for method in self.methods:
            cells = []
            for suite, metric, label_set in columns:
                row = self.row(method, suite, None, metric, label_set=label_set)
                text = percent(row["value"] if row else None)
                if row and row["low"] is not None:
                    text += f" ({percent(row['low'])} to {percent(row['high'])})"
                cells.append(text)
            lines.append([method, *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
            for line in lines
        ]
        return "\n".join(line.rstrip() for line in padded)

    def to_json(self) -> Json:
        """The content of `report.json`."""
        return {
            "format": run_files.FORMAT,
            "methods": list(self.methods),
            "made_up_data": bool(self.made_up),
            "results": self.results,
            "configuration": {
                "runs": self.runs,
                "training": {name: run["config"] for name, run in self.training.items()},
                "bootstrap": self.bootstrap,
                "extra": self.extra,
            },
            "checkpoints": self.checkpoints,
            "training": {name: run["records"] for name, run in self.training.items()},
            "counts": self.counts,
            "comparisons": self.comparisons,
            "not_run": self.not_run,
            "worst": self.worst,
            "published": self.published,
        }


def collect(
    results: Iterable[str | os.PathLike[str] | Mapping[str, Any]],
    training_runs: Mapping[str, str | os.PathLike[str]] | None = None,
    title: str = "Results",
    extra: Mapping[str, Any] | None = None,
    compare: tuple[str, str] | None = None,
) -> Report:
    """Reads the results of runs, and the logs of their training.

    Args:
      results: folders with `results.json`, or what `jobs.evaluate` returned.
      training_runs: name -> the folder of that training, with `metrics.jsonl`.
      title: the report's heading.
      extra: further facts for the configuration.
      compare: two labels: the difference that is shown is the second minus the first; None shows that of each
        run and the first one.

    Raises:
      UserError: nothing to report, a file that cannot be read, or a label that no run has.
    """
    sources = [
        source if isinstance(source, Mapping) else to_path(source, "results") for source in results
    ]
    found = [stored.results_of(source) for source in sources]
    if not found:
        raise UserError("results: expected at least one folder with results.json, got none")
    run_files.refuse_versions((count for one in found for count in one["counts"]), "results")
    folders = [source for source in sources if isinstance(source, epath.Path)]
    labels = [run["label"] for one in found for run in one["runs"]]
    distinct = list(dict.fromkeys(labels))
    methods = tuple(sorted(distinct, key=lambda name: (_place(name), distinct.index(name))))
    rows = _combined(found, methods)
    examples = [stored.examples_of(folder, distinct) for folder in folders]
    for label in compare or ():
        if label not in distinct:
            raise unknown("run to compare", label, distinct)
    return Report(
        methods=methods,
        results=rows,
        runs=[run | one["request"] for one in found for run in one["runs"]],
        training=_trainings(folders, training_runs or {}),
        counts=_by_suite(count for one in found for count in one["counts"]),
        shown=_by_suite(example for one in examples for example in one["shown"]),
        worst=_by_suite(example for one in examples for example in one["worst"]),
        comparisons=_by_suite(_comparisons(found, folders, labels, compare)),
        not_run=_by_suite(line for one in found for line in one["not_run"]),
        bootstrap=_distinct(one["bootstrap"] for one in found),
        made_up=tuple(
            dict.fromkeys(
                run["label"]
                for one in found
                for run in one["runs"]
                if one["request"]["data"] == "embedded"
            )
        ),
        published=json.loads(PUBLISHED.read_text(encoding="utf-8")),
        title=title,
        extra=dict(extra or {}),
        checkpoints=_checkpoints(folders),
        compare=compare,
        index={_key(row): row for row in rows},
    )


def _checkpoints(folders: Iterable[epath.Path]) -> dict[str, Json]:
    """label -> "checkpoint" (a name without the folders of this machine), and what is known of it."""
    found: dict[str, Json] = {}
    for folder in folders:
        known = run_files.provenance_of(folder)
        for label, place in run_files.checkpoints_of(folder).items():
            name = place if has_scheme(place) else "/".join(pathlib.PurePath(place).parts[-2:])
            found[label] = {"checkpoint": name} | known.get(label, {})
    return found


def _trainings(
    folders: Iterable[epath.Path], given: Mapping[str, str | os.PathLike[str]]
) -> dict[str, Json]:
    """Name -> the log of a training run, with the labels of its evaluations.

    Found are the runs of the checkpoints, where they are ours and still there; damaged ones are left out. Several
    evaluations of one run share its curve.
    """
    labels: dict[str, list[str]] = {}
    for folder in folders:
        for label, place in run_files.checkpoints_of(folder).items():
            if has_scheme(place) and not is_bucket(place):
                continue  # a hub's, which has no log
            path = to_path(place)
            run = recipes.run_folder_of(path) or path
            if (run / TRAINING_LOG).is_file():
                labels.setdefault(os.fspath(run), []).append(label)
    names = {os.fspath(to_path(path)): name for name, path in given.items()}
    unnamed = [place for place in labels if place not in names]
    short_names = [hub.name_of(place) for place in unnamed]
    for place, name in zip(unnamed, short_names, strict=True):
        taken = short_names.count(name) > 1 or name in given
        names[place] = "/".join(pathlib.PurePath(place).parts[-2:]) if taken else name
    found: dict[str, Json] = {}
    for place, name in names.items():
        try:
            found[name] = read_training(place) | {"labels": labels.get(place, [])}
        except UserError as error:
            if name in given:
                raise
            log.warning("the report is without the training of %s: %s", name, error)
    return found


def _by_suite(lines: Iterable[Json]) -> list[Json]:
    """The lines in the order in which the page has the suites."""
    places = {suite: place for place, suite in enumerate(TITLES)}
    return sorted(lines, key=lambda line: places.get(line["suite"], len(places)))


def _comparisons(
    found: Sequence[Json],
    folders: Sequence[epath.Path],
    labels: Sequence[str],
    compare: tuple[str, str] | None,
) -> list[Json]:
    """The methods in pairs, each with the earlier run first; runs of one name (seeds) are not paired with anything."""
    for label in compare or ():
        if labels.count(label) > 1:
            raise UserError(f"--compare: {label!r} is the name of {labels.count(label)} runs")
    if len(found) == 1:
        comparisons = list(found[0]["comparisons"])
        there = {(one["first"], one["second"]) for one in comparisons}
        if compare is None or compare in there:
            return comparisons
    once = [label for label in dict.fromkeys(labels) if labels.count(label) == 1]
    units: dict[str, list[metrics.Unit]] = {label: [] for label in once}
    for folder in folders:
        for line in stored.predictions_of(folder):
            if line.method in units and line.examples:
                units[line.method].append(line.to_unit())
    seed, resamples = found[0]["request"]["seed"], found[0]["bootstrap"]["resamples"]
    comparisons = significance.compare_all(units, seed, resamples)
    if compare is not None and all(compare != (one["first"], one["second"]) for one in comparisons):
        first, second = compare
        comparisons += [
            {"first": first, "second": second} | row
            for row in significance.compare(units[first], units[second], seed, resamples)
        ]
    return comparisons


def read_training(folder: str | os.PathLike[str]) -> Json:
    """The log of one training: `{"records": [one object for each line of metrics.jsonl]}`, and its config.

    Raises:
      UserError: there is no `metrics.jsonl`, or a line of it is no record of a step (a last one that a kill has cut off
        or damaged is left out); or a file of its config is damaged.
    """
    path = to_path(folder) / TRAINING_LOG
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise UserError(f"training run {folder}: cannot read {path}: {explain(error)}") from error
    by_step: dict[int, Json] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = _training_record(line)
        except ValueError as error:
            if number == len(lines):
                continue
            raise UserError(f"{path}, line {number}: expected a JSON object: {error}") from error
        by_step[record["step"]] = record
    config = {
        name: read_json_file(file)
        for name in ("run.json", "train_config.json", "model_config.json")
        if (file := to_path(folder) / name).is_file()
    }
    return {"records": [by_step[step] for step in sorted(by_step)], "config": config}


def _training_record(line: bytes) -> Json:
    """A line of `metrics.jsonl`; `ValueError` where it is none."""
    record = parse_json(line, nan_is_null=True)
    if not isinstance(record, dict):
        raise ValueError(f"got {type(record).__name__}")
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise ValueError(f"expected a number as its step, got {step!r}")
    return record


def notes(report: Report) -> list[str]:
    """What a reader must know to read the numbers right."""
    found = []
    for bootstrap in report.bootstrap:
        found.append(
            f"Intervals are {100 * bootstrap['confidence']:.0f}% percentile bootstrap intervals over examples "
            f"({bootstrap['resamples']} resamples). An example is drawn in all templates and label sets of its "
            "task at once; tasks are drawn independently. The intervals over templates draw the templates of each "
            "task anew instead. Neither says anything of other tasks or seeds."
        )
    if any(row.get("runs", 1) > 1 for row in report.results):
        found.append(
            "Several runs have the same name (training seeds): values and ends of intervals are their means; "
            "the range over runs is given beside them."
        )
    found += [
        "A choice is predicted when its score is highest; of equal scores the first choice wins, and such ties "
        "are counted. Rows with one choice only are left out.",
        "Chance is what guessing uniformly among the choices gives, and an example with several right choices counts "
        "with all of them; for macro F1 it is the F1 of the expected counts.",
        "A task's value is the mean over its templates; a suite's is the mean over its tasks.",
        "On paper, what is folded is left out: unfold it before printing.",
    ]
    configurations = defaultdict(set)
    for run in report.runs:
        for name in (
            "data",
            "templates",
            "max_examples_per_task",
            "seed",
            "lengths",
            "tokenizer",
            "splits",
        ):
            configurations[name].add(json.dumps(run.get(name), sort_keys=True))
    differing = sorted(name for name, values in configurations.items() if len(values) > 1)
    if differing:
        found.append(
            f"The runs differ in {', '.join(differing)} (see the configuration): compare their numbers with care."
        )
    return found


def short(task: str) -> str:
    """A task's name without the collection or the configuration: glue/qqp -> qqp, paws/labeled_final -> paws."""
    head, _, tail = task.partition("/")
    return tail if head in ("glue", "super_glue") and tail else head


def percent(value: float | None) -> str:
    """0.61803 -> "61.8"; None -> "–"."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def counted(number: int, what: str) -> str:
    """(1, "task") -> "1 task"; (2000, "task") -> "2,000 tasks"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def label_sets(report: Report, task: str) -> list[str]:
    """The substituted label sets of a task of the label suite."""
    return list(
        dict.fromkeys(
            row["label_set"]
            for row in report.results
            if row["suite"] == LABELS and row["task"] == task and row["template"]
            if row["label_set"] not in (ORIGINAL, SUBSTITUTES)
        )
    )


def _combined(found: Sequence[Json], methods: Sequence[str]) -> list[Json]:
    """The rows of all runs, methods in order; rows of runs with the same label are made one."""
    groups: dict[Key, list[Json]] = defaultdict(list)
    for one in found:
        for row in one["results"]:
            groups[_key(row)].append(row)
    combined = []
    for rows in groups.values():
        row = dict(rows[0])
        if len(rows) > 1:
            for name in _AVERAGED:
                numbers = [other[name] for other in rows if other.get(name) is not None]
                if name in row:
                    whole = len(numbers) == len(rows)
                    row[name] = round(sum(numbers) / len(numbers), 6) if whole else None
            values = [float(other["value"]) for other in rows]
            row |= {"runs": len(rows), "run_min": min(values), "run_max": max(values)}
            if "ties" in row:
                row["ties"] = sum(other["ties"] for other in rows)
        combined.append(row)
    return sorted(combined, key=lambda row: methods.index(row["method"]))


def _key(row: Json) -> Key:
    return (
        row["method"],
        row["suite"],
        row["task"],
        row["template"],
        row["label_set"],
        row["metric"],
    )


def _place(label: str) -> int:
    """Where a method stands among the columns: before training first, ablations last."""
    if label in _ORDER:
        return _ORDER.index(label)
    starts = [index for index, name in enumerate(_ORDER) if label.startswith(name)]
    return max(starts, default=len(_ORDER))


def _distinct(values: Iterable[Json]) -> list[Json]:
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())
