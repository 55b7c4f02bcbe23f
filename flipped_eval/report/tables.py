"""The tables of the report: tasks × methods, templates × methods, label sets × methods, counts.

A cell is made once, here, so that the HTML and the Markdown say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats

from flipped_core.files import Json
from flipped_eval.aggregates import SUBSTITUTES
from flipped_eval.report.content import (
    LABELS,
    METRIC_NAMES,
    TITLES,
    Report,
    counted,
    label_sets,
    percent,
    short,
)
from mixtures.suites import ORIGINAL

EXAMPLES_BY_DATASET = "examples_by_dataset"  # in a line of metrics.jsonl
# Labels of runs that were not trained on the tasks begin with one of these.
STARTS = ("untrained", "pretrained")


@dataclass(frozen=True)
class Cell:
    """One number as it is shown.

    Attributes:
      text: the number, in percent, or "–" where it was not measured.
      detail: its interval.
      spread: how it varies over templates, label sets or runs; may be empty.
      sort: what its column is sorted by.
      best: it is the highest of its row, another method was measured, and it is above chance.
      above: its interval lies above chance.
    """

    text: str
    detail: str = ""
    spread: str = ""
    sort: float = -1.0
    best: bool = False
    above: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table: a name, what chance gives, a cell for each method."""

    name: str
    chance: Cell
    cells: tuple[Cell, ...]
    note: str = ""
    total: bool = False
    lines: tuple[Line, ...] = ()


def cell(row: Json | None, best: float | None = None) -> Cell:
    """The cell of a row of results; None, a dash."""
    if row is None:
        return Cell("–")
    low, high = row["low"], row["high"]
    detail = f"{percent(low)} to {percent(high)}" if low is not None else f"n {row['n']}"
    above = above_chance(row)
    return Cell(
        text=percent(row["value"]),
        detail=detail,
        spread=_spread(row),
        sort=row["value"],
        best=above and best is not None and row["value"] >= best,
        above=above,
    )


def above_chance(row: Json) -> bool:
    """Whether the interval of a row of results lies above chance; False without an interval."""
    return row["low"] is not None and row["low"] > row["chance"]


def line(name: str, rows: Sequence[Json | None], note: str = "", total: bool = False) -> Line:
    """A line of one row of results for each method."""
    measured = [row for row in rows if row is not None]
    values = [row["value"] for row in measured]
    best = max(values) if len(values) > 1 and max(values) > min(values) else None
    chance = measured[0]["chance"] if measured else None
    return Line(
        name=name,
        chance=Cell(percent(chance), sort=-1.0 if chance is None else chance),
        cells=tuple(cell(row, best) for row in rows),
        note=note,
        total=total,
    )


def tasks_table(report: Report, suite: str, metric: str = "accuracy") -> list[Line]:
    """The mean over the suite, then each task; a task's `lines` are its templates."""

    def rows(task: str | None, template: str | None = None) -> list[Json | None]:
        return [
            report.row(method, suite, task, metric, template=template) for method in report.methods
        ]

    tasks = report.tasks(suite)
    lines = [line(f"mean over {counted(len(tasks), 'task')}", rows(None), total=True)]
    for task in tasks:
        templates = sorted(
            {
                row["template"]
                for row in report.results
                if row["suite"] == suite and row["task"] == task
            }
            - {None}
        )
        measured = next((row for row in rows(task) if row), None)
        note = (
            f"{examples_of(report, suite, task, measured['n'])}, {counted(len(templates), 'template')}"
            if measured
            else ""
        )
        of_task = line(short(task), rows(task), note)
        inner = tuple(line(template, rows(task, template)) for template in templates)
        lines.append(Line(of_task.name, of_task.chance, of_task.cells, of_task.note, False, inner))
    return lines


def examples_of(report: Report, suite: str, task: str | None, scored: int) -> str:
    """ "50 of 277 examples" of a task's splits, or of all of a suite's; "277 examples" where all were scored."""
    splits = {
        (count["dataset"], count["split"]): count["split_rows"]
        for count in report.counts
        if count["suite"] == suite and task in (None, count["task"]) and "split_rows" in count
    }
    rows = sum(splits.values())
    return (
        f"{scored:,} of {counted(rows, 'example')}" if rows > scored else counted(scored, "example")
    )


