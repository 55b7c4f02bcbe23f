"""The scorer against the numpy reference: any batch size, order, bucketing and repetition gives the same scores."""

from __future__ import annotations

import numpy as np
import pytest

from flipped_errors import UserError
from t5_engine import batching
from t5_engine.batching import Buckets, Shape
from t5_engine.scorer import Scorer
from tests.t5_engine.conftest import VOCAB
from tests.t5_engine.reference import NumpyT5

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pairs():
    """Prompts with 1 to 4 choices of unlike length, among them a shared choice, a repeated pair, an empty target."""
    rng = np.random.default_rng(0)
    found = []
    shared = [5, 6, 1]
    for i in range(18):
        prompt = rng.integers(2, VOCAB, rng.integers(1, 30)).tolist()
        for _ in range(1 + i % 4):
            found.append((prompt, [*rng.integers(2, VOCAB, rng.integers(0, 9)).tolist(), 1]))
        found.append((prompt, shared))
    return [*found, found[3], ([7, 8, 9], [])]


@pytest.fixture(scope="module")
def expected(config, params, pairs):
    model = NumpyT5(params, config.num_heads)
    return np.array([model.score(*pair) for pair in pairs])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_scores_equal_the_reference_at_any_batch_size(config, params, pairs, expected, batch_size):
    scores = Scorer(config, params, batch_size=batch_size).score(pairs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert scores[-1] == 0 and scores[-2] == scores[3]


def test_scores_follow_their_pairs_in_any_order(config, params, pairs, expected):
    order = np.random.default_rng(1).permutation(len(pairs))
    scores = Scorer(config, params, batch_size=7).score([pairs[i] for i in order])
    np.testing.assert_allclose(scores, expected[order], atol=TOLERANCE)


@pytest.mark.parametrize(
    "buckets", [((64,), (16,), (8,)), ((8, 32), (12,), (5,)), ((10,), (3,), (2,))]
)
def test_scores_do_not_depend_on_the_buckets(config, params, pairs, expected, buckets):
    """The last case is beyond its largest bucket everywhere."""
    inputs, targets, choices = buckets
    scorer = Scorer(
        config, params, input_buckets=inputs, target_buckets=targets, choice_buckets=choices
    )
    np.testing.assert_allclose(scorer.score(pairs), expected, atol=TOLERANCE)


def test_nothing_is_computed_twice(config, params, pairs):
    """Three times the pairs: the same batches."""
    scorer = Scorer(config, params, batch_size=8)
    assert scorer.shapes(pairs * 3) == scorer.shapes(pairs)
    seen = []
    scorer.score(pairs * 3, progress=lambda done, total: seen.append((done, total)))
    distinct = len({(tuple(a), tuple(b)) for a, b in pairs})
    assert seen[-1] == (distinct, distinct) and seen == sorted(seen)


def test_no_pairs_give_no_scores(config, params):
    assert Scorer(config, params).score([]).shape == (0,)


def test_mistakes_are_named(config, params):
    with pytest.raises(UserError, match="batch_size"):
        Scorer(config, params, batch_size=0)
    with pytest.raises(UserError, match="buckets of targets: expected rising"):
        Scorer(config, params, target_buckets=(8, 4))


def plan(pairs, **options):
    groups, _ = batching.group_pairs(pairs)
    settings = {
        "rows": lambda shape: max(1, 8 // shape.choices),
        "row_cost": lambda shape: float(shape.inputs + shape.targets * shape.choices),
        "shape_cost": 0.0,
        "compiled": (),
        **options,
    }
    return batching.plan(groups, Buckets((8, 16, 32), (4, 8, 16), (1, 2, 4, 8)), **settings)


def test_plan_holds_every_group_once_and_fits_it(pairs):
    groups, slots = batching.group_pairs(pairs)
    for shape_cost in (0.0, 100.0, 1e9):
        batches = plan(pairs, shape_cost=shape_cost)
        found = sorted(slot for _, batch in batches for group in batch for slot in group.slots)
        assert found == list(range(len(set(slots)))) == sorted(set(slots))
        for shape, batch in batches:
            assert len(batch) <= max(1, 8 // shape.choices)
            for group in batch:
                assert len(group.input_ids) <= shape.inputs
                assert max(map(len, group.target_ids)) <= shape.targets
                assert len(group.target_ids) <= shape.choices


def test_plan_compiles_fewer_shapes_when_compiling_costs_more(pairs):
    counts = [len({shape for shape, _ in plan(pairs, shape_cost=c)}) for c in (0.0, 300.0, 1e9)]
    assert counts[0] > counts[1] > counts[2] == 1


def test_plan_prefers_a_compiled_shape(pairs):
    compiled = Shape(32, 16, 8)
    assert {shape for shape, _ in plan(pairs, shape_cost=1e9, compiled=[compiled])} == {compiled}
