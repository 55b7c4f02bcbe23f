"""Accuracy, macro F1, their baselines and their 95% intervals, for rank classification.

A *unit* is what one template says about one task with one set of label words: for each example the
choices that were right and the choice that was predicted. Every number of the report is a mean over
units, so the intervals of every number come from two places: `resampled` and `over_templates`.

`resampled` says how the number would move with other *examples*. The templates of a task, and the
label sets of a template, ask about the same examples, so an example that is drawn is drawn in all of
them together (a cluster bootstrap with the example as the cluster). Tasks have examples of their own
and are resampled independently (a stratified bootstrap). `over_templates` says how it would move with
other *templates*, drawn for each task from those at hand. Neither speaks of other tasks or seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

METRICS = ("accuracy", "macro_f1")
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one (task, template, label set) gave; the arrays have one entry per example.

    Attributes:
      suite, task, template, label_set, dataset, split: what was asked.
      examples: the ids of the examples in `dataset`/`split`; the same id is the same example in every
        unit of that dataset and split.
      right: whether choice c is right, bool [E, C]; C is the highest number of choices, and what an
        example does not have is False. A few examples of BIG-bench have several right choices.
      predicted: index of the predicted choice, int [E].
      choices: number of choices, int [E].
      words: the choices where all examples have the same ones, else None. Macro F1 needs them.
      ties: examples in which the best score was reached by more than one choice.
    """

    suite: str
    task: str
    template: str
    label_set: str
    dataset: str
    split: str
    examples: tuple[str, ...]
    right: np.ndarray
    predicted: np.ndarray
    choices: np.ndarray
    words: tuple[str, ...] | None
    ties: int = 0

    @functools.cached_property
    def hits(self) -> np.ndarray:
        """Whether the prediction is right, bool [E]."""
        return self.right[np.arange(len(self.predicted)), self.predicted]

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """The right choice, int [E]: of several the predicted one, or else the first."""
        return np.where(self.hits, self.predicted, self.right.argmax(axis=1))

    @functools.cached_property
    def macro_f1(self) -> float:
        """See `macro_f1`."""
        return macro_f1(self.correct, self.predicted)

    def part(self, rows: Sequence[int] | np.ndarray) -> Unit:
        """The unit of these examples only, by their places."""
        return dataclasses.replace(
            self,
            examples=tuple(self.examples[row] for row in rows),
            right=self.right[rows],
            predicted=self.predicted[rows],
            choices=self.choices[rows],
        )

    def metrics(self) -> tuple[str, ...]:
        """The metrics that mean something here: macro F1 only where the choices are classes."""
        return METRICS if self.words is not None else METRICS[:1]


def predict(scores: Sequence[float]) -> tuple[int, bool]:
    """The index of the best score (the lowest of equals), and whether others were equal to it.

    Raises:
      ValueError: a score is not a number; rank classification then has no answer.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(
            f"cannot rank scores {list(scores)!r}: expected numbers, one for each choice"
        )
    best = int(np.argmax(values))
    return best, bool(np.count_nonzero(values == values[best]) > 1)


def macro_f1(correct: np.ndarray, predicted: np.ndarray) -> float:
    """The unweighted mean of the classes' F1, over the classes that are right or predicted somewhere.

    This is scikit-learn's `f1_score(average="macro")`.
    """
    from sklearn.metrics import (
        f1_score,
    )  # here, because importing it takes longer than most commands

    return float(f1_score(correct, predicted, average="macro", zero_division=0.0))


def chance(unit: Unit, metric: str) -> float:
    """What guessing uniformly among the choices of each example gives, in expectation.

    For accuracy that is the mean of (right choices) / (choices). For macro F1 with K classes, of which class k
    has share p_k, it is the mean of 2·p_k·q / (p_k + q) with q = 1/K: the F1 of the expected counts.
    """
    if metric == "accuracy":
        return float(np.mean(unit.right.sum(axis=1) / unit.choices))
    classes = len(unit.words or ())
    share = np.bincount(unit.correct, minlength=classes) / len(unit.correct)
    guess = 1.0 / classes
    return float(np.mean(2 * share * guess / (share + guess)))


def majority(unit: Unit, metric: str) -> float:
    """What always predicting the choice (by position) that is right most often gives."""
    total = len(unit.predicted)
    if metric == "accuracy":
        return int(unit.right.sum(axis=0).max()) / total
    support = np.bincount(unit.correct)
    most = int(support.max())
    return 2 * most / (total + most) / int(np.count_nonzero(support))


def value(unit: Unit, metric: str) -> float:
    """The metric itself, in [0, 1]."""
    if metric == "accuracy":
        return float(np.mean(unit.hits))
    return unit.macro_f1


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float | int]:
    """Mean, median, min, max and (population) standard deviation over templates, tasks or pairs."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "value": float(array.mean()),
        "median": float(np.median(array)),
        "min": float(array.min()),
        "max": float(array.max()),
        "std": float(array.std()),
    }


