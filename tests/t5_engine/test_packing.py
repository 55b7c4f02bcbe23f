"""A packed batch has the loss, the metrics and the gradient of the padded one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5_engine import packing
from t5_engine.axes import Layout
from t5_engine.layers import segment_dropout
from t5_engine.losses import objective
from t5_engine.optimizer import make
from t5_engine.packing import Shape
from t5_engine.partitioning import make_mesh
from t5_engine.step import TrainState, dropout_key_data, make_step
from tests.t5_engine.conftest import VOCAB

LENGTHS = (24, 12)
METHODS = {"direct": (20, 3, False), "channel": (3, 10, False), "flipped": (16, 6, True)}


def batch_of(method, count=12, seed=0):
    """Examples of random lengths: the first fills a row, one target has one token, one example has weight 0."""
    longest, longest_target, with_wrong = METHODS[method]
    random = np.random.default_rng(seed)

    def ids(lengths, width):
        found = random.integers(2, VOCAB, (count, width), dtype=np.int32)
        return np.where(np.arange(width) < lengths[:, None], found, 0).astype(np.int32)

    lengths = random.integers(1, longest + 1, count)
    target_lengths = random.integers(1, longest_target + 1, count)
    (lengths[0], target_lengths[0]), target_lengths[1] = LENGTHS, 1
    targets = ids(target_lengths, LENGTHS[1])
    weights = (targets != 0).astype(np.int32)
    weights[2] = 0
    batch = {
        "encoder_input_tokens": ids(lengths, LENGTHS[0]),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
    }
    if with_wrong:
        has_wrong = random.integers(0, 2, count).astype(np.int32)
        has_wrong[:2] = 1
        wrong = ids(random.integers(1, longest + 1, count), LENGTHS[0])
        batch["wrong_encoder_input_tokens"] = wrong * has_wrong[:, None]
        batch["wrong_weights"] = has_wrong
    return batch


def pack(batch, extra_rows=1):
    found = packing.sequences(batch)
    rows = packing.assign(found.input_lengths, found.target_lengths, *LENGTHS)
    return packing.lay_out(found, rows, Shape(len(rows) + extra_rows, *LENGTHS))


@pytest.mark.parametrize("method", METHODS)
def test_loss_metrics_and_gradient_are_those_of_the_padded_batch(method, config, params):
    batch = batch_of(method)
    batch["decoder_loss_weights"][3] *= 2  # weights need not be 0 and 1
    weight = 3.0 if method == "flipped" else 0.0

    def run(arrays):
        function = jax.value_and_grad(
            lambda p: objective(config, p, arrays, lambda_unlikelihood=weight, z_loss=1e-4),
            has_aux=True,
        )
        (_, metrics), gradient = jax.jit(function)(params)
        return {name: float(value) for name, value in metrics.items()}, gradient

    packed = pack(batch)
    assert len(packed["encoder_input_tokens"]) < len(batch["encoder_input_tokens"])
    expected, gradient = run(batch)
    got, packed_gradient = run(packed)
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    difference = optax.global_norm(jax.tree.map(jnp.subtract, gradient, packed_gradient))
    assert difference < 1e-5 * optax.global_norm(gradient)


@pytest.mark.parametrize("method", METHODS)
def test_parameters_after_twenty_steps_are_those_of_padded_steps(method, config, params):
    config = config.replace(num_encoder_layers=1, num_decoder_layers=1)
    params = jax.tree.map(jnp.copy, params)
    for stack in ("encoder", "decoder"):
        layers = jax.tree.map(lambda leaf: leaf[:1], params[stack]["layers"])
        params = {**params, stack: {**params[stack], "layers": layers}}
    optimizer = make("adafactor", 1e-3)
    step = make_step(
        config, optimizer, Layout(make_mesh(devices=jax.devices()[:1])), lambda_unlikelihood=3.0
    )
    batches = [batch_of(method, seed=seed) for seed in range(20)]
    ends = []
    for packed in (False, True):
        state = TrainState(params, optimizer.init(params), jnp.int32(0), dropout_key_data(0))
        compiled = jax.jit(step)
        for batch in batches:
            rows = pack(batch, extra_rows=0)
            fixed = Shape(12, *LENGTHS)  # one shape, to compile once
            filled = {
                name: np.pad(array, ((0, fixed.rows - len(array)), (0, 0)))
                for name, array in rows.items()
            }
            state, _ = compiled(state, filled if packed else batch)
        ends.append(state.params)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ends[0], params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *ends)


@pytest.mark.parametrize("method", METHODS)
def test_every_sequence_is_in_one_row_once(method):
    batch = batch_of(method)
    packed = pack(batch)
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


def test_rows_are_filled_in_both_directions():
    """Long inputs with short targets share rows with short inputs that have long ones."""
    random = np.random.default_rng(0)
    inputs = np.minimum(512, random.lognormal(4.3, 0.7, 480).astype(int) + 1)
    targets = random.integers(8, 56, 480)
    rows = packing.assign(inputs, targets, 512, 176)
    assert sorted(i for row in rows for i in row) == list(range(480))
    for row in rows:
        assert inputs[row].sum() <= 512 and targets[row].sum() <= 176
    fewest = max(inputs.sum() / 512, targets.sum() / 176)
    assert len(rows) < 1.08 * fewest
    assert packing.assign(np.array([], int), np.array([], int), 4, 4) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_is_drawn_for_each_segment_and_feature(dtype):
    rows, segments, length, features = 30, 9, 2, 512
    ids = np.repeat(np.arange(segments), length)[None].repeat(rows, 0)
    x = jnp.ones((rows, segments * length, features), dtype)
    drop = functools.partial(segment_dropout, segment_ids=ids, key=jax.random.key(3), rate=0.1)
    out, pull = jax.vjp(drop, x)
    np.testing.assert_array_equal(out, pull(x)[0])  # the gradient has the same mask
    assert out.dtype == x.dtype
    np.testing.assert_allclose(np.unique(out.astype(jnp.float32)), [0, 1 / 0.9], rtol=4e-3)
    by_segment = np.asarray(out, np.float32).reshape(rows * segments, length, features)
    assert (by_segment == by_segment[:, :1]).all()
    kept = by_segment[:, 0] > 0
    share, count = kept.mean(), kept.size
    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / count)
    # Neither segments nor features resemble each other: correlations are those of independent draws.
    for draws in (kept, kept.T):
        correlation = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
        assert abs(correlation.mean()) < 0.01
        assert correlation.std() == pytest.approx(draws.shape[1] ** -0.5, rel=0.1)
    again = segment_dropout(x, ids, jax.random.key(4), 0.1)
    assert 0.15 < (again != out).mean() < 0.21  # 2 x 0.9 x 0.1
