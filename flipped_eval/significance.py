"""Whether two models differ: the same examples under the same templates, compared in pairs.

The difference of two means has a 95% interval (the bootstrap of `metrics.resampled`, in which an example is drawn
for both models at once) and a p-value: how often a difference at least as large comes out when for each example,
in all templates of its task together, a coin decides which of the two predictions is whose (a permutation test).
For a single template there is McNemar's exact test, which looks only at the examples that one model has right and
the other wrong. Of several tasks of a suite the p-values are also given corrected for there being several
(Benjamini and Hochberg 1995).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from flipped_core.files import Json
from flipped_eval import metrics
from flipped_eval.aggregates import SUBSTITUTES
from flipped_eval.metrics import Unit
from mixtures.suites import ORIGINAL

MODELS_COMPARED = 6  # of more models than this only the first is compared with each other one
_NUMBERS_AT_ONCE = 4_000_000

Both = tuple[Unit, Unit]


def compare_all(models: Mapping[str, Sequence[Unit]], seed: int, resamples: int) -> list[Json]:
    """Each pair of models, label by label; see `compare`."""
    pairs = list(itertools.combinations(models, 2))
    if len(models) > MODELS_COMPARED:
        pairs = [pair for pair in pairs if pair[0] == next(iter(models))]
    return [
        {"first": first, "second": second} | row
        for first, second in pairs
        for row in compare(models[first], models[second], seed, resamples)
    ]


def compare(first: Sequence[Unit], second: Sequence[Unit], seed: int, resamples: int) -> list[Json]:
    """What two models differ by, on the units and examples that both have.

    Args:
      first, second: the units of the two.
      seed: decides the draws.
      resamples: R, of the bootstrap and of the permutation test; the smallest p-value is 1 / (R + 1).

    Returns:
      Rows for each suite (`task` null), each task (`template` null) and each template: `difference` is second
      minus first in [-1, 1], with `low` and `high`, `p`, for tasks `p_adjusted`, for templates `mcnemar`: how many
      examples only the first and only the second has right, and McNemar's p.
    """
    names = {_name(unit): unit for unit in second}
    both = [
        pair
        for unit in first
        if _name(unit) in names and (pair := _common(unit, names[_name(unit)])) is not None
    ]
    rows: list[Json] = []
    for metric in metrics.METRICS:
        here = [
            pair for pair in both if metric in pair[0].metrics() and metric in pair[1].metrics()
        ]
        if here:
            rows += _rows(here, metric, seed, resamples)
    return rows


def _name(unit: Unit) -> tuple[str, ...]:
    return (unit.suite, unit.task, unit.template, unit.label_set, unit.dataset, unit.split)


def _common(first: Unit, second: Unit) -> Both | None:
    """The two units with the examples that both have; None where there are none."""
    if first.examples == second.examples:
        return first, second
    places = {example: place for place, example in enumerate(second.examples)}
    rows = [row for row, example in enumerate(first.examples) if example in places]
    if not rows:
        return None
    return first.part(rows), second.part([places[first.examples[row]] for row in rows])


def _rows(both: Sequence[Both], metric: str, seed: int, resamples: int) -> list[Json]:
    difference = np.array([metrics.value(b, metric) - metrics.value(a, metric) for a, b in both])
    drawn, swapped = _distributions(both, metric, seed, resamples)
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, (unit, _) in enumerate(both):
        groups[unit.suite, unit.task, unit.label_set].append(index)

    def row(members: Sequence[Sequence[int]], suite: str, task: str | None, label_set: str) -> Json:
        def mean(of: np.ndarray) -> np.ndarray:
            return np.mean([of[list(one)].mean(axis=0) for one in members], axis=0)

        low, high = metrics.interval(mean(drawn))
        value = float(mean(difference))
        p = (1 + np.count_nonzero(np.abs(mean(swapped)) >= abs(value) - 1e-12)) / (resamples + 1)
        n = {
            (a.dataset, a.split, e)
            for one in members
            for i in one
            for a in both[i][:1]
            for e in a.examples
        }
        return {
            "suite": suite,
            "task": task,
            "template": None,
            "label_set": label_set,
            "metric": metric,
            "n": len(n),
            "difference": round(value, 6),
            "low": None if low is None else round(low, 6),
            "high": None if high is None else round(high, 6),
            "p": round(float(p), 6),
        }

    rows: list[Json] = []
    for suite in dict.fromkeys(unit.suite for unit, _ in both):
        for label_set in (ORIGINAL, SUBSTITUTES):
            keys = [
                k for k in groups if k[0] == suite and (k[2] == ORIGINAL) == (label_set == ORIGINAL)
            ]
            if not keys:
                continue
            tasks: list[Json] = []
            for task in dict.fromkeys(key[1] for key in keys):
                members = [groups[key] for key in keys if key[1] == task]
                tasks.append(row(members, suite, task, label_set))
            adjusted = scipy.stats.false_discovery_control([one["p"] for one in tasks])
            for one, p in zip(tasks, adjusted, strict=True):
                one["p_adjusted"] = round(float(p), 6)
            rows += [
                row([groups[key] for key in keys], suite, None, label_set) | {"tasks": len(tasks)},
                *tasks,
            ]
    if metric == "accuracy":
        for index, (a, b) in enumerate(both):
            of_template = row([[index]], a.suite, a.task, a.label_set)
            rows.append(of_template | {"template": a.template, "mcnemar": _mcnemar(a, b)})
    return rows


def _mcnemar(first: Unit, second: Unit) -> Json:
    """McNemar's exact test: of the examples that one has right and the other wrong, half would be each one's."""
    only_first = int(np.count_nonzero(first.hits & ~second.hits))
    only_second = int(np.count_nonzero(second.hits & ~first.hits))
    differing = only_first + only_second
    p = scipy.stats.binomtest(only_first, differing).pvalue if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": round(float(p), 6)}


def _distributions(
    both: Sequence[Both], metric: str, seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The difference of each pair under the bootstrap and under swaps, each float [len(both), R]."""
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, (unit, _) in enumerate(both):
        together[unit.dataset, unit.split].append(index)
    drawn = np.full((len(both), resamples), np.nan)
    swapped = np.zeros((len(both), resamples))
    for (dataset, split), indices in together.items():
        pairs = [both[index] for index in indices]
        units = [unit for pair in pairs for unit in pair]
        values = metrics.resampled(units, seed, resamples)[metric]
        drawn[indices] = values[1::2] - values[0::2]
        draw = metrics.generator(dataset, split, seed, "swaps")
        swapped[indices] = swaps(pairs, metric, draw, resamples)
    return drawn, swapped


