"""`report.html`: one file with everything in it, for screens wide and narrow, light and dark, and for paper."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from flipped_core.files import Json
from flipped_eval.aggregates import SUBSTITUTES
from flipped_eval.report import plots, tables
from flipped_eval.report.answer import answer
from flipped_eval.report.content import (
    LABELS,
    METRIC_NAMES,
    TITLES,
    UNSEEN,
    UNSEEN_TASKS,
    Report,
    counted,
    label_sets,
    notes,
    percent,
    short,
)
from flipped_eval.report.provenance import HEADINGS, provenance
from flipped_eval.report.published import published
from mixtures.suites import ORIGINAL

_LOSSES = {
    "loss": "loss",
    "loss_lm": "likelihood term",
    "loss_ul": "unlikelihood term",
    "accuracy": "token accuracy",
}


def render(report: Report) -> str:
    """The page as text. All that comes from outside (labels, prompts, choices) is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flipped_eval.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = percent
    environment.filters["short"] = short
    environment.filters["count"] = "{:,}".format
    environment.filters["breakable"] = _breakable
    environment.filters["zip"] = zip
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    style = environment.get_template("style.css").render(colours=len(plots.MARKERS))
    text = environment.get_template("report.html").render(
        report=report,
        style=Markup(style),
        answer=answer(report),
        provenance=provenance(report),
        provenance_headings=HEADINGS,
        headline=headline(report),
        sections=[section(report, suite) for suite in report.suites() if suite != LABELS],
        labels=_labels(report) if LABELS in report.suites() else None,
        differences=tables.main_differences(report),
        other_differences=tables.other_differences(report),
        confusions=tables.confusions(report),
        worst=_worst(report),
        training=_training(report),
        training_examples=tables.training_examples(report),
        examples=_examples(report),
        counts=tables.counts_table(report),
        not_run=tables.not_run_table(report),
        configuration=_configuration(report),
        notes=notes(report),
        titles=TITLES,
        colour={method: index % len(plots.MARKERS) for index, method in enumerate(report.methods)},
    )
    return text.lstrip()


def headline(report: Report) -> Json:
    """The mean over the first suite for each method, as cards; and the means of all suites, as picture and table."""
    suites = report.suites()
    first = UNSEEN if UNSEEN in suites else suites[0] if suites else None
    if first is None:
        return {"cards": [], "what": "Nothing was measured", "plot": None, "table": []}
    metric, label_set = tables.headline_figures(first)[-1]
    cards = [
        (method, report.row(method, first, None, metric, label_set=label_set))
        for method in report.methods
    ]
    tasks = max((row["tasks"] for _, row in cards if row), default=0)
    what = f"mean {METRIC_NAMES[metric]} over {counted(tasks, 'task')}: {TITLES.get(first, first)}"
    if first == UNSEEN:
        of = "" if tasks == UNSEEN_TASKS else f"{tasks} of "
        what = f"mean accuracy over {of}the {UNSEEN_TASKS} unseen tasks"
    rows = [(suite, *figure) for suite in suites for figure in tables.headline_figures(suite)[-1:]]
    series = {
        method: [
            plots.Mark(_point(report.row(method, suite, None, metric, label_set=name)))
            for suite, metric, name in rows
        ]
        for method in report.methods
    }
    plot = plots.marks(
        "headline",
        f"Means over suites for {', '.join(report.methods)}, with 95% intervals, against chance.",
        [f"{TITLES.get(suite, suite)}:\n{METRIC_NAMES[metric]}" for suite, metric, _ in rows],
        series,
        [_chance(report, suite, None, metric, name) for suite, metric, name in rows],
        "percent",
    )
    return {
        "cards": [(method, row, tables.above_chance(row)) for method, row in cards if row],
        "what": what,
        "plot": plot,
        "table": tables.suites_table(report),
    }


def section(report: Report, suite: str) -> Json:
    """A suite of tasks: a picture with a dot for each template, and tables of accuracy."""
    tasks = report.tasks(suite)
    templates: dict[tuple[str, str], list[float]] = {}
    for row in report.results:
        if row["suite"] == suite and row["metric"] == "accuracy" and row["template"]:
            templates.setdefault((row["method"], row["task"]), []).append(100 * row["value"])
    series = {
        method: [
            plots.Mark(
                _point(report.row(method, suite, task, "accuracy")),
                templates.get((method, task), ()),
            )
            for task in tasks
        ]
        for method in report.methods
    }
    title = TITLES.get(suite, suite)
    plot = plots.marks(
        f"suite-{suite}",
        f"{title}: accuracy of each task, mean over its templates, with 95% intervals, against chance; each template "
        "as a faint dot.",
        [short(task) for task in tasks],
        series,
        [_chance(report, suite, task, "accuracy") for task in tasks],
        "accuracy, percent",
    )
    return {
        "id": suite,
        "title": title,
        "plot": plot,
        "table": tables.tasks_table(report, suite),
        "spread": tables.spread_table(report, suite),
        "published": published(report, suite),
    }


