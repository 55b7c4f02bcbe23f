"""The records that an evaluation's files hold, with their types: what is read back is checked against them.

`Score` and `UnitEnd` stand in the shards, `Prediction` in `predictions.jsonl`, `Result` and its neighbours in
`results.json` and `examples.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

import msgspec
import numpy as np

from flipped_core.errors import UserError
from flipped_core.files import Json
from flipped_eval import metrics
from flipped_eval.examples import Shown

MOST_CHOICES = 100_000  # of an example; more is no evaluation
MOST_RESAMPLES = 1_000_000

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Difference = Annotated[float, msgspec.Meta(ge=-1.0, le=1.0)]
Metric = Literal["accuracy", "macro_f1"]
Method = Literal["direct", "channel", "flipped"]

T = TypeVar("T")
_OF_MEANS = {"median", "min", "max", "std", "templates_low", "templates_high"}


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """The scores of one example's choices, in their order.

    Attributes:
      logprobs: the summed log-probability of each choice's target, in nats.
      tokens: the length of each target.
      right: whether each choice is (one of) the right ones.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    right: tuple[bool, ...]

    def ranked_by(self, length_normalize: bool) -> tuple[float, ...]:
        """What the choices are ranked by: log-probabilities, or log-probabilities per target token."""
        if not length_normalize:
            return self.logprobs
        pairs = zip(self.logprobs, self.tokens, strict=True)
        return tuple(score / max(1, tokens) for score, tokens in pairs)


