"""The reader's first question: does FLIPPED keep its accuracy when the labels are renamed?"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from flipped_core.files import Json
from flipped_eval.aggregates import SUBSTITUTES
from flipped_eval.report import plots
from flipped_eval.report.content import LABELS, Report, percent
from flipped_eval.report.tables import STARTS, points
from mixtures.suites import ORIGINAL

QUESTION = "Does FLIPPED keep its accuracy when the labels are renamed?"
GENERAL_QUESTION = "What is left when the labels are renamed?"
_METHODS = ("direct", "flipped")


@dataclass(frozen=True)
class Answer:
    """The question, its answer in sentences, and a picture of the drops."""

    question: str
    sentences: str
    plot: Markup


def answer(report: Report) -> Answer | None:
    """The answer from the label suite; None where it was not measured with both kinds of labels."""
    measured: dict[str, tuple[Json, Json]] = {}
    for method in trained(report):
        original, renamed = (
            report.row(method, LABELS, None, "macro_f1", label_set=name)
            for name in (ORIGINAL, SUBSTITUTES)
        )
        if original and renamed:
            measured[method] = original, renamed
    if not measured:
        return None
    plot = plots.drops(
        "answer",
        "Macro F1 with the original label words and with other words for the same labels, all pairs.",
        {
            method: (_percent(before), _percent(after))
            for method, (before, after) in measured.items()
        },
        {method: report.methods.index(method) for method in measured},
        100 * next(iter(measured.values()))[1]["chance"],
        "macro F1, percent",
    )
    question = QUESTION if "flipped" in measured else GENERAL_QUESTION
    return Answer(question, _sentences(measured), plot)


def trained(report: Report) -> list[str]:
    return [method for method in report.methods if not method.startswith(STARTS)]


def _sentences(measured: dict[str, tuple[Json, Json]]) -> str:
    def told(method: str) -> str:
        before, after = measured[method]
        change = points(after["value"] - before["value"])
        return f"{percent(before['value'])} to {percent(after['value'])} ({change})"

    shown = [method for method in _METHODS if method in measured] or list(measured)
    changes = "; ".join(f"{method}: {told(method)}" for method in shown)
    text = f"Macro F1 from the original label words to other words for the same labels: {changes}."
    if all(method in measured for method in _METHODS):
        drops = {
            method: measured[method][0]["value"] - measured[method][1]["value"]
            for method in _METHODS
        }
        lead = measured["flipped"][1]["value"] - measured["direct"][1]["value"]
        less = "less" if drops["flipped"] < drops["direct"] else "no less"
        where = "above" if lead > 0 else "below" if lead < 0 else "level with"
        text = (
            f"FLIPPED loses {less} than DIRECT, and with renamed labels it is {points(abs(lead)).lstrip('+')} points "
            f"{where} it. {text}"
        )
    return text


def _percent(row: Json) -> plots.Point:
    low, high = (None if row[name] is None else 100 * row[name] for name in ("low", "high"))
    return plots.Point(100 * row["value"], low, high)
