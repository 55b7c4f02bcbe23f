"""Greedy and beam search against the full forward pass of the numpy reference, one token at a time."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import generation
from t5_engine.generation import EOS, generate
from t5_engine.model import init_params
from t5_engine.scorer import Scorer
from tests.t5_engine.reference import NumpyT5, log_softmax

VOCAB = 9  # few words, so that eos comes up often and all continuations can be listed


@pytest.fixture(scope="module")
def small(config):
    return config.replace(vocab_size=VOCAB)


@pytest.fixture(scope="module")
def params(small):
    params = jax.jit(lambda key: init_params(small, key))(jax.random.key(3))
    logits = params["decoder"]["logits_dense"]
    # At some steps eos is likely, at others hardly possible.
    logits["kernel"] = logits["kernel"].at[:, EOS].multiply(4.0)
    return params


@pytest.fixture(scope="module")
def model(small, params):
    return NumpyT5(params, small.num_heads)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return [rng.integers(2, VOCAB, length).tolist() for length in (3, 40, 1, 8, 12, 5, 7, 2)]


def next_log_probs(model: NumpyT5, encoded: np.ndarray, ids: list[int]) -> np.ndarray:
    """[V], after the tokens so far."""
    return log_softmax(model.decode(encoded, [*ids, 0]))[-1]


def stepwise(model: NumpyT5, input_ids: list[int], max_tokens: int) -> tuple[list[int], float]:
    """The argmax of each step's full forward pass, up to eos."""
    encoded, ids, total = model.encode(input_ids), [], 0.0
    while len(ids) < max_tokens and EOS not in ids:
        log_probs = next_log_probs(model, encoded, ids)
        ids.append(int(log_probs.argmax()))
        total += log_probs.max()
    return ids, total


def test_greedy_is_the_argmax_of_each_step(small, params, model, inputs):
    found = generate(small, params, inputs, max_tokens=7)
    for one, input_ids in zip(found, inputs, strict=True):
        ids, total = stepwise(model, input_ids, 7)
        assert one.ids == [i for i in ids if i != EOS] and one.complete == (EOS in ids)
        assert one.log_prob == pytest.approx(total, abs=1e-4)
    assert {one.complete for one in found} == {True, False}, "the cases should be of both kinds"


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(small, params, model, inputs, penalty):
    """With as many beams as there are beginnings the search is exact."""
    found = generate(small, params, inputs, num_beams=VOCAB, max_tokens=2, length_penalty=penalty)
    words = [i for i in range(VOCAB) if i != EOS]
    sequences = [[EOS], *map(list, itertools.product(words, range(VOCAB)))]
    for one, input_ids in zip(found, inputs, strict=True):
        encoded = model.encode(input_ids)
        sums = [
            sum(next_log_probs(model, encoded, ids[:t])[word] for t, word in enumerate(ids))
            for ids in sequences
        ]
        best = max(range(len(sums)), key=lambda i: sums[i] / len(sequences[i]) ** penalty)
        assert one.ids == [i for i in sequences[best] if i != EOS]
        assert one.log_prob == pytest.approx(sums[best], abs=1e-4)


def test_a_beam_of_width_one_is_greedy(small, params, inputs):
    """Ranked by the sum alone: what has ended cannot be overtaken by the one that runs on."""
    tokens = np.zeros((len(inputs), 64), np.int32)
    for row, ids in zip(tokens, inputs, strict=True):
        row[: len(ids)] = ids
    ids, log_probs = generation.greedy(small, params, tokens, 7)
    beam_ids, beam_log_probs = generation.beam_search(small, params, tokens, 7, 1, 0.0)
    np.testing.assert_array_equal(ids, beam_ids)
    np.testing.assert_allclose(log_probs, beam_log_probs, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_input_is_on_its_own(small, params, inputs, num_beams):
    """Not what shares its batch, not their order, not the padding changes what is said to it."""
    together = generate(small, params, inputs, num_beams=num_beams, max_tokens=6)
    alone = generate(small, params, inputs[::-1], num_beams=num_beams, max_tokens=6, batch_size=1)[
        ::-1
    ]
    assert [one.ids for one in together] == [one.ids for one in alone]


def test_log_probability_is_the_scorers(small, params, inputs):
    found = generate(small, params, inputs, num_beams=3, max_tokens=6)
    pairs = [(ids, [*one.ids, EOS][:6]) for ids, one in zip(inputs, found, strict=True)]
    scores = Scorer(small, params).score(pairs)
    np.testing.assert_allclose([one.log_prob for one in found], scores, atol=1e-4)


def test_mistakes_are_named(small, params):
    with pytest.raises(UserError, match="num_beams: expected at least 1, got 0"):
        generate(small, params, [[2]], num_beams=0)
    with pytest.raises(UserError, match="input 1: expected at least one token"):
        generate(small, params, [[2], []])