@dataclasses.dataclass(frozen=True)
class UnitEnd:
    """The last record of a unit: it is complete, and this is what it consists of.

    Attributes:
      rows, dropped, inputs_cut, targets_cut, several_correct, duplicate_choices, same_ids, shown: as in
        `examples.TaskCases`.
      examples, choices: how many were scored; the shards must hold as many.
      words: the choices where all examples have the same ones.
    """

    rows: Count
    inputs_cut: Count
    targets_cut: Count
    several_correct: Count
    duplicate_choices: Count
    same_ids: Count
    dropped: dict[str, Count]
    examples: Count
    choices: Count
    words: tuple[str, ...] | None
    shown: Shown | None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A line of `predictions.jsonl`: what one method predicted for one (task, template, label set).

    Attributes:
      method: the label of the run.
      data: the hash of the split's rows.
      words: the choices where all examples have the same ones.
      examples: the ids; `predicted`, `choices` and `right` have an entry for each.
      predicted: the index of the predicted choice.
      ties: examples whose best score more than one choice reached.
      choices: the number of choices.
      right: the indices of the right choices.
    """

    method: str
    suite: str
    task: str
    template: str
    label_set: str
    dataset: str
    split: str
    data: str
    words: tuple[str, ...] | None
    examples: tuple[str, ...]
    predicted: tuple[Count, ...]
    ties: Count
    choices: tuple[Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)], ...]
    right: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        """Refuses entries that do not belong together with a `ValueError`."""
        size = len(self.examples)
        if not len(self.predicted) == len(self.choices) == len(self.right) == size:
            raise ValueError(f"expected {size} entries for {size} examples in each list")
        if len(set(self.examples)) < size:
            raise ValueError("an example occurs twice")
        for predicted, choices, right in zip(self.predicted, self.choices, self.right, strict=True):
            if predicted >= choices or not right or max(right) >= choices:
                raise ValueError("a choice that the example does not have")
        if self.words is not None and set(self.choices) - {len(self.words)}:
            raise ValueError("other choices than `words`")

    def to_json(self) -> Json:
        """Plain values."""
        return dataclasses.asdict(self)

    def to_unit(self) -> metrics.Unit:
        """The arrays that the metrics are computed from; there must be at least one example."""
        right = np.zeros((len(self.examples), max(self.choices)), bool)
        for place, choices in enumerate(self.right):
            right[place, list(choices)] = True
        return metrics.Unit(
            suite=self.suite,
            task=self.task,
            template=self.template,
            label_set=self.label_set,
            dataset=self.dataset,
            split=self.split,
            examples=self.examples,
            right=right,
            predicted=np.array(self.predicted, np.int64),
            choices=np.array(self.choices, np.int64),
            words=self.words,
            ties=self.ties,
        )


class Result(TypedDict):
    """A row of `results.json`: one number; `aggregates.rows` says which rows there are."""

    method: str
    form: Method
    suite: str
    task: str | None
    template: str | None
    label_set: str
    metric: Metric
    n: Count
    value: Share
    chance: Share
    majority: Share
    low: Share | None
    high: Share | None
    median: NotRequired[Share]
    min: NotRequired[Share]
    max: NotRequired[Share]
    std: NotRequired[Share]
    templates_low: NotRequired[Share | None]
    templates_high: NotRequired[Share | None]
    ties: NotRequired[Count]
    words: NotRequired[list[str]]
    templates: NotRequired[Count]
    tasks: NotRequired[Count]
    label_sets: NotRequired[Count]
    drop: NotRequired[Difference]
    drop_low: NotRequired[Difference | None]
    drop_high: NotRequired[Difference | None]
    tasks_missing: NotRequired[list[str]]
    templates_missing: NotRequired[Count]


class ConfusionCounts(TypedDict):
    """Which choice was taken for which: `matrix[right][predicted]`."""

    words: list[str] | None
    matrix: list[list[Count]]


class UnitCounts(TypedDict):
    """What became of the rows of one unit."""

    method: str
    suite: str
    task: str
    template: str
    label_set: str
    dataset: str
    split: str
    data: str
    rows: Count
    scored: Count
    ties: Count
    dropped: dict[str, Count]
    inputs_cut: Count
    targets_cut: Count
    several_correct: Count
    duplicate_choices: Count
    same_ids: Count
    split_rows: NotRequired[Count]
    confusion: NotRequired[ConfusionCounts]


class Comparison(TypedDict):
    """Two methods on the same examples, second minus first; see `significance.compare`."""

    first: str
    second: str
    suite: str
    task: str | None
    template: str | None
    label_set: str
    metric: Metric
    n: Count
    difference: Difference
    low: Difference | None
    high: Difference | None
    p: Share
    p_adjusted: NotRequired[Share]


class NotRun(TypedDict):
    """A unit without a number, and why."""

    method: str
    suite: str
    task: str
    template: str
    label_set: str
    why: str
    whole_task: bool


class RequestInfo(TypedDict):
    """What all runs of a folder have in common."""

    data: Literal["embedded", "files"]
    seed: int
    templates: NotRequired[str]
    splits: NotRequired[dict[str, str]]
    exclude_datasets: NotRequired[list[str]]
    max_examples_per_task: NotRequired[Count | None]
    label_sets: NotRequired[str | None]


class RunInfo(TypedDict):
    """One column of the results, as `planning.Model.describe` gives it."""

    label: str
    method: Method
    weights: str
    tokenizer: NotRequired[str]
    input_eos: NotRequired[bool]
    length_normalize: NotRequired[bool]
    lengths: NotRequired[dict[str, int]]
    model: NotRequired[Any]


class BootstrapInfo(TypedDict):
    """How the intervals were drawn."""

    confidence: Share
    resamples: Annotated[int, msgspec.Meta(ge=1, le=MOST_RESAMPLES)]


class Results(TypedDict):
    """The content of `results.json`."""

    format: int
    request: RequestInfo
    runs: list[RunInfo]
    bootstrap: BootstrapInfo
    results: list[Result]
    comparisons: list[Comparison]
    counts: list[UnitCounts]
    not_run: list[NotRun]
    dropped: dict[str, Count]


class ShownExample(TypedDict):
    """An example as text in `examples.json`."""

    method: str
    suite: str
    task: str
    template: str
    inputs: str
    targets: str
    choices: list[str]
    correct: Count


class WrongExample(ShownExample):
    """One whose prediction was wrong, with what its choices were ranked by."""

    example: str
    scores: list[float]
    predicted: Count
    lead: float


class Examples(TypedDict):
    """The content of `examples.json`."""

    shown: list[ShownExample]
    worst: list[WrongExample]


class PlannedUnit(TypedDict):
    """A unit in `plan.json`."""

    method: str
    suite: str
    task: str
    template: str
    label_set: str
    dataset: str
    split: str
    data: str
    key: str
    split_rows: NotRequired[Count]


class FailedUnit(TypedDict):
    """A unit in `plan.json` that could not be run, and why."""

    method: str
    suite: str
    task: str
    template: str
    label_set: str
    dataset: str
    split: str
    why: str


class PlanFile(TypedDict):
    """The content of `plan.json`."""

    units: list[PlannedUnit]
    failed: list[FailedUnit]


class LabelledRun(TypedDict):
    """What every version of `run.json` says of a run; the rest of it is compared as it is."""

    label: str


class CheckpointInfo(TypedDict):
    """What `run.json` says of the checkpoint of a run, for the report."""

    step: Count
    parameters: Count
    size: str | None
    commit: str | None


class RunFile(TypedDict):
    """The content of `run.json` in an evaluation's folder."""

    request: Json
    models: list[LabelledRun]
    checkpoints: dict[str, str]
    sources: NotRequired[dict[str, dict[str, str]]]
    provenance: NotRequired[dict[str, CheckpointInfo]]


