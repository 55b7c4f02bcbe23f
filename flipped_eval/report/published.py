"""Published figures, beside the suites that they belong to; and whether a published model's are reproduced.

The figures and their sources are in `published.json`. They are not shown beside made-up data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipped_core import hub
from flipped_core.files import Json
from flipped_eval.report.content import Report, counted, percent, short
from flipped_eval.report.tables import points


@dataclass(frozen=True)
class Published:
    """The published figures of one suite.

    Attributes:
      comparisons: (what, figure), of models without figures by task.
      comparisons_source: of these.
      columns: the measured methods, then the published models.
      rows: task (the mean over all listed tasks first) and a figure for each column, in percent, or "–".
      note, source: of the figures by task.
      reproductions: of the measured methods that are published models.
    """

    comparisons: tuple[tuple[str, str], ...]
    comparisons_source: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    note: str = ""
    source: str = ""
    reproductions: tuple[Reproduction, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """The means of a published model over the tasks that were measured.

    Attributes:
      label: of the run.
      model: the published name.
      tasks: how many tasks both have.
      measured, published: means over them, in [0, 1].
      inside: of how many tasks the 95% interval contains the published figure.
      whole: whether all examples were scored.
    """

    label: str
    model: str
    tasks: int
    measured: float
    published: float
    inside: int
    whole: bool

    def sentence(self) -> str:
        """The comparison in words."""
        sampled = "" if self.whole else " on a sample of the examples"
        return (
            f"{self.label} against the published {self.model}, mean over {counted(self.tasks, 'task')}: "
            f"{percent(self.measured)} measured{sampled}, {percent(self.published)} published, difference "
            f"{points(self.measured - self.published)} points; the published figure lies in the 95% interval of "
            f"{self.inside} of {counted(self.tasks, 'task')}."
        )


def published(report: Report, suite: str) -> Published | None:
    """What is published on a suite; None where nothing is, or where a run has made-up data."""
    if report.made_up:
        return None
    content = report.published
    comparisons = tuple(
        (one["what"], one["value"]) for one in content["comparisons"] if one["suite"] == suite
    )
    by_task = next((one for one in content["tasks"] if one["suite"] == suite), None)
    if by_task is None:
        return Published(comparisons, content["comparisons_source"]) if comparisons else None
    models = by_task["models"]
    listed = [task for task in report.tasks(suite) if task in models[0]["accuracy"]]
    rows = [("mean over these tasks", _mean_cells(report, suite, listed, models))] if listed else []
    rows += [(short(task), _cells(report, suite, task, models)) for task in listed]
    return Published(
        comparisons=comparisons,
        comparisons_source=content["comparisons_source"],
        columns=(*report.methods, *(f"{model['name']}, published" for model in models)),
        rows=tuple(rows),
        note=by_task["note"],
        source=by_task["source"],
        reproductions=tuple(_reproductions(report, suite, listed, models)),
    )


def reproductions(report: Report) -> list[Reproduction]:
    """The measured methods that are published models, over all suites."""
    found = [published(report, suite) for suite in report.suites()]
    return [each for one in found if one for each in one.reproductions]


def _cells(report: Report, suite: str, task: str, models: Sequence[Json]) -> tuple[str, ...]:
    rows = [report.row(method, suite, task, "accuracy") for method in report.methods]
    measured = (percent(row["value"] if row else None) for row in rows)
    return (*measured, *(f"{model['accuracy'][task]:.2f}" for model in models))


def _mean_cells(
    report: Report, suite: str, tasks: Sequence[str], models: Sequence[Json]
) -> tuple[str, ...]:
    cells = []
    for method in report.methods:
        rows = [report.row(method, suite, task, "accuracy") for task in tasks]
        values = [row["value"] for row in rows if row]
        cells.append(percent(sum(values) / len(values) if len(values) == len(tasks) else None))
    means = (sum(model["accuracy"][task] for task in tasks) / len(tasks) for model in models)
    return (*cells, *(f"{mean:.2f}" for mean in means))


def _reproductions(
    report: Report, suite: str, tasks: Sequence[str], models: Sequence[Json]
) -> list[Reproduction]:
    found = []
    for run in report.runs:
        label = run["label"]
        model = next((one for one in models if _is_model(one, run, report.checkpoints)), None)
        if model is None:
            continue
        rows = {task: row for task in tasks if (row := report.row(label, suite, task, "accuracy"))}
        if not rows:
            continue
        figures = {task: model["accuracy"][task] / 100 for task in rows}
        inside = sum(
            row["low"] is not None and row["low"] <= figures[task] <= row["high"]
            for task, row in rows.items()
        )
        found.append(
            Reproduction(
                label=label,
                model=model["name"],
                tasks=len(rows),
                measured=sum(row["value"] for row in rows.values()) / len(rows),
                published=sum(figures.values()) / len(rows),
                inside=inside,
                whole=run.get("max_examples_per_task") is None,
            )
        )
    return found


def _is_model(model: Json, run: Json, checkpoints: Mapping[str, Json]) -> bool:
    """Whether a run is a published model: by its method, and by its label or the name of its checkpoint."""
    if run["method"] != model["method"]:
        return False
    place = checkpoints.get(run["label"], {}).get("checkpoint", "")
    names = {_plain(run["label"]), _plain(hub.name_of(place) if place else "")}
    known = {_plain(model["name"]), *(_plain(hub.name_of(one)) for one in model["checkpoints"])}
    return bool(names & known)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