def swaps(
    pairs: Sequence[Both], metric: str, draw: np.random.Generator, resamples: int
) -> np.ndarray:
    """The differences (second minus first) when the predictions of random examples change sides.

    Args:
      pairs: units of one dataset and split, with the same examples in both of a pair.
      metric: "accuracy" or "macro_f1".
      draw: gives the coins; an example's coin is the same in all pairs.
      resamples: R.

    Returns:
      float [len(pairs), R].
    """
    order = sorted({example for unit, _ in pairs for example in unit.examples})
    place = {example: index for index, example in enumerate(order)}
    found = np.zeros((len(pairs), resamples))
    step = max(1, _NUMBERS_AT_ONCE // len(order))
    for start in range(0, resamples, step):
        coins = draw.integers(2, size=(min(step, resamples - start), len(order))).astype(np.float64)
        for index, (a, b) in enumerate(pairs):
            rows = [place[example] for example in a.examples]
            of = _swapped_accuracy if metric == "accuracy" else _swapped_macro_f1
            found[index, start : start + step] = of(a, b, coins[:, rows])
    return found


def _swapped_accuracy(a: Unit, b: Unit, coins: np.ndarray) -> np.ndarray:
    """coins [R, E], 1 where the predictions change sides -> differences [R]."""
    lead = b.hits.astype(np.float64) - a.hits
    return (lead.sum() - 2 * coins @ lead) / len(lead)


def _swapped_macro_f1(a: Unit, b: Unit, coins: np.ndarray) -> np.ndarray:
    """As `_swapped_accuracy`. A class' F1 is made of sums over examples, which the coins change linearly."""
    assert a.words is not None
    classes = np.arange(len(a.words))
    hits, size = [], []
    for unit in (a, b):
        truth = unit.correct[:, None] == classes
        guess = unit.predicted[:, None] == classes
        hits.append((truth & guess).astype(np.float64))
        size.append(truth.astype(np.float64) + guess)

    def f1(first: int, second: int) -> np.ndarray:
        above = 2 * (hits[first].sum(0) + coins @ (hits[second] - hits[first]))
        below = size[first].sum(0) + coins @ (size[second] - size[first])
        scores = np.where(below > 0.5, above / np.maximum(below, 1), 0.0)
        return scores.sum(-1) / (below > 0.5).sum(-1)

    return f1(1, 0) - f1(0, 1)
