"""The table of a study: mean and spread over seeds of the demo's headline figures."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# What a line of the table shows -> the row of the report that holds it.
SUITES: dict[str, Row] = {
    "seen tasks, accuracy": {"suite": "seen", "metric": "accuracy", "label_set": "original"},
    "14 unseen tasks, accuracy": {"suite": "nlp14", "metric": "accuracy", "label_set": "original"},
    "labels renamed, macro F1 over all pairs": {
        "suite": "labels",
        "metric": "macro_f1",
        "label_set": "all substitutes",
    },
    "labels as they are, macro F1": {
        "suite": "labels",
        "metric": "macro_f1",
        "label_set": "original",
    },
}


def render(reports: Sequence[pathlib.Path]) -> str:
    """Markdown with one column a method and one line a figure: mean ± sample standard deviation over the reports.

    Args:
      reports: `report.json` of each seed.
    """
    runs = [json.loads(path.read_text(encoding="utf-8"))["results"] for path in reports]
    methods = list(dict.fromkeys(row["method"] for row in runs[0]))
    lines = [
        f"Mean ± standard deviation over {len(runs)} seeds, in percent.",
        "",
        "| | chance | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for name, wanted in _figures(runs[0]):
        cells = [_cell([_find(run, method, wanted) for run in runs]) for method in methods]
        chance = next((row["chance"] for row in runs[0] if _matches(row, wanted)), None)
        told = "–" if chance is None else f"{100 * chance:.1f}"
        lines.append(f"| {name} | {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figures(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The suites' means, then each task's mean over its templates."""
    figures = [
        (name, {**wanted, "task": None, "template": None}) for name, wanted in SUITES.items()
    ]
    for name, wanted in SUITES.items():
        tasks = dict.fromkeys(
            row["task"] for row in rows if row["suite"] == wanted["suite"] and row["task"]
        )
        figures += [
            (f"{name}: {task}", {**wanted, "task": task, "template": None}) for task in tasks
        ]
    return figures


def _matches(row: Row, wanted: Row) -> bool:
    return all(row.get(key) == value for key, value in wanted.items())


def _find(rows: Sequence[Row], method: str, wanted: Row) -> float | None:
    return next(
        (row["value"] for row in rows if row["method"] == method and _matches(row, wanted)), None
    )


def _cell(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"
