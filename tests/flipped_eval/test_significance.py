"""Paired tests against scipy's and statsmodels-like values by hand, and against laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from flipped_eval import metrics, significance


def unit(predicted, right, template="a", task="t", label_set="original", words=True):
    size = len(predicted)
    matrix = np.zeros((size, 3), bool)
    matrix[np.arange(size), right] = True
    return metrics.Unit(
        "s", task, template, label_set, task, "validation", tuple(map(str, range(size))), matrix,
        np.array(predicted), np.full(size, 3), ("x", "y", "z") if words else None,
    )  # fmt: skip


@pytest.fixture
def pair():
    draw = np.random.default_rng(0)
    right = draw.integers(3, size=40)
    first = np.where(draw.random(40) < 0.5, right, draw.integers(3, size=40))
    second = np.where(draw.random(40) < 0.7, right, draw.integers(3, size=40))
    return unit(first, right), unit(second, right)


def find(rows, **names):
    found = [row for row in rows if all(row[name] == value for name, value in names.items())]
    assert len(found) == 1, found
    return found[0]


def test_p_of_accuracy_on_one_template_is_mcnemars(pair):
    rows = significance.compare(*[[unit] for unit in pair], seed=0, resamples=20_000)
    row = find(rows, template="a", metric="accuracy")
    assert row["p"] == pytest.approx(row["mcnemar"]["p"], abs=0.012)
    assert 0.02 < row["p"] < 0.9


def test_p_of_macro_f1_is_that_of_scipys_permutation_test(pair):
    first, second = pair

    def statistic(a, b):
        """a and b are predictions, side by side."""
        one, two = (unit(given.astype(int), first.correct) for given in (a, b))
        return abs(metrics.value(two, "macro_f1") - metrics.value(one, "macro_f1"))

    expected = scipy.stats.permutation_test(
        (first.predicted, second.predicted), statistic, permutation_type="samples", n_resamples=400,
        rng=np.random.default_rng(1), vectorized=False, alternative="greater",
    )  # fmt: skip
    rows = significance.compare([first], [second], seed=0, resamples=4000)
    row = find(rows, task=None, metric="macro_f1")
    assert abs(row["difference"]) == pytest.approx(expected.statistic, abs=1e-6)
    assert row["p"] == pytest.approx(expected.pvalue, abs=0.08)


def test_swaps_are_the_metric_of_swapped_predictions(pair):
    first, second = pair
    for metric in metrics.METRICS:
        coins = np.random.default_rng(3).integers(2, size=(5, 40))
        drawn = significance.swaps([(first, second)], metric, np.random.default_rng(3), 5)[0]
        # The examples' coins stand in the order of their names as texts.
        order = np.argsort(np.argsort(first.examples))
        for row, value in zip(coins[:, order].astype(bool), drawn, strict=True):
            one = unit(np.where(row, second.predicted, first.predicted), first.correct)
            two = unit(np.where(row, first.predicted, second.predicted), first.correct)
            expected = metrics.value(two, metric) - metrics.value(one, metric)
            assert value == pytest.approx(expected)


def test_the_interval_of_the_difference_is_paired():
    """Two models that err on the same examples but one differ certainly, however wide each one's interval is."""
    right = np.zeros(200, int)
    first = np.array([0, 1] * 100)
    second = first.copy()
    second[1:41:2] = 0
    row = find(
        significance.compare([unit(first, right)], [unit(second, right)], 0, 1000),
        task=None,
        metric="accuracy",
    )
    assert row["difference"] == pytest.approx(0.1)
    assert 0.05 < row["low"] < 0.1 < row["high"] < 0.15
    assert row["p"] < 0.01


def test_mcnemar_by_hand():
    """6 examples only the first has right, 1 only the second: 2 · (1 + 7) / 2^7 = 0.125."""
    right = np.zeros(20, int)
    first = np.array([0] * 16 + [1] * 4)
    second = np.array([1] * 6 + [0] * 10 + [0] + [1] * 3)
    rows = significance.compare([unit(first, right)], [unit(second, right)], 0, 100)
    row = find(rows, template="a", metric="accuracy")
    assert row["mcnemar"] == {"only_first": 6, "only_second": 1, "p": 0.125}


def test_a_model_does_not_differ_from_itself(pair):
    for row in significance.compare([pair[0]], [pair[0]], 0, 50):
        assert (row["difference"], row["p"]) == (0, 1.0)


def test_an_example_changes_sides_in_all_templates_of_its_task(pair):
    """Repeating a template must not make a difference more certain."""
    first, second = pair
    again = [metrics.dataclasses.replace(each, template="b") for each in pair]
    once = find(significance.compare([first], [second], 0, 2000), task=None, metric="accuracy")
    twice = find(
        significance.compare([first, again[0]], [second, again[1]], 0, 2000),
        task=None,
        metric="accuracy",
    )
    assert twice["p"] == once["p"] and (twice["low"], twice["high"]) == (once["low"], once["high"])


def test_only_what_both_have_is_compared(pair):
    first, second = pair
    half = second.part(list(range(20, 40)))
    row = find(significance.compare([first], [half], 0, 100), task=None, metric="accuracy")
    expected = half.hits.mean() - first.hits[20:].mean()
    assert row["n"] == 20 and row["difference"] == pytest.approx(expected)
    assert significance.compare([first], [unit([0], [0], template="other")], 0, 10) == []


def test_p_values_of_tasks_are_corrected_for_their_number(pair):
    right = np.zeros(60, int)
    units = [
        [
            unit(np.where(np.arange(60) < hits, 0, 1), right, task=task)
            for task, hits in enumerate(row)
        ]
        for row in ((30, 30, 30), (31, 40, 50))
    ]
    units = [
        [metrics.dataclasses.replace(u, task=str(u.task), dataset=str(u.task)) for u in row]
        for row in units
    ]
    rows = significance.compare(*units, seed=0, resamples=500)
    tasks = [
        row for row in rows if row["task"] and not row["template"] and row["metric"] == "accuracy"
    ]
    expected = scipy.stats.false_discovery_control([row["p"] for row in tasks])
    assert [row["p_adjusted"] for row in tasks] == pytest.approx(expected, abs=1e-6)
    assert all(row["p_adjusted"] >= row["p"] for row in tasks)


def test_all_pairs_of_few_models_and_the_first_against_each_of_many(pair):
    def pairs(count):
        models = {str(n): [pair[n % 2]] for n in range(count)}
        return {(row["first"], row["second"]) for row in significance.compare_all(models, 0, 5)}

    assert len(pairs(3)) == 3
    assert pairs(8) == {("0", str(n)) for n in range(1, 8)}
