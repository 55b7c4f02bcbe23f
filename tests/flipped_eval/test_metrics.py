"""Metrics against values worked out by hand, and against laws that hold for any predictions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_eval import metrics


def unit(correct, predicted, classes=2, words=True, examples=None, **names) -> metrics.Unit:
    size, most = len(correct), max(int(np.max(classes)), 1)
    right = np.zeros((size, most), bool)
    for row, choices in enumerate(correct):
        right[row, choices] = True
    return metrics.Unit(
        suite="s",
        task=names.get("task", "t"),
        template=names.get("template", "a"),
        label_set="original",
        dataset=names.get("dataset", "d"),
        split="validation",
        examples=tuple(map(str, range(size))) if examples is None else tuple(examples),
        right=right,
        predicted=np.array(predicted),
        choices=np.broadcast_to(np.array(classes), (size,)),
        words=tuple("abcdefgh"[: int(np.max(classes))]) if words else None,
    )


def test_prediction_is_the_highest_score_and_the_first_of_equals():
    assert metrics.predict([-3.0, -1.0, -2.0]) == (1, False)
    assert metrics.predict([-1.0, -2.0, -1.0]) == (0, True)
    assert metrics.predict([-5.0, -1.0, -1.0]) == (1, True)
    assert metrics.predict([-1.0, -2.0, -2.0]) == (0, False)


@pytest.mark.parametrize("scores", [[], [float("nan"), -1.0]])
def test_scores_that_cannot_be_ranked_are_refused(scores):
    with pytest.raises(ValueError, match="cannot rank"):
        metrics.predict(scores)


def test_accuracy_and_macro_f1_by_hand():
    # Class 0: 2 hits, 3 right, 3 predicted: 2/3. Class 1: 1 hit, 2 right, 2 predicted: 1/2.
    one = unit([0, 0, 0, 1, 1], [0, 0, 1, 0, 1])
    assert metrics.value(one, "accuracy") == pytest.approx(3 / 5)
    assert metrics.value(one, "macro_f1") == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_macro_f1_does_not_count_a_class_that_occurs_nowhere():
    one = unit([0, 0, 1], [0, 0, 1], classes=3)
    assert metrics.value(one, "macro_f1") == 1.0


def test_chance_by_hand():
    assert metrics.chance(
        unit([0, 1, 2], [0, 0, 0], classes=[2, 4, 4], words=False), "accuracy"
    ) == (pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3))
    # Shares 3/4 and 1/4, guesses 1/2 each: 2·(3/8)/(5/4) = 3/5 and 2·(1/8)/(3/4) = 1/3.
    assert metrics.chance(unit([0, 0, 0, 1], [0] * 4), "macro_f1") == pytest.approx(
        (3 / 5 + 1 / 3) / 2
    )


def test_chance_of_macro_f1_is_what_guessing_gives():
    draw = np.random.default_rng(0)
    correct = draw.choice(3, size=20_000, p=[0.6, 0.3, 0.1])
    guessed = unit(correct, draw.integers(3, size=20_000), classes=3)
    assert metrics.value(guessed, "macro_f1") == pytest.approx(
        metrics.chance(guessed, "macro_f1"), abs=0.01
    )


def test_majority_is_a_constant_prediction():
    correct = [0, 1, 1, 1, 2]
    one, constant = unit(correct, [0] * 5, classes=3), unit(correct, [1] * 5, classes=3)
    for metric in metrics.METRICS:
        assert metrics.majority(one, metric) == pytest.approx(metrics.value(constant, metric))


def test_spread_by_hand():
    found = metrics.spread([0.2, 0.4, 0.9])
    assert found == pytest.approx(
        {
            "value": 0.5,
            "median": 0.4,
            "min": 0.2,
            "max": 0.9,
            "std": np.sqrt((0.09 + 0.01 + 0.16) / 3),
        }
    )


def test_several_right_choices():
    """Two of three choices are best in the first example: guessing gets it with 2/3, and either counts."""
    one = unit([[0, 2], [1]], [2, 0], classes=[3, 3], words=False)
    assert metrics.chance(one, "accuracy") == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert metrics.value(one, "accuracy") == 0.5
    assert one.correct.tolist() == [2, 1]
    assert metrics.majority(one, "accuracy") == 0.5
    assert metrics.majority(unit([[0, 2], [2]], [0, 0], classes=3), "accuracy") == 1.0


predictions = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(pairs=predictions, seed=st.integers(0, 99))
def test_order_of_examples_and_names_of_classes_do_not_matter(pairs, seed):
    correct, predicted = np.array(pairs).T
    draw = np.random.default_rng(seed)
    order, names = draw.permutation(len(pairs)), draw.permutation(4)
    there = unit(correct, predicted, classes=4)
    shuffled = unit(correct[order], predicted[order], classes=4)
    renamed = unit(names[correct], names[predicted], classes=4)
    for metric in metrics.METRICS:
        for of in (metrics.value, metrics.chance, metrics.majority):
            assert of(shuffled, metric) == pytest.approx(of(there, metric))
        assert metrics.value(renamed, metric) == pytest.approx(metrics.value(there, metric))
        assert metrics.chance(renamed, metric) == pytest.approx(metrics.chance(there, metric))


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-50, 0, width=32), min_size=2, max_size=6, unique=True),
    seed=st.integers(0, 99),
)
def test_order_of_choices_does_not_matter(scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    best, tie = metrics.predict(scores)
    moved, _ = metrics.predict([scores[place] for place in order])
    assert order[moved] == best and not tie


def test_resampling_agrees_with_the_metrics_on_each_draw(monkeypatch):
    """Each column of the distributions is what scikit-learn says of the examples that were drawn."""
    draws = []
    counts = metrics._counts
    monkeypatch.setattr(metrics, "_counts", lambda drawn: draws.append(drawn) or counts(drawn))
    draw = np.random.default_rng(1)
    one = unit(draw.integers(3, size=15), draw.integers(3, size=15), classes=3, template="a")
    few = [3, 7, 8, 1, 0]
    two = unit(
        one.correct[few], draw.integers(3, size=5), classes=3, template="b", examples=map(str, few)
    )
    found = metrics.resampled([one, two], seed=0, resamples=50)
    order = sorted(one.examples)
    column = 0
    for drawn in draws:
        if drawn.ndim == 1:
            continue
        for places in drawn:
            for row, each in enumerate((one, two)):
                at = {example: index for index, example in enumerate(each.examples)}
                rows = [at[order[place]] for place in places if order[place] in at]
                if rows:
                    value = metrics.macro_f1(each.correct[rows], each.predicted[rows])
                    assert found["macro_f1"][row, column] == pytest.approx(value)
                    value = np.mean(each.correct[rows] == each.predicted[rows])
                    assert found["accuracy"][row, column] == pytest.approx(value)
            column += 1
    assert column == 50


def test_interval_of_accuracy_is_near_the_binomial_one():
    size, share = 400, 0.7
    one = unit([0] * size, [0] * int(size * share) + [1] * (size - int(size * share)))
    low, high = metrics.interval(metrics.resampled([one], seed=0, resamples=4000)["accuracy"][0])
    reach = 1.96 * np.sqrt(share * (1 - share) / size)
    assert (low, high) == (
        pytest.approx(share - reach, abs=0.006),
        pytest.approx(share + reach, abs=0.006),
    )


def test_templates_of_the_same_examples_are_drawn_together():
    """A template that repeats another must not make the interval of the mean narrower."""
    draw = np.random.default_rng(2)
    correct, predicted = draw.integers(2, size=80), draw.integers(2, size=80)
    same = [unit(correct, predicted, template=name) for name in "abcd"]
    found = metrics.resampled(same, seed=0, resamples=300)["accuracy"]
    assert (found == found[0]).all()
    assert found[0].std() == pytest.approx(np.sqrt(0.25 / 80), rel=0.2)


def test_draws_depend_on_the_data_and_the_seed_only():
    one = unit([0, 1] * 20, [0, 0] * 20)
    first, again = (metrics.resampled([one], seed=3, resamples=40)["accuracy"] for _ in range(2))
    other = metrics.resampled([one], seed=4, resamples=40)["accuracy"]
    assert (first == again).all() and not (first == other).all()


def test_interval_over_templates_is_that_of_a_mean_of_draws():
    values = np.random.default_rng(0).random(30)
    drawn = metrics.over_templates([values], 0, 4000, "task")
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(values.std() / np.sqrt(30), rel=0.1)
    with_another = metrics.over_templates([values, np.array([0.5])], 0, 4000, "task")
    assert with_another.std() == pytest.approx(drawn.std() / 2, rel=0.1)
    assert np.isnan(metrics.over_templates([values[:1], values[:1]], 0, 10, "task")).all()


def test_one_example_has_no_interval():
    found = metrics.resampled([unit([0], [0])], seed=0, resamples=10)
    assert metrics.interval(found["accuracy"][0]) == (None, None)


def test_macro_f1_is_for_classes_only():
    one = unit([0, 1, 0], [0, 1, 1], words=False)
    assert one.metrics() == ("accuracy",)
    found = metrics.resampled([one], seed=0, resamples=10)
    assert np.isnan(found["macro_f1"]).all() and not np.isnan(found["accuracy"]).any()
