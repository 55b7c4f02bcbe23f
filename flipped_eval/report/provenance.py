"""What the numbers of a report belong to: checkpoint, step, size, vocabulary, method, suites, examples, commits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flipped_core.files import Json
from flipped_eval.report.content import LABELS, METRIC_NAMES, TITLES, Report
from flipped_eval.report.tables import examples_of, headline_figures

HEADINGS = ("run", "checkpoint", "step", "size", "vocabulary", "method", "suites", "commit")
_COMMIT, _HASH = 10, 8  # digits that are shown
_UNKNOWN = "–"
_REVISION = re.compile(rf"@([0-9a-f]{{{_COMMIT}}})[0-9a-f]*$")  # of a repository of the hub


@dataclass(frozen=True)
class Provenance:
    """A line of the table that opens the report; its fields are texts, in the order of `HEADINGS`."""

    run: str
    checkpoint: str
    step: str
    size: str
    vocabulary: str
    method: str
    suites: tuple[str, ...]
    commit: str

    def cells(self) -> tuple[str, ...]:
        """The texts, several suites in one."""
        return (
            self.run, self.checkpoint, self.step, self.size, self.vocabulary, self.method, "; ".join(self.suites),
            self.commit,
        )  # fmt: skip


def provenance(report: Report) -> list[Provenance]:
    """A line for each run, in the order of the columns."""
    runs = sorted(report.runs, key=lambda run: report.methods.index(run["label"]))
    return [_of(report, run) for run in runs]


def _of(report: Report, run: Json) -> Provenance:
    label = run["label"]
    known = report.checkpoints.get(label, {})
    step = known.get("step")
    return Provenance(
        run=label,
        checkpoint=_REVISION.sub(r"@\1", known.get("checkpoint", _UNKNOWN)),
        step=_UNKNOWN if step is None else f"{step:,}",
        size=_size(known),
        vocabulary=_vocabulary(run),
        method=run["method"].upper(),
        suites=tuple(_suites(report, label)),
        commit=_commits(report, label, known.get("commit")),
    )


def _size(known: Json) -> str:
    count = known.get("parameters")
    if count is None:
        return _UNKNOWN
    name = known.get("size")
    return f"{name}, {count:,} parameters" if name else f"{count:,} parameters"


def _vocabulary(run: Json) -> str:
    model = run.get("model")
    rows = model.get("vocab_size") if isinstance(model, dict) else None
    parts = [] if rows is None else [f"{rows:,} rows"]
    if run.get("tokenizer"):
        parts.append(f"hash {run['tokenizer'][:_HASH]}")
    return ", ".join(parts) or _UNKNOWN


def _suites(report: Report, label: str) -> list[str]:
    """ "Unseen tasks: 700 of 20,000 examples" for each suite of a run."""
    found = []
    for suite in report.suites():
        metric, label_set = headline_figures(suite)[-1]
        row = report.row(label, suite, None, metric, label_set=label_set)
        if row is not None:
            found.append(
                f"{TITLES.get(suite, suite)}: {examples_of(report, suite, None, row['n'])}"
                + (f" ({METRIC_NAMES[metric]})" if suite == LABELS else "")
            )
    return found


def _commits(report: Report, label: str, evaluated: str | None) -> str:
    """The commits of this code that trained and evaluated, one where they are the same."""
    trained = {
        config["git_commit"]
        for run in report.training.values()
        if label in run["labels"]
        if (config := run["config"].get("run.json", {})).get("git_commit")
    }
    if trained - {evaluated}:
        parts = [f"trained {_short(commit)}" for commit in sorted(trained)]
        return ", ".join([*parts, *([f"evaluated {_short(evaluated)}"] if evaluated else [])])
    return _short(evaluated) if evaluated else _UNKNOWN


def _short(commit: str) -> str:
    name, plus, changes = commit.partition("+")
    return f"{name[:_COMMIT]}{plus}{changes}"
