"""A packed batch has the loss, the metrics and the gradient of the padded one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flipped_core.errors import UserError
from t5_engine import packing
from t5_engine.config import T5Config, size
from t5_engine.losses import objective
from t5_engine.model import init_params
from t5_engine.packing import RowLengths

VOCAB = 128
LENGTHS = RowLengths(24, 12)
METHODS = {"direct": (20, 3, False), "channel": (3, 10, False), "flipped": (16, 6, True)}


@pytest.fixture(scope="module")
def model() -> tuple[T5Config, dict]:
    config = size("tiny", vocab_size=VOCAB, dropout_rate=0.0)
    return config, init_params(config, jax.random.key(0))


def batch_of(method: str, count: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Examples of random lengths: the first fills a row, one target has one token, one example has weight 0."""
    longest, longest_target, with_wrong = METHODS[method]
    random = np.random.default_rng(seed)

    def ids(lengths: np.ndarray, width: int) -> np.ndarray:
        found = random.integers(2, VOCAB, (count, width), dtype=np.int32)
        return np.where(np.arange(width) < lengths[:, None], found, 0).astype(np.int32)

    lengths = random.integers(1, longest + 1, count)
    target_lengths = random.integers(1, longest_target + 1, count)
    lengths[0], target_lengths[0], target_lengths[1] = LENGTHS.inputs, LENGTHS.targets, 1
    targets = ids(target_lengths, LENGTHS.targets)
    weights = (targets != 0).astype(np.int32)
    weights[2] = 0
    batch = {
        "encoder_input_tokens": ids(lengths, LENGTHS.inputs),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
    }
    if with_wrong:
        has_wrong = random.integers(0, 2, count).astype(np.int32)
        has_wrong[:2] = 1
        wrong = ids(random.integers(1, longest + 1, count), LENGTHS.inputs)
        batch["wrong_encoder_input_tokens"] = wrong * has_wrong[:, None]
        batch["wrong_weights"] = has_wrong
    return batch


@pytest.mark.parametrize("method", METHODS)
def test_loss_metrics_and_gradient_are_those_of_the_padded_batch(
    method: str, model: tuple[T5Config, dict]
) -> None:
    config, params = model
    batch = batch_of(method)
    weight = 3.0 if method == "flipped" else 0.0

    def run(arrays: dict[str, np.ndarray]) -> tuple[dict, dict]:
        function = jax.jit(
            jax.value_and_grad(
                lambda p: objective(config, p, arrays, lambda_unlikelihood=weight, z_loss=1e-4),
                has_aux=True,
            )
        )
        (_, metrics), gradient = function(params)
        return {name: float(value) for name, value in metrics.items()}, gradient

    packed = packing.pack(batch, LENGTHS)
    assert len(packed["encoder_input_tokens"]) < len(batch["encoder_input_tokens"])
    expected, gradient = run(batch)
    got, packed_gradient = run(packed)
    for name in ("loss", "loss_lm", "loss_ul", "accuracy"):
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    for name in ("tokens", "examples"):
        assert got[name] == expected[name], name
    difference = optax.global_norm(jax.tree.map(jnp.subtract, gradient, packed_gradient))
    assert difference < 1e-5 * optax.global_norm(gradient)


@pytest.mark.parametrize("method", METHODS)
def test_every_sequence_is_on_one_row_once(method: str) -> None:
    batch = batch_of(method)
    packed = packing.pack(batch, LENGTHS)
    found = []
    for row in range(len(packed["encoder_input_tokens"])):
        for segment in range(1, packed["encoder_segment_ids"][row].max(initial=0) + 1):
            inputs = packed["encoder_input_tokens"][row][
                packed["encoder_segment_ids"][row] == segment
            ]
            here = packed["decoder_segment_ids"][row] == segment
            targets = packed["decoder_target_tokens"][row][here]
            assert packed["decoder_input_tokens"][row][here].tolist() == [0, *targets[:-1]]
            found.append((tuple(inputs), tuple(targets)))
    expected = []
    for name in ("encoder_input_tokens", "wrong_encoder_input_tokens"):
        for n, ids in enumerate(batch.get(name, ())):
            if batch["decoder_loss_weights"][n].any() and (
                name.startswith("enc") or batch["wrong_weights"][n]
            ):
                targets = batch["decoder_target_tokens"][n]
                expected.append((tuple(ids[ids != 0]), tuple(targets[targets != 0])))
    assert sorted(found) == sorted(expected)


def test_rows_are_full_and_their_numbers_few() -> None:
    random = np.random.default_rng(0)
    shapes = set()
    for _ in range(200):
        lengths = np.minimum(512, random.lognormal(4.4, 0.7, 240).astype(int) + 8)
        rows = len(packing.assign(lengths, np.full(240, 3), RowLengths(512, 128)).rows)
        assert lengths.sum() / (rows * 512) > 0.95
        shapes.add(packing.rung(rows, 1))
    assert len(shapes) <= 4


@pytest.mark.parametrize("multiple", [1, 3, 8, 60])
def test_rungs_hold_what_is_needed_and_suit_the_mesh(multiple: int) -> None:
    for rows in range(1, 300):
        found = packing.rung(rows, multiple)
        assert found >= rows and found % multiple == 0
        assert found < rows * 1.25 + 2 * multiple


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    batch = batch_of("direct")
    with pytest.raises(
        UserError, match=r"PACK_ROW_LENGTHS\['inputs'\]: expected at least the longest"
    ):
        packing.pack(batch, RowLengths(23, 12))
    with pytest.raises(
        UserError, match=r"PACK_ROW_LENGTHS\['targets'\]: expected at least the longest"
    ):
        packing.pack(batch, RowLengths(24, 11))
    with pytest.raises(UserError, match="PACK_ROWS: expected at least the"):
        packing.pack(batch, LENGTHS, num_rows=2)