def labels_table(report: Report, metric: str = "macro_f1") -> list[Line]:
    """The two means, then for each task the original words, the mean of its substitutes, and each of them."""

    def rows(task: str | None, label_set: str) -> list[Json | None]:
        return [
            report.row(method, LABELS, task, metric, label_set=label_set)
            for method in report.methods
        ]

    lines = [
        line("all tasks, original words", rows(None, ORIGINAL), total=True),
        line("all tasks, mean over all pairs", rows(None, SUBSTITUTES), total=True),
    ]
    for task in report.tasks(LABELS):
        name = short(task)
        inner = tuple(line(one, rows(task, one)) for one in label_sets(report, task))
        mean = line(f"{name}, mean over {len(inner)} pairs", rows(task, SUBSTITUTES))
        lines.append(line(f"{name}, original words", rows(task, ORIGINAL)))
        lines.append(Line(mean.name, mean.chance, mean.cells, mean.note, False, inner))
    return lines


COUNTED = (
    "rows",
    "scored",
    "inputs_cut",
    "targets_cut",
    "ties",
    "several_correct",
    "duplicate_choices",
    "same_ids",
)


def counts_table(report: Report) -> list[Json]:
    """For each suite, task and method: rows, scored, dropped by reason, cut, ties; summed over templates."""
    summed: dict[tuple[str, str, str], Json] = {}
    for count in report.counts:
        key = (count["suite"], count["task"], count["method"])
        line = summed.setdefault(
            key,
            {
                "suite": key[0],
                "task": key[1],
                "method": key[2],
                "split": count["split"],
                "units": 0,
                "dropped": {},
            }
            | dict.fromkeys(COUNTED, 0),
        )
        line["units"] += 1
        for name in COUNTED:
            line[name] += count[name]
        for reason, number in count["dropped"].items():
            line["dropped"][reason] = line["dropped"].get(reason, 0) + number
    return list(summed.values())


def training_examples(report: Report) -> dict[str, list[tuple[str, int, float]]]:
    """Training run -> (dataset, examples that it was trained on, their share), the most frequent first."""
    found = {}
    for name, run in report.training.items():
        counts: dict[str, int] = {}
        for record in run["records"]:
            by_dataset = record.get(EXAMPLES_BY_DATASET)
            for dataset, number in by_dataset.items() if isinstance(by_dataset, dict) else ():
                if isinstance(number, int):
                    counts[dataset] = counts.get(dataset, 0) + number
        total = sum(counts.values())
        if total:
            ordered = sorted(counts, key=lambda dataset: (-counts[dataset], dataset))
            found[name] = [(one, counts[one], counts[one] / total) for one in ordered]
    return found


def spread_table(report: Report, suite: str, metric: str = "accuracy") -> list[Json]:
    """For each task and method, how the metric varies over the templates."""
    found = []
    for task in report.tasks(suite):
        for method in report.methods:
            row = report.row(method, suite, task, metric)
            if row and row.get("templates", 1) > 1:
                found.append({"short": short(task)} | row)
    return found


def _spread(row: Json) -> str:
    parts = []
    if row.get("runs", 1) > 1:
        parts.append(f"{row['runs']} runs {_range(row['run_min'], row['run_max'])}")
    if row.get("templates", 1) > 1:
        parts.append(f"templates {_range(row['min'], row['max'])}")
    elif row.get("label_sets", 1) > 1:
        parts.append(f"pairs {_range(row['min'], row['max'])}")
    return ", ".join(parts)


