"""From units to the rows of `results.json`: every number with its baselines, its spread and its intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flipped_core.files import Json
from flipped_eval import metrics
from mixtures.suites import ALL_SUBSTITUTES, ORIGINAL

SUBSTITUTES = ALL_SUBSTITUTES
Members = Sequence[Sequence[int]]  # for each task (or task and label set) the places of its units


@dataclass(frozen=True)
class _Measured:
    """Units and one metric of each of them; `distribution` is [len(units), R]."""

    metric: str
    units: Sequence[metrics.Unit]
    value: np.ndarray
    chance: np.ndarray
    majority: np.ndarray
    distribution: np.ndarray
    seed: int

    def draws(self, members: Members) -> np.ndarray:
        """The distribution of the mean over members over examples, float [R]."""
        return np.mean([self.distribution[list(one)].mean(axis=0) for one in members], axis=0)


def rows(units: Sequence[metrics.Unit], seed: int, resamples: int) -> list[Json]:
    """One row for each number.

    - Each unit: `task` and `template` given.
    - Each (task, label set), over its templates: `template` null, with median, min, max and std.
    - Each suite, over its tasks: `task` null too. Where a suite has substituted label words, once for
      the original words and once (`label_set` "all substitutes") over all (task, label set) pairs; the
      same mean is given for each task.

    All values are in [0, 1]. `low` and `high` are the 95% bootstrap interval over examples, `templates_low` and
    `templates_high` that over templates; null where there is none. Means with substituted label words also have
    `drop`, from the original words of the same tasks, with `drop_low` and `drop_high`.
    """
    distributions = _distributions(units, seed, resamples)
    found: list[Json] = []
    for suite in dict.fromkeys(unit.suite for unit in units):
        for metric in metrics.METRICS:
            chosen = [
                index
                for index, unit in enumerate(units)
                if unit.suite == suite and metric in unit.metrics()
            ]
            here = [units[index] for index in chosen]
            value, chance, majority = (
                np.array([of(unit, metric) for unit in here])
                for of in (metrics.value, metrics.chance, metrics.majority)
            )
            drawn = distributions[metric][chosen]
            found += _rows_of_suite(_Measured(metric, here, value, chance, majority, drawn, seed))
    return found


def _distributions(
    units: Sequence[metrics.Unit], seed: int, resamples: int
) -> dict[str, np.ndarray]:
    """metric -> float [len(units), R]; units over the same examples are drawn together."""
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        together[unit.dataset, unit.split].append(index)
    found = {metric: np.full((len(units), resamples), np.nan) for metric in metrics.METRICS}
    for indices in together.values():
        drawn = metrics.resampled([units[index] for index in indices], seed, resamples)
        for metric, values in drawn.items():
            found[metric][indices] = values
    return found


def _rows_of_suite(measured: _Measured) -> list[Json]:
    """All rows of one metric of one suite."""
    found: list[Json] = []
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, unit in enumerate(measured.units):
        groups[unit.task, unit.label_set].append(index)
        words = {"words": list(unit.words)} if unit.words else {}
        found.append(
            _row(measured, [[index]]) | {"template": unit.template, "ties": unit.ties, **words}
        )

    def add(keys: Sequence[tuple[str, str]], **names: Any) -> None:
        """The row of these (task, label set) pairs, with the drop from their original words."""
        members = [groups[key] for key in keys]
        before = [groups.get((task, ORIGINAL)) for task, _ in keys]
        drop: Json = {}
        if all(label_set != ORIGINAL for _, label_set in keys) and all(before):
            drop = _drop(measured, members, [one for one in before if one])
        found.append(_row(measured, members) | drop | names)

    for key, members in groups.items():
        ties = sum(measured.units[index].ties for index in members)
        add([key], templates=len(members), ties=ties)
    substitutes = [key for key in groups if key[1] != ORIGINAL]
    tasks = list(dict.fromkeys(task for task, _ in substitutes))
    for task in tasks:
        pairs = [key for key in substitutes if key[0] == task]
        add(pairs, label_set=SUBSTITUTES, label_sets=len(pairs))
    if substitutes:
        names = {"task": None, "tasks": len(tasks), "label_sets": len(substitutes)}
        add(substitutes, label_set=SUBSTITUTES, **names)
    originals = [key for key in groups if key[1] == ORIGINAL]
    if originals:
        add(originals, task=None, tasks=len(originals))
    return found


def _row(measured: _Measured, members: Members) -> Json:
    """The mean over `members`, each of which is the mean over its units, with spread and intervals."""

    def means(of: np.ndarray) -> np.ndarray:
        return np.array([of[list(indices)].mean() for indices in members])

    units = [measured.units[index] for indices in members for index in indices]
    low, high = metrics.interval(measured.draws(members))
    numbers: dict[str, float | None] = {
        **metrics.spread(means(measured.value)),
        "chance": float(means(measured.chance).mean()),
        "majority": float(means(measured.majority).mean()),
        "low": low,
        "high": high,
    }
    if len(units) == 1:
        for name in ("median", "min", "max", "std"):
            del numbers[name]
    else:
        if len(members) == 1:  # the spread of a task is that over its templates
            numbers |= metrics.spread(measured.value[list(members[0])])
        names = [units[0].suite, measured.metric, *dict.fromkeys(u.task for u in units)]
        drawn = metrics.over_templates(
            [measured.value[list(indices)] for indices in members],
            measured.seed,
            measured.distribution.shape[1],
            *names,
        )
        numbers["templates_low"], numbers["templates_high"] = metrics.interval(drawn)
    examples = {(unit.dataset, unit.split, example) for unit in units for example in unit.examples}
    return {
        "suite": units[0].suite,
        "task": units[0].task,
        "template": None,
        "label_set": units[0].label_set,
        "metric": measured.metric,
        "n": len(examples),
        **_rounded(numbers),
    }


def _drop(measured: _Measured, members: Members, originals: Members) -> Json:
    """How much lower the members are than the same tasks with their original words; pairs share their examples."""

    def mean(of: Members) -> float:
        return float(np.mean([measured.value[list(one)].mean() for one in of]))

    low, high = metrics.interval(measured.draws(originals) - measured.draws(members))
    return _rounded({"drop": mean(originals) - mean(members), "drop_low": low, "drop_high": high})


def _rounded(numbers: dict[str, float | None]) -> Json:
    return {name: None if number is None else round(number, 6) for name, number in numbers.items()}
