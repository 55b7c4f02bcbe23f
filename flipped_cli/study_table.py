"""The tables of a study: the demo's figures over seeds, and what they say about FLIPPED and DIRECT."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from flipped_core.files import to_json, write_atomically

Row = dict[str, Any]

RENAMED = "labels renamed, macro F1 over all pairs"
ORIGINAL = "labels as they are, macro F1"
SEEN = "seen tasks, accuracy"
UNSEEN = "14 unseen tasks, accuracy"
# What a line of the table shows -> the row of the report that holds it.
SUITES: dict[str, Row] = {
    SEEN: {"suite": "seen", "metric": "accuracy", "label_set": "original"},
    UNSEEN: {"suite": "nlp14", "metric": "accuracy", "label_set": "original"},
    RENAMED: {"suite": "labels", "metric": "macro_f1", "label_set": "all substitutes"},
    ORIGINAL: {"suite": "labels", "metric": "macro_f1", "label_set": "original"},
}
DROP = "drop from labels as they are to renamed"
# The families of unseen tasks (Sanh et al. 2022, arXiv 2110.08207).
FAMILIES: dict[str, tuple[str, ...]] = {
    "natural language inference": ("rte", "cb", "anli_r1", "anli_r2", "anli_r3"),
    "coreference": ("wsc", "winogrande_xl"),
    "word sense": ("wic",),
    "completion": ("copa", "hellaswag", "story_cloze"),
    "question answering": ("piqa", "arc_challenge", "openbookqa"),
}
DIRECT, FLIPPED = "direct", "flipped"
STARTS = "pretrained"
CONFIDENCE = 0.95
TABLE, NUMBERS, PICTURE = "study.md", "study.json", "study.png"


def write(folder: pathlib.Path, seeds: Sequence[pathlib.Path]) -> str:
    """Writes the table, the numbers and the picture of a study into `folder`; returns the table.

    Args:
      folder: exists.
      seeds: the folder of each seed, with `report.json`.
    """
    from flipped_cli import study_picture

    reports = [seed / "report.json" for seed in seeds]
    table = render(reports)
    write_atomically(folder / TABLE, table)
    write_atomically(folder / NUMBERS, to_json(numbers(reports)))
    study_picture.draw(numbers(reports), folder / PICTURE)
    return f"{table}\nfiles: {folder}/{TABLE}, {NUMBERS}, {PICTURE}"


def render(reports: Sequence[pathlib.Path]) -> str:
    """Markdown: the headline figures and each task with one column a method, then what was to be shown.

    Args:
      reports: `report.json` of each seed.
    """
    runs = _runs(reports)
    methods = _methods(runs)
    lines = [
        f"Mean ± standard deviation over {len(runs)} seeds, in percent.",
        "",
        "| | chance | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for name, wanted in _figures(runs[0]):
        cells = [_cell(_column(runs, method, wanted)) for method in methods]
        chance = _chance(runs[0], wanted)
        shown = "–" if chance is None else f"{100 * chance:.1f}"
        lines.append(f"| {name} | {shown} | " + " | ".join(cells) + " |")
        if name == ORIGINAL:
            drops = [
                _cell(_drops(runs[:1] if method.startswith(STARTS) else runs, method))
                for method in methods
            ]
            lines.append(f"| {DROP}, points | – | " + " | ".join(drops) + " |")
    return "\n".join(lines + ["", *_shown(numbers(reports))]) + "\n"


def numbers(reports: Sequence[pathlib.Path]) -> dict[str, Any]:
    """For each figure and method the value of each seed, in percent; differences with their interval over seeds."""
    runs = _runs(reports)
    methods = _methods(runs)
    wanted = {name: {**row, "task": None, "template": None} for name, row in SUITES.items()}
    values = {
        name: {method: _percent([_find(run, method, row) for run in runs]) for method in methods}
        for name, row in wanted.items()
    }
    values[DROP] = {method: _percent(_drops(runs, method)) for method in methods}
    chance = {name: _chance(runs[0], row) for name, row in wanted.items()}
    families = {
        family: {
            method: _percent([_family(run, method, family) for run in runs]) for method in methods
        }
        for family in FAMILIES
    }
    differences = {}
    if {DIRECT, FLIPPED} <= set(methods):
        for name in (RENAMED, DROP, UNSEEN, SEEN):
            pairs = zip(values[name][FLIPPED], values[name][DIRECT], strict=True)
            differences[name] = interval(
                [a - b for a, b in pairs if a is not None and b is not None]
            )
    return {
        "seeds": len(runs),
        "methods": methods,
        "values": values,
        "chance": {name: None if one is None else 100 * one for name, one in chance.items()},
        "families": families,
        "flipped minus direct": differences,
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's interval of the mean over seeds; no interval of fewer than two."""
    found: dict[str, Any] = {"values": list(values), "mean": None, "low": None, "high": None}
    if values:
        found["mean"] = statistics.mean(values)
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
        found |= {"low": found["mean"] - reach, "high": found["mean"] + reach}
    return found


