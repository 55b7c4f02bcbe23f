"""`report.md`: the same tables as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from flipped_core.markdown import escape
from flipped_eval.report import tables
from flipped_eval.report.answer import answer
from flipped_eval.report.content import LABELS, TITLES, Report, notes, short
from flipped_eval.report.provenance import HEADINGS, provenance
from flipped_eval.report.published import published
from flipped_eval.report.tables import Cell, Difference, Line


def render(report: Report) -> str:
    """The report as Markdown. Names from outside are escaped, so that they cannot become markup."""
    parts = [f"# {escape(report.title)}"]
    parts.append(_table(HEADINGS, [one.cells() for one in provenance(report)]))
    if report.made_up:
        parts.append(
            "> **Made-up data.** These numbers come from the small invented world that ships with this project, not "
            "from the real datasets. They must not be compared with published figures."
        )
    if (found := answer(report)) is not None:
        parts += [f"## {escape(found.question)}", escape(found.sentences)]
    parts += ["## Means", _grid(report, tables.suites_table(report), "suite")]
    parts.append("Percent; in brackets the 95% interval over examples.")
    parts += _differences(report)
    for suite in report.suites():
        parts.append(f"## {escape(TITLES.get(suite, suite))}")
        parts += _labels(report) if suite == LABELS else _tasks(report, suite)
        parts += _published(report, suite)
    for name, rows in tables.training_examples(report).items():
        parts.append(f"## Training run {escape(name)}: examples of each dataset")
        cells = [[one, str(number), f"{share:.1%}"] for one, number, share in rows]
        parts.append(_table(["dataset", "examples", "share"], cells))
    parts += _counts(report)
    parts.append("## Configuration")
    configuration = json.dumps(
        report.to_json()["configuration"], indent=1, ensure_ascii=False, sort_keys=True
    )
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", configuration)), default=0))
    parts.append(f"{fence}json\n{configuration}\n{fence}")
    parts.append("## How to read these numbers")
    parts.append("\n".join(f"- {escape(note)}" for note in notes(report)))
    return "\n\n".join(parts) + "\n"


def _published(report: Report, suite: str) -> list[str]:
    found = published(report, suite)
    if found is None:
        return []
    parts: list[str] = [escape(one.sentence()) for one in found.reproductions]
    parts.append("### Published figures, not measured here")
    if found.rows:
        rows = [[name, *cells] for name, cells in found.rows]
        parts += [_table(["task", *found.columns], rows)]
        parts += [f"{escape(found.note)} Source: {escape(found.source)}."]
    if found.comparisons:
        parts += [_table(["comparison", "difference"], found.comparisons)]
        parts += [f"Source: {escape(found.comparisons_source)}."]
    return parts


def _differences(report: Report) -> list[str]:
    main, other = tables.main_differences(report), tables.other_differences(report)
    if not main and not other:
        return []
    told = (
        "Second minus first, in points, on the same examples; p is that of a permutation test, and corrected for "
        "the number of rows."
    )
    parts = ["## Differences", told]
    if main:
        parts.append(_pairs(main))
    if other:
        parts += ["### Other pairs", _pairs(other)]
    return parts


def _pairs(differences: Sequence[Difference]) -> str:
    rows = [
        [
            one.first,
            one.second,
            one.what,
            one.difference,
            one.interval,
            one.p,
            one.adjusted,
            str(one.n),
        ]
        for one in differences
    ]
    head = ["first", "second", "on", "difference", "95% interval", "p", "p, corrected", "examples"]
    return _table(head, rows)


def _tasks(report: Report, suite: str) -> list[str]:
    told = "Accuracy, percent, mean over templates; in brackets the 95% interval over examples."
    return [told, _grid(report, tables.tasks_table(report, suite), "task")]


def _labels(report: Report) -> list[str]:
    lines = [each for line in tables.labels_table(report) for each in (line, *line.lines)]
    parts = [
        "Macro F1, percent, with other words for the same labels. Read the mean over all pairs. "
        "In brackets the 95% interval.",
        _grid(report, lines, "task and words"),
    ]
    if drops := tables.drops_table(report):
        lines = [each for line in drops for each in (line, *line.lines)]
        rows = [[line.name, *map(_cell, line.cells)] for line in lines]
        parts += [
            "Drop from the original words, in points of macro F1:",
            _table(["task and words", *report.methods], rows),
        ]
    return parts


def _counts(report: Report) -> list[str]:
    names = tables.COUNTED
    rows = [
        [
            count["suite"],
            count["task"],
            count["method"],
            *(str(count[name]) for name in names),
            ", ".join(f"{reason} {number}" for reason, number in sorted(count["dropped"].items()))
            or "–",
        ]
        for count in tables.counts_table(report)
    ]
    head = ["suite", "task", "method", *(name.replace("_", " ") for name in names), "dropped"]
    parts = ["## What was counted", _table(head, rows)]
    if missing := tables.not_run_table(report):
        rows = [
            [
                one["suite"],
                short(one["task"]),
                ", ".join(one["methods"]),
                "the whole task" if one["whole"] else ", ".join(one["templates"]),
                one["why"],
            ]
            for one in missing
        ]
        parts += ["## Not run", _table(["suite", "task", "methods", "what", "why"], rows)]
    return parts


def _grid(report: Report, lines: Sequence[Line], first: str) -> str:
    rows = [[line.name, line.chance.text, *map(_cell, line.cells)] for line in lines]
    return _table([first, "chance", *report.methods], rows)


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)