def _range(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"


def suites_table(report: Report) -> list[Line]:
    """One line for each suite; for label generalization one with the original words and one with all others."""
    lines = []
    for suite in report.suites():
        for metric, label_set in headline_figures(suite):
            rows = [
                report.row(method, suite, None, metric, label_set=label_set)
                for method in report.methods
            ]
            measured = next((row for row in rows if row), None)
            if measured is None:
                continue
            name = f"{TITLES.get(suite, suite)}, {METRIC_NAMES[metric]}"
            if suite == LABELS:
                name += ", original words" if label_set == ORIGINAL else ", all other words"
            missing = sorted({task for row in rows if row for task in row.get("tasks_missing", ())})
            scored = examples_of(report, suite, None, measured["n"])
            note = f"{counted(measured['tasks'], 'task')}, {scored}"
            if missing:
                note += f"; without {', '.join(map(short, missing))}"
            lines.append(line(name, rows, note))
    return lines


def headline_figures(suite: str) -> list[tuple[str, str]]:
    """(metric, label set) of the figures that stand for a suite."""
    if suite == LABELS:
        return [("macro_f1", ORIGINAL), ("macro_f1", SUBSTITUTES)]
    return [("accuracy", ORIGINAL)]


def drops_table(report: Report, metric: str = "macro_f1") -> list[Line]:
    """What is lost with other label words, in points: over all pairs, then for each task and label set."""

    def drops(task: str | None, label_set: str) -> list[Json | None]:
        rows = [
            report.row(method, LABELS, task, metric, label_set=label_set)
            for method in report.methods
        ]
        return [row if row and "drop" in row else None for row in rows]

    def of(name: str, task: str | None, label_set: str, total: bool = False) -> Line:
        rows = drops(task, label_set)
        originals = [
            report.row(method, LABELS, task, metric, label_set=ORIGINAL)
            for method in report.methods
        ]
        values = [row["drop"] for row in rows if row]
        least = min(values) if len(values) > 1 and max(values) > min(values) else None
        cells = tuple(
            _drop_cell(row, least if before and above_chance(before) else None)
            for row, before in zip(rows, originals, strict=True)
        )
        return Line(name, Cell(""), cells, total=total)

    lines = [of("all pairs", None, SUBSTITUTES, total=True)]
    for task in report.tasks(LABELS):
        inner = tuple(of(one, task, one) for one in label_sets(report, task))
        mean = of(f"{short(task)}, {len(inner)} pairs", task, SUBSTITUTES)
        lines.append(Line(mean.name, mean.chance, mean.cells, lines=inner))
    return lines if any(cell.text != "–" for cell in lines[0].cells) else []


def _drop_cell(row: Json | None, least: float | None) -> Cell:
    """A drop; `best` is the smallest of its row, `above` one whose interval lies above 0.

    Args:
      least: the smallest drop of the row; None where the method has nothing to lose, being at chance before.
    """
    if row is None:
        return Cell("–")
    low, high = row["drop_low"], row["drop_high"]
    detail = "" if low is None else f"{points(low)} to {points(high)}"
    return Cell(
        text=points(row["drop"]),
        detail=detail,
        sort=row["drop"],
        best=least is not None and row["drop"] <= least,
        above=low is not None and low > 0,
    )


def points(value: float) -> str:
    """A difference in percentage points, with its sign: 0.0123 -> "+1.2", -0.05 -> "−5.0"."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


@dataclass(frozen=True)
class Difference:
    """Two methods on the same examples: second minus first.

    Attributes:
      first, second: the methods.
      what: suite and metric, or the task.
      difference, interval: in points.
      p: the permutation test's; `adjusted` is corrected for the number of rows of its table (of tasks, theirs).
      p_value: p as a number.
      sure: the interval leaves 0 out.
      sort: the difference.
      lines: the tasks.
    """

    first: str
    second: str
    what: str
    difference: str
    interval: str
    p: str
    adjusted: str
    sure: bool
    sort: float
    n: int
    p_value: float = 1.0
    lines: tuple[Difference, ...] = ()


def differences_table(report: Report) -> list[Difference]:
    """The methods in pairs, suite by suite, each with its tasks."""
    tasks: dict[tuple[str, ...], list[Difference]] = {}
    found: list[tuple[Json, str]] = []
    for row in report.comparisons:
        key = tuple(row[name] for name in ("first", "second", "suite", "metric", "label_set"))
        if row["template"] or (row["metric"], row["label_set"]) not in headline_figures(
            row["suite"]
        ):
            continue
        if row["task"]:
            tasks.setdefault(key, []).append(_difference(row, short(row["task"])))
        else:
            what = f"{TITLES.get(row['suite'], row['suite'])}, {METRIC_NAMES[row['metric']]}"
            if row["suite"] == LABELS:
                what += ", original words" if row["label_set"] == ORIGINAL else ", all other words"
            found.append((row, what))
    lines = []
    for row, what in found:
        key = tuple(row[name] for name in ("first", "second", "suite", "metric", "label_set"))
        lines.append(replace(_difference(row, what), lines=tuple(tasks.get(key, ()))))
    return lines


def main_differences(report: Report) -> list[Difference]:
    """The pair that was asked for, or each run against the first one; with p corrected for the number of rows."""
    return _corrected([one for one in differences_table(report) if _is_main(report, one)])


def other_differences(report: Report) -> list[Difference]:
    """The pairs that `main_differences` leaves out."""
    return _corrected([one for one in differences_table(report) if not _is_main(report, one)])


def _is_main(report: Report, one: Difference) -> bool:
    if report.compare is not None:
        return (one.first, one.second) == report.compare
    return report.first in (one.first, one.second)


def _corrected(differences: list[Difference]) -> list[Difference]:
    """With p corrected for there being several rows (Benjamini and Hochberg 1995)."""
    if not differences:
        return []
    adjusted = scipy.stats.false_discovery_control([one.p_value for one in differences])
    return [
        replace(one, adjusted=_p(float(p))) for one, p in zip(differences, adjusted, strict=True)
    ]


def _difference(row: Json, what: str) -> Difference:
    low, high = row["low"], row["high"]
    return Difference(
        first=row["first"],
        second=row["second"],
        what=what,
        difference=points(row["difference"]),
        interval="–" if low is None else f"{points(low)} to {points(high)}",
        p=_p(row["p"]),
        adjusted=_p(row["p_adjusted"]) if "p_adjusted" in row else "",
        sure=low is not None and (low > 0 or high < 0),
        sort=row["difference"],
        n=row["n"],
        p_value=row["p"],
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class Confusion:
    """Which choice was taken for which, in one task by one method, summed over its templates.

    Attributes:
      method: which.
      rows: for each right choice, (count, share of the row in percent) of each predicted choice.
    """

    method: str
    rows: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True)
class Confusions:
    """The matrices of one task: for each set of choices (words, or "choice 1", …) one for each method."""

    suite: str
    task: str
    matrices: dict[tuple[str, ...], list[Confusion]]


def confusions(report: Report) -> list[Confusions]:
    """Of each task with its original words; templates with the same choices are added up."""
    summed: dict[tuple[str, str], dict[tuple[str, ...], dict[str, np.ndarray]]] = {}
    for count in report.counts:
        if "confusion" not in count or count["label_set"] != ORIGINAL:
            continue
        matrix = np.array(count["confusion"]["matrix"])
        numbered = [f"choice {n}" for n in range(1, len(matrix) + 1)]
        classes = tuple(count["confusion"]["words"] or numbered)
        here = summed.setdefault((count["suite"], count["task"]), {}).setdefault(classes, {})
        method = count["method"]
        here[method] = here[method] + matrix if method in here else matrix
    return [
        Confusions(
            suite,
            task,
            {
                classes: [
                    _confusion(method, here[method]) for method in report.methods if method in here
                ]
                for classes, here in by_classes.items()
            },
        )
        for (suite, task), by_classes in summed.items()
    ]


def _confusion(method: str, matrix: np.ndarray) -> Confusion:
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return Confusion(
        method,
        tuple(
            tuple(zip(map(int, numbers), map(float, row), strict=True))
            for numbers, row in zip(matrix, shares, strict=True)
        ),
    )


def not_run_table(report: Report) -> list[Json]:
    """What could not be run, one line for each task and reason: methods, number of templates, whether all of it."""
    found: dict[tuple[str, str, str, bool], Json] = {}
    for one in report.not_run:
        key = (one["suite"], one["task"], one["why"], one["whole_task"])
        line = found.setdefault(key, dict(zip(("suite", "task", "why", "whole"), key, strict=True)))
        line.setdefault("methods", {})[one["method"]] = None
        line.setdefault("templates", {})[one["template"]] = None
    return list(found.values())