def _labels(report: Report) -> Json:
    """Label generalization: a picture and tables of macro F1, and what is lost with other words."""
    tasks = report.tasks(LABELS)
    groups: list[tuple[str, str | None, str]] = [
        ("all tasks:\noriginal words", None, ORIGINAL),
        ("all tasks:\nall pairs", None, SUBSTITUTES),
    ]
    groups += [(short(task) + ":\nall pairs", task, SUBSTITUTES) for task in tasks]

    def singles(method: str, task: str | None, name: str) -> list[float]:
        if name == ORIGINAL:
            keys = [(owner, ORIGINAL) for owner in tasks]
        else:
            keys = [
                (owner, one)
                for owner in ([task] if task else tasks)
                for one in label_sets(report, owner)
            ]
        rows = [report.row(method, LABELS, owner, "macro_f1", label_set=one) for owner, one in keys]
        return [100 * row["value"] for row in rows if row]

    series = {
        method: [
            plots.Mark(
                _point(report.row(method, LABELS, task, "macro_f1", label_set=name)),
                singles(method, task, name),
            )
            for _, task, name in groups
        ]
        for method in report.methods
    }
    means = [
        (
            method,
            report.row(method, LABELS, None, "macro_f1", label_set=ORIGINAL),
            report.row(method, LABELS, None, "macro_f1", label_set=SUBSTITUTES),
        )
        for method in report.methods
    ]
    plot = plots.marks(
        "labels",
        "Macro F1 with original and substituted label words; faint dots are single tasks or label sets.",
        [name for name, *_ in groups],
        series,
        [_chance(report, LABELS, task, "macro_f1", name) for _, task, name in groups],
        "macro F1, percent",
    )
    return {
        "plot": plot,
        "means": [(*mean, tables.above_chance(mean[2])) for mean in means if mean[2]],
        "drops": tables.drops_table(report),
        "table": tables.labels_table(report),
        "accuracy": tables.labels_table(report, "accuracy"),
        "published": published(report, LABELS),
    }


def _training(report: Report) -> list[Json]:
    """The curves of the training runs, one picture for each quantity that was logged."""
    colours = {method: index for index, method in enumerate(report.methods)}
    for name, run in report.training.items():
        evaluated = [label for label in run["labels"] if label in report.methods]
        if name not in colours and len(evaluated) == 1:
            colours[name] = colours[evaluated[0]]
        colours.setdefault(name, len(colours))
    found = []
    for quantity, title in _LOSSES.items():
        series = {}
        for label, run in report.training.items():
            points = [
                (record["step"], record[quantity])
                for record in run["records"]
                if "step" in record and isinstance(record.get(quantity), (int, float))
            ]
            if points and any(value for _, value in points):
                series[label] = ([step for step, _ in points], [value for _, value in points])
        if series:
            plot = plots.curves(
                f"train-{quantity}", f"Training: {title} by step.", series, title, colours
            )
            found.append({"title": title, "plot": plot})
    return found


def _breakable(name: str) -> Markup:
    """A name that a narrow screen may break after "_" and "/"."""
    return Markup(re.sub("([_/])(?=.)", r"\1<wbr>", str(escape(name))))


def _worst(report: Report) -> list[Json]:
    """The most wrong examples of each task, method by method."""
    found: dict[tuple[str, str], Json] = {}
    for example in report.worst:
        suite, task = example["suite"], example["task"]
        title = TITLES.get(suite, suite)
        entry = found.setdefault((suite, task), {"suite": title, "task": task, "methods": {}})
        entry["methods"].setdefault(example["method"], []).append(example)
    return list(found.values())


def _examples(report: Report) -> list[Json]:
    """One example of each task as the model gets it, for each form that is shown."""
    found: dict[tuple[str, str], Json] = {}
    forms = {run["label"]: run["method"] for run in report.runs}
    for example in report.shown:
        entry = found.setdefault(
            (example["suite"], example["task"]),
            {
                "suite": TITLES.get(example["suite"], example["suite"]),
                "task": example["task"],
                "forms": {},
            },
        )
        entry["forms"].setdefault(forms[example["method"]], example)
    return list(found.values())


def _configuration(report: Report) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)

    blocks = [(f"evaluation of {run['label']}", text(run)) for run in report.runs]
    blocks += [
        (f"training run {name}", text(run["config"]))
        for name, run in report.training.items()
        if run["config"]
    ]
    return blocks + ([("more", text(report.extra))] if report.extra else [])


def _point(row: Mapping[str, Any] | None) -> plots.Point | None:
    if row is None:
        return None
    low, high = (None if row[name] is None else 100 * row[name] for name in ("low", "high"))
    return plots.Point(100 * row["value"], low, high)


def _chance(
    report: Report, suite: str, task: str | None, metric: str, label_set: str = ORIGINAL
) -> float | None:
    rows: Sequence[Json | None] = [
        report.row(method, suite, task, metric, label_set=label_set) for method in report.methods
    ]
    return next((100 * row["chance"] for row in rows if row), None)