def checked(value: Any, kind: type[T], where: str | pathlib.Path) -> T:
    """`value`, when it has the types of `kind`.

    Raises:
      UserError: it has not; names `where` it was read and the field.
    """
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {_told(error)}") from error
    return value


def check_results(found: Results, where: str) -> None:
    """Refuses rows that name runs which are not listed, or lack a number that others of them imply."""
    labels = [run["label"] for run in found["runs"]]
    for number, row in enumerate(found["results"]):
        name = f"{where}: results[{number}]"
        _check_label(row["method"], labels, name)
        if row["task"] is None and (row["template"] is not None or "tasks" not in row):
            raise UserError(f"{name}: expected the number of tasks of a mean over tasks, got none")
        several = max(row.get("templates", 1), row.get("tasks", 1), row.get("label_sets", 1))
        lacking = _OF_MEANS - set(row)
        if several > 1 and lacking:
            raise UserError(f"{name}: expected {sorted(lacking)[0]!r} of a mean, got none")
        if "drop" in row and not {"drop_low", "drop_high"} <= set(row):
            raise UserError(f"{name}: expected 'drop_low' and 'drop_high' beside 'drop'")
        _check_interval(row["low"], row["high"], name)
    for number, one in enumerate(found["comparisons"]):
        for side in (one["first"], one["second"]):
            _check_label(side, labels, f"{where}: comparisons[{number}]")
        _check_interval(one["low"], one["high"], f"{where}: comparisons[{number}]")
    for number, count in enumerate(found["counts"]):
        _check_label(count["method"], labels, f"{where}: counts[{number}]")
        if "confusion" in count:
            matrix, words = count["confusion"]["matrix"], count["confusion"]["words"]
            sizes = {len(matrix), *map(len, matrix), *([len(words)] if words else [])}
            if len(sizes) > 1:
                raise UserError(f"{where}: counts[{number}]: expected a square confusion matrix")


def check_examples(found: Examples, labels: Sequence[str], where: str) -> None:
    """Refuses examples of runs that are not listed, and choices that an example does not have."""
    for one in (*found["shown"], *found["worst"]):
        _check_label(one["method"], labels, where)
        if one["correct"] >= len(one["choices"]):
            raise UserError(f"{where}: expected a right choice among {len(one['choices'])}")
    for wrong in found["worst"]:
        if not len(wrong["scores"]) == len(wrong["choices"]) > wrong["predicted"]:
            raise UserError(
                f"{where}: expected a score for each of {len(wrong['choices'])} choices"
            )


def prediction(line: bytes) -> Prediction:
    """A line of `predictions.jsonl`.

    Raises:
      ValueError: it is none.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(_told(error)) from None


_DECODER = msgspec.json.Decoder(Prediction)


def _check_label(label: str, labels: Sequence[str], where: str) -> None:
    if label not in labels:
        raise UserError(f"{where}: expected one of the runs {', '.join(labels)}, got {label!r}")


def _check_interval(low: float | None, high: float | None, where: str) -> None:
    if (low is None) != (high is None):
        raise UserError(f"{where}: expected both ends of an interval or none")


def _told(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).replace("`", "")