def interval(distribution: np.ndarray) -> tuple[float | None, float | None]:
    """The 95% percentile interval of a bootstrap distribution [R]; (None, None) where there is none."""
    if np.isnan(distribution).all():
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(distribution, [tail, 100 - tail])
    return float(low), float(high)


def resampled(units: Sequence[Unit], seed: int, resamples: int) -> dict[str, np.ndarray]:
    """The bootstrap distributions of the metrics of units that share their examples.

    Args:
      units: units of one dataset and split.
      seed: with the names of dataset and split it decides the draws, so that the same examples are
        drawn for every method and in every run.
      resamples: R, the number of draws.

    Returns:
      metric -> float [len(units), R]; NaN where a unit has fewer than two examples, or (for macro F1)
      where its choices are no classes.
    """
    order = sorted({example for unit in units for example in unit.examples})
    place = {example: index for index, example in enumerate(order)}
    shape = (len(units), resamples)
    if len(order) < 2:
        return {metric: np.full(shape, np.nan) for metric in METRICS}
    statistics = [
        statistic
        for unit in units
        for statistic in (_accuracy_of_counts(unit, place), _macro_f1_of_counts(unit, place))
    ]

    def all_of_them(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        counts = _counts(np.moveaxis(drawn, axis, -1))
        return np.stack([statistic(counts) for statistic in statistics])

    with warnings.catch_warnings():
        # A statistic that is NaN throughout (macro F1 without classes) is no mistake here.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            (np.arange(len(order)),),
            all_of_them,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, min(resamples, 2_000_000 // len(order))),
            method="percentile",
            rng=generator(units[0].dataset, units[0].split, seed),
        )
    distributions = np.asarray(result.bootstrap_distribution).reshape(
        len(units), len(METRICS), resamples
    )
    for index, unit in enumerate(units):
        if len(unit.examples) < 2:
            distributions[index] = np.nan
    return {metric: distributions[:, index] for index, metric in enumerate(METRICS)}


def over_templates(
    members: Sequence[np.ndarray], seed: int, resamples: int, *names: object
) -> np.ndarray:
    """The bootstrap distribution of a mean over tasks of means over templates, as templates are drawn anew.

    Args:
      members: for each task the values of its templates.
      seed, names: decide the draws.
      resamples: R.

    Returns:
      float [R]; NaN throughout where no task has more than one template.
    """
    if all(len(values) < 2 for values in members):
        return np.full(resamples, np.nan)
    draw = generator(seed, "templates", *names)
    means = [
        values[draw.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
        for values in members
    ]
    return np.mean(means, axis=0)


def generator(*names: object) -> np.random.Generator:
    """Random numbers that depend on `names` only, the same in every process."""
    text = "\n".join(map(str, names)).encode()
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    )


def _counts(drawn: np.ndarray) -> np.ndarray:
    """How often each of E examples was drawn: int [..., E] of indices -> float [..., E] of counts."""
    flat = drawn.reshape(-1, drawn.shape[-1]).astype(np.int64)
    size = flat.shape[-1]
    flat = flat + np.arange(len(flat))[:, None] * size
    counts = np.bincount(flat.ravel(), minlength=flat.size).astype(np.float64)
    return counts.reshape(drawn.shape)


Statistic = Callable[[np.ndarray], np.ndarray]


def _accuracy_of_counts(unit: Unit, place: dict[str, int]) -> Statistic:
    present = np.zeros(len(place))
    right = np.zeros(len(place))
    rows = [place[example] for example in unit.examples]
    present[rows] = 1
    right[rows] = unit.hits

    def of(counts: np.ndarray) -> np.ndarray:
        return _ratio(counts @ right, counts @ present)

    return of


def _macro_f1_of_counts(unit: Unit, place: dict[str, int]) -> Statistic:
    if unit.words is None:
        return lambda counts: np.full(counts.shape[:-1], np.nan)
    classes = len(unit.words)
    rows = [place[example] for example in unit.examples]
    truth = np.zeros((len(place), classes))
    guess = np.zeros((len(place), classes))
    truth[rows, unit.correct] = 1
    guess[rows, unit.predicted] = 1

    def of(counts: np.ndarray) -> np.ndarray:
        hits, support = counts @ (truth * guess), counts @ truth + counts @ guess
        scores = np.where(support > 0, 2 * hits / np.maximum(support, 1), 0.0)
        return _ratio(scores.sum(-1), (support > 0).sum(-1).astype(np.float64))

    return of


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below`, NaN where nothing was drawn."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
