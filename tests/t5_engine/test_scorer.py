"""The scorer against the numpy reference: any batch size, order, bucketing and repetition gives the same scores."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import batching, scorer
from t5_engine.batching import Planner, Shape
from t5_engine.ragged import Ragged
from t5_engine.scorer import Scorer
from tests.t5_engine.conftest import VOCAB
from tests.t5_engine.reference import NumpyT5

TOLERANCE = 1e-4


def make_pairs():
    """Prompts with 1 to 5 choices of unlike length, a shared choice, a repeated pair, an empty target, long inputs
    and targets and an input with so many targets that they do not fit side by side."""
    rng = np.random.default_rng(0)

    def words(least, most):
        return rng.integers(2, VOCAB, rng.integers(least, most)).tolist()

    found = []
    for i in range(18):
        prompt = words(1, 30)
        found += [(prompt, [*words(0, 9), 1]) for _ in range(1 + i % 4)]
        found.append((prompt, [5, 6, 1]))
    found += [(words(70, 71), [*words(20, 21), 1]), (found[0][0], found[3][1])]
    found += [(words(170, 171), [*words(140, 141), 1]), (words(120, 121), [*words(110, 111), 1])]
    found += [([9, 1], [*words(3, 9), 1]) for _ in range(40)]
    return [*found, found[3], ([7, 8, 9], [])]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


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


@pytest.mark.parametrize("batch_tokens", [40, 200, 4000])
def test_scores_do_not_depend_on_the_room_in_a_batch(config, params, pairs, expected, batch_tokens):
    """In the smallest, some pairs alone are larger than a batch, and are not cut."""
    scores = Scorer(config, params, batch_tokens=batch_tokens).score(pairs)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_scores_follow_their_pairs_in_any_order(config, params, pairs, expected):
    order = np.random.default_rng(1).permutation(len(pairs))
    scores = Scorer(config, params, batch_size=7).score([pairs[i] for i in order])
    np.testing.assert_allclose(scores, expected[order], atol=TOLERANCE)


@pytest.mark.parametrize("buckets", [((64,), (16,)), ((8, 32), (12,)), ((10,), (3,))])
def test_scores_do_not_depend_on_the_buckets(config, params, pairs, expected, buckets):
    """The last case is beyond its largest bucket everywhere."""
    inputs, targets = buckets
    one = Scorer(config, params, input_buckets=inputs, target_buckets=targets, batch_tokens=300)
    np.testing.assert_allclose(one.score(pairs), expected, atol=TOLERANCE)


def test_scores_are_the_same_where_sequences_are_attended_to_side_by_side(
    config, params, pairs, expected, monkeypatch
):
    """As on an accelerator."""
    monkeypatch.setattr(scorer, "OneByOne", Ragged)
    scores = Scorer(config, params, batch_tokens=300).score(pairs)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_nothing_is_computed_twice(config, params, pairs):
    """Three times the pairs: the same batches, each input and each pair in one of them."""
    one = Scorer(config, params, batch_tokens=200)
    batches = one.plan(pairs * 3)
    inputs = collections.Counter(ids.tobytes() for batch in batches for ids in batch.inputs[0])
    assert set(inputs.values()) == {1}
    assert len(inputs) == len({tuple(a) for a, b in pairs if b})
    seen = []
    one.score(pairs * 3, progress=lambda done, total: seen.append((done, total)))
    distinct = len({(tuple(a), tuple(b)) for a, b in pairs if b})
    assert seen[-1] == (distinct, distinct) and seen == sorted(seen)


def test_what_fails_on_the_way_ends_the_call_at_once(config, params, pairs):
    """Batches that have not begun are not computed."""
    one = Scorer(config, params, batch_tokens=40)
    one.score(pairs)
    begun = []

    def progress(done, total):
        raise KeyboardInterrupt

    started = Scorer._started

    def counted(batch):
        begun.append(batch)
        yield from started(one, batch)

    one._started = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.score(pairs, progress)
    assert 0 < len(begun) < len(one.plan(pairs)) / 2


def test_a_later_call_compiles_nothing_new(config, params, pairs):
    """Other pairs of the same kind go into the shapes that are there."""
    one = Scorer(config, params, batch_tokens=300)
    one.score(pairs)
    compiled = set(one.compiled)
    one.score([([*a, 3], [4, *b]) for a, b in pairs[::2]])
    assert one.compiled == compiled


def test_no_pairs_give_no_scores(config, params):
    assert Scorer(config, params).score([]).shape == (0,)


def test_mistakes_are_named(config, params):
    with pytest.raises(UserError, match="batch_size: expected at least 1, got 0"):
        Scorer(config, params, batch_size=0)
    with pytest.raises(UserError, match="buckets of targets: expected rising"):
        Scorer(config, params, target_buckets=(8, 4))
    with pytest.raises(UserError, match="pair 1: expected an input"):
        Scorer(config, params).score([([3], [4]), ([], [4])])
    with pytest.raises(UserError, match=f"expected ids from 0 to {VOCAB - 1}.*got {VOCAB}"):
        Scorer(config, params).score([([3], [VOCAB])])


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_log_probs_are_those_of_the_softmax(parts):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(5, 16)) * 4, rng.normal(size=(16, 48))
    targets = np.array([0, 47, 5, 6, 30])
    logits = x @ kernel
    exact = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = scorer.log_probs(jnp.float32(x), jnp.float32(kernel), jnp.array(targets), parts)
    np.testing.assert_allclose(found, exact[np.arange(5), targets], atol=1e-4)
    assert np.ptp(exact) > 20


def planner(**options) -> Planner:
    settings = {
        "input_buckets": (8, 16, 32),
        "target_buckets": (4, 8, 16),
        "tokens": 256,
        "most_inputs": None,
        "batch_cost": lambda shape: float(
            shape.input_tokens + shape.target_tokens + shape.inputs * shape.input_length**2
        ),
        "shape_cost": 0.0,
        **options,
    }
    return Planner(**settings)


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("shape_cost", [0.0, 300.0, 1e9])
def test_a_plan_holds_every_pair_once_and_fits_it(pairs, shape_cost, devices):
    groups, slot_of_pair, slots = batching.group_pairs(pairs)
    assert sorted(set(slot_of_pair.tolist())) == list(range(slots))
    found = []
    for batch in planner(shape_cost=shape_cost, devices=devices).plan(groups):
        shape = batch.shape
        for inputs in batch.inputs:
            assert len(inputs) <= shape.inputs
            assert sum(map(len, inputs)) <= shape.input_tokens
            assert max(map(len, inputs)) <= shape.input_length
        for go in batch.goes:
            assert len(go) <= len(batch.inputs) <= devices
            for inputs, bundles in zip(batch.inputs, go, strict=False):
                assert len(bundles) <= shape.bundles
                lengths = [sum(map(len, bundle.target_ids)) for bundle in bundles]
                assert sum(lengths) <= shape.target_tokens
                assert max(lengths) <= shape.bundle_length
                for bundle in bundles:
                    found += bundle.slots
                    own = {slot: group for group in groups for slot in group.slots}
                    for slot, ids in zip(bundle.slots, bundle.target_ids, strict=True):
                        assert own[slot].input_ids.tobytes() == inputs[bundle.input].tobytes()
                        assert ids.tobytes() in {one.tobytes() for one in own[slot].target_ids}
    assert sorted(found) == list(range(slots - 1))


def test_fewer_shapes_where_compiling_costs_more(pairs):
    groups, _, _ = batching.group_pairs(pairs[:60])
    counts = [
        len(
            {
                batch.shape
                for batch in planner(shape_cost=cost, target_buckets=(8, 16, 64)).plan(groups)
            }
        )
        for cost in (0.0, 4000.0, 1e9)
    ]
    assert counts[0] >= counts[1] >= counts[2] == 1
    assert counts[0] > counts[2]


def test_a_compiled_shape_is_taken(pairs):
    groups, _, _ = batching.group_pairs(pairs[:60])
    compiled = Shape(200, 20, 32, 80, 20, 64)
    batches = planner(shape_cost=1e9).plan(groups, [compiled])
    assert {batch.shape for batch in batches} == {compiled}


def test_next_to_nothing_is_padding():
    """Lengths as they are in the tasks: from a few words to 512, many short ones."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(512, rng.lognormal(4.2, 0.9, 3000)).astype(int) + 1
    groups = [
        batching.Group(
            np.full(length, i, np.int32),
            tuple(np.full(n, 1, np.int32) for n in rng.integers(1, 12, rng.integers(1, 6))),
            (0,),
        )
        for i, length in enumerate(lengths)
    ]
    one = planner(
        input_buckets=scorer.INPUT_BUCKETS,
        target_buckets=scorer.TARGET_BUCKETS,
        tokens=scorer.TOKENS_CPU,
        batch_cost=lambda shape: float(shape.input_tokens + 3 * shape.target_tokens),
        shape_cost=100_000,
    )
    batches = one.plan(groups)
    assert len({batch.shape for batch in batches}) <= 2

    def filled(groups, batches):
        room = np.sum([batch.shape.room for batch in batches], axis=0)
        return np.sum([group.size for group in groups], axis=0) / room

    inputs, _, targets = filled(groups, batches)
    assert inputs > 0.93 and targets > 0.9
    # A later call, with few groups and the shapes there already.
    few = groups[:400]
    inputs, _, targets = filled(few, one.plan(few, {batch.shape for batch in batches[:1]}))
    assert inputs > 0.85 and targets > 0.85
