"""`report.md`: the same tables as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from flipped_eval.report import tables
from flipped_eval.report.content import LABELS, TITLES, Report, notes
from flipped_eval.report.tables import Cell, Line


def render(report: Report) -> str:
    """The report as Markdown. Names from outside are escaped, so that they cannot become markup."""
    parts = [f"# {_text(report.title)}"]
    if report.made_up:
        parts.append(
            "> **Made-up data.** These numbers come from the small invented world that ships with this project, not "
            "from the real datasets. They must not be compared with published figures."
        )
    for suite in report.suites():
        parts.append(f"## {_text(TITLES.get(suite, suite))}")
        if suite == LABELS:
            parts.append(
                "Macro F1, percent, with other words for the same labels. Read the mean over all pairs. "
                "In brackets the 95% interval."
            )
            lines = tables.labels_table(report)
            parts.append(
                _grid(
                    report,
                    [each for line in lines for each in (line, *line.lines)],
                    "task and words",
                )
            )
        else:
            parts.append("Accuracy, percent, mean over templates; in brackets the 95% interval.")
            parts.append(_grid(report, tables.tasks_table(report, suite), "task"))
    parts.append("## Published figures, not measured here")
    figures = [
        [figure["what"], figure["suite"], figure["value"]] for figure in report.published["figures"]
    ]
    parts.append(_table(["comparison", "on", "difference"], figures))
    parts.append(f"Source: {_text(report.published['source'])}.")
    parts.append("## What was counted")
    counted = [
        [
            count["suite"],
            count["task"],
            count["method"],
            *(str(count[name]) for name in ("rows", "scored", "ties", "inputs_cut", "targets_cut")),
            ", ".join(f"{reason} {number}" for reason, number in sorted(count["dropped"].items()))
            or "–",
        ]
        for count in tables.counts_table(report)
    ]
    parts.append(
        _table(
            [
                "suite",
                "task",
                "method",
                "rows",
                "scored",
                "ties",
                "inputs cut",
                "targets cut",
                "dropped",
            ],
            counted,
        )
    )
    parts.append("## Configuration")
    configuration = json.dumps(
        report.to_json()["configuration"], indent=1, ensure_ascii=False, sort_keys=True
    )
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", configuration)), default=0))
    parts.append(f"{fence}json\n{configuration}\n{fence}")
    parts.append("## How to read these numbers")
    parts.append("\n".join(f"- {_text(note)}" for note in notes(report)))
    return "\n\n".join(parts) + "\n"


def _grid(report: Report, lines: Sequence[Line], first: str) -> str:
    rows = [[line.name, line.chance.text, *map(_cell, line.cells)] for line in lines]
    return _table([first, "chance", *report.methods], rows)


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _text(text: str) -> str:
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_|\[\]<>&#])", r"\\\1", flat)
