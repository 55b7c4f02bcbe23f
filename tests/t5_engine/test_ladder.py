"""Which shapes packed batches have, and what the user's own rows must hold."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import ladder, speed
from t5_engine.config import size
from t5_engine.packing import Shape
from tests.t5_engine.test_packing import LENGTHS, batch_of

LIMITS = (512, 128)


def cost(inputs, targets):
    return speed.forward_flops(size("xl"), inputs, targets)


def drawn(seed, count=240, wrong=False, swapped=False):
    """A batch with lengths like those of DIRECT; with wrong choices and longer targets of FLIPPED; or of CHANNEL."""
    random = np.random.default_rng(seed)
    long = np.minimum(512, random.lognormal(4.4, 0.7, count).astype(int) + 8)
    short = np.minimum(128, random.geometric(0.04 if wrong else 0.4, count))
    if swapped:
        long, short = short, np.minimum(128, long)

    def ids(lengths, width):
        return (np.arange(width) < lengths[:, None]).astype(np.int32)

    batch = {
        "encoder_input_tokens": ids(long, LIMITS[0]),
        "decoder_target_tokens": ids(short, LIMITS[1]),
        "decoder_loss_weights": ids(short, LIMITS[1]),
    }
    if wrong:
        batch["wrong_encoder_input_tokens"] = batch["encoder_input_tokens"]
        batch["wrong_weights"] = np.ones(count, np.int32)
    return batch


def full(packed):
    segments = [packed["encoder_segment_ids"], packed["decoder_segment_ids"]]
    return sum((ids != 0).sum() for ids in segments), sum(ids.size for ids in segments)


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_rows_are_full_and_shapes_few(method):
    how = {"wrong": method == "flipped", "swapped": method == "channel"}
    found = ladder.fit([drawn(seed, **how) for seed in range(ladder.SAMPLE)], 1, cost)
    shapes, tokens, positions = collections.Counter(), 0, 0
    for seed in range(60):
        packed = found.pack(drawn(seed, **how))
        shapes[packed["encoder_input_tokens"].shape] += 1
        some, all_of = full(packed)
        tokens, positions = tokens + some, positions + all_of
    assert tokens / positions > 0.9
    assert len(shapes) <= 4 and len(found.shapes) <= 4


@pytest.mark.parametrize("multiple", [1, 3, 8, 60])
def test_numbers_of_rows_suit_devices_and_microbatches(multiple):
    found = ladder.fit([drawn(seed) for seed in range(4)], multiple, cost)
    assert all(shape.rows % multiple == 0 for shape in found.shapes)
    assert len(found.pack(drawn(9))["encoder_input_tokens"]) % multiple == 0


def test_any_batch_finds_a_shape():
    """One with more examples, and one with an example as long as any may be."""
    found = ladder.fit([drawn(seed) for seed in range(4)], 4, cost)
    larger = found.pack(drawn(0, count=600))
    assert larger["encoder_input_tokens"].shape[0] % 4 == 0
    assert larger["decoder_loss_weights"].sum() == drawn(0, count=600)["decoder_loss_weights"].sum()
    longer = drawn(0)
    longer["decoder_target_tokens"][0] = longer["decoder_loss_weights"][0] = 1
    packed = found.pack(longer)
    assert packed["decoder_target_tokens"].shape[1] == LIMITS[1]
    nothing = {name: np.zeros_like(array) for name, array in drawn(0).items()}
    assert found.pack(nothing)["encoder_input_tokens"].shape == found.shapes[0][:2]


def test_it_is_a_function_of_the_lengths():
    one, other = (ladder.fit([drawn(seed) for seed in range(4)], 2, cost) for _ in range(2))
    assert one == other
    assert one.digest != ladder.fit([drawn(seed) for seed in range(1, 5)], 2, cost).digest
    assert f"{one.shapes[0].rows} x {one.shapes[0].inputs}/" in str(one)


def test_rows_that_the_user_sets():
    batch = batch_of("direct")
    lengths = {"inputs": 32, "targets": 12}
    found = ladder.fit([batch], 2, cost, lengths, (20, 12))
    assert found.shapes == (Shape(12, 32, 12), Shape(20, 32, 12))
    assert found.pack(batch)["encoder_input_tokens"].shape == (12, 32)
    assert {shape[1:] for shape in ladder.fit([batch], 1, cost, lengths).shapes} == {(32, 12)}


@pytest.mark.parametrize(
    "lengths, rows, message",
    [
        ({"inputs": 23, "targets": 12}, None, r"PACK_LENGTHS\['inputs'\]: expected at least 24, "),
        ({"inputs": 24, "targets": 11}, None, r"PACK_LENGTHS\['targets'\]: expected at least 12, "),
        (
            {"inputs": 24, "targets": 12},
            (2,),
            r"PACK_ROWS: expected at least the \d+ rows that a batch needs, got 2 at most",
        ),
        (None, (12, 15), r"PACK_ROWS: expected multiples of 2 \(devices .* x microb.*\), got 15"),
    ],
)
def test_what_does_not_fit_is_one_line(lengths, rows, message):
    batch = batch_of("direct")
    with pytest.raises(UserError, match=message) as caught:
        ladder.fit([batch], 2, cost, lengths, rows)
    assert "\n" not in str(caught.value)


def test_a_later_example_that_is_too_long_is_one_line():
    short = {name: array.copy() for name, array in batch_of("direct").items()}
    for name, array in short.items():
        short[name] = array[3:]
    found = ladder.fit([short], 1, cost, {"inputs": LENGTHS[0] - 1, "targets": LENGTHS[1]})
    with pytest.raises(
        UserError, match=r"PACK_LENGTHS\['inputs'\]: expected at least 24, .* so far"
    ):
        found.pack(batch_of("direct"))