def _shown(study: dict[str, Any]) -> list[str]:
    """What the study was to show, seed by seed."""
    if not study["flipped minus direct"]:
        return []
    values, lines = study["values"], []
    for name in (SEEN, UNSEEN, RENAMED, DROP):
        each = "; ".join(
            f"{method} {_list(values[name][method])}"
            for method in (DIRECT, FLIPPED, "flipped_no_ul", "channel")
            if method in study["methods"]
        )
        lines.append(f"- {name}, seed by seed: {each}.")
    for name, one in study["flipped minus direct"].items():
        if one["mean"] is None:
            continue
        reach = (
            "" if one["low"] is None else f", 95% interval {one['low']:+.1f} to {one['high']:+.1f}"
        )
        lines.append(
            f"- FLIPPED minus DIRECT, {name}: {one['mean']:+.1f} points{reach} over {study['seeds']} seeds "
            f"({_list(one['values'], '+.1f')})."
        )
    for family, by_method in study["families"].items():
        flipped, direct = (_mean(by_method[method]) for method in (FLIPPED, DIRECT))
        if flipped is not None and direct is not None:
            lines.append(f"- unseen, {family}: FLIPPED {flipped:.1f}, DIRECT {direct:.1f}.")
    return lines


def _list(values: Sequence[float | None], form: str = ".1f") -> str:
    return ", ".join("–" if value is None else format(value, form) for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(100 * value, 3) for value in values]


def _runs(reports: Sequence[pathlib.Path]) -> list[list[Row]]:
    return [json.loads(path.read_text(encoding="utf-8"))["results"] for path in reports]


def _methods(runs: Sequence[Sequence[Row]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for run in runs for row in run))


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


def _drops(runs: Sequence[Sequence[Row]], method: str) -> list[float | None]:
    found = []
    for run in runs:
        before, after = (
            _find(run, method, {**SUITES[name], "task": None, "template": None})
            for name in (ORIGINAL, RENAMED)
        )
        found.append(None if before is None or after is None else before - after)
    return found


def _family(run: Sequence[Row], method: str, family: str) -> float | None:
    """The mean over the family's tasks; None where one is missing."""
    values = [
        _find(run, method, {**SUITES[UNSEEN], "task": task, "template": None})
        for task in FAMILIES[family]
    ]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


def _column(runs: Sequence[Sequence[Row]], method: str, wanted: Row) -> list[float | None]:
    """The value of each seed; of the pre-trained checkpoint, which no seed changes, one."""
    values = [_find(run, method, wanted) for run in runs]
    return values[:1] if method.startswith(STARTS) else values


def _matches(row: Row, wanted: Row) -> bool:
    return all(row.get(key) == value for key, value in wanted.items())


def _find(rows: Sequence[Row], method: str, wanted: Row) -> float | None:
    return next(
        (row["value"] for row in rows if row["method"] == method and _matches(row, wanted)), None
    )


def _chance(rows: Sequence[Row], wanted: Row) -> float | None:
    return next((row["chance"] for row in rows if _matches(row, wanted)), None)


def _cell(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"
