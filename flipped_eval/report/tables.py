"""The tables of the report: tasks × methods, templates × methods, label sets × methods, counts.

A cell is made once, here, so that the HTML and the Markdown say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flipped_eval.report.content import LABELS, Report, label_sets, percent, short
from flipped_eval.results import ORIGINAL, SUBSTITUTES, Json


@dataclass(frozen=True)
class Cell:
    """One number as it is shown.

    Attributes:
      text: the number, in percent, or "–" where it was not measured.
      detail: its interval.
      spread: how it varies over templates, label sets or runs; may be empty.
      sort: what its column is sorted by.
      best: it is the highest of its row (and another method was measured).
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
    return Cell(
        text=percent(row["value"]),
        detail=detail,
        spread=_spread(row),
        sort=row["value"],
        best=best is not None and row["value"] >= best,
        above=low is not None and low > row["chance"],
    )


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
    lines = [line(f"mean over {len(tasks)} tasks", rows(None), total=True)]
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
        note = f"{measured['n']} examples, {len(templates)} templates" if measured else ""
        of_task = line(short(task), rows(task), note)
        inner = tuple(line(template, rows(task, template)) for template in templates)
        lines.append(Line(of_task.name, of_task.chance, of_task.cells, of_task.note, False, inner))
    return lines


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
            | dict.fromkeys(("rows", "scored", "inputs_cut", "targets_cut", "ties"), 0),
        )
        line["units"] += 1
        for name in ("rows", "scored", "inputs_cut", "targets_cut", "ties"):
            line[name] += count[name]
        for reason, number in count["dropped"].items():
            line["dropped"][reason] = line["dropped"].get(reason, 0) + number
    return list(summed.values())


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
