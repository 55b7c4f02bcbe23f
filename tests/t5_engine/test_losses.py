"""Losses against numpy in float64, at the extremes, and through their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5_engine import losses
from tests.t5_engine.reference import NumpyT5, log_softmax


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 11)).astype(np.float32) * 3
    targets = rng.integers(0, 11, (3, 5)).astype(np.int32)
    weights = (rng.random((3, 5)) < 0.7).astype(np.float32)
    return logits, targets, weights


def numpy_log_probs(logits, targets):
    rows = log_softmax(logits.astype(np.float64))
    return np.take_along_axis(rows, targets[..., None], -1)[..., 0]


def test_token_losses_equal_numpy(cases):
    logits, targets, weights = cases
    log_p = numpy_log_probs(logits, targets)
    found = losses.statistics(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(losses.token_log_probs(logits, targets), log_p, atol=1e-5)
    np.testing.assert_allclose(
        losses.cross_entropy(found, weights), -(log_p * weights).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.unlikelihood(found, weights),
        -(np.log1p(-np.exp(log_p)) * weights).sum(),
        rtol=1e-5,
    )
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(
        losses.cross_entropy(found, weights, z_loss=0.1),
        ((-log_p + 0.1 * log_z**2) * weights).sum(),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(found.hit, logits.argmax(-1) == targets)


@pytest.mark.parametrize("name", ["cross_entropy", "z_loss", "unlikelihood"])
def test_gradients_equal_differentiation_of_the_textbook_formula(cases, name):
    logits, targets, weights = cases

    def ours(z):
        found = losses.statistics(z, targets)
        if name == "unlikelihood":
            return losses.unlikelihood(found, weights)
        return losses.cross_entropy(found, weights, z_loss=0.1 if name == "z_loss" else 0.0)

    def textbook(z):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(z), targets[..., None], -1)[..., 0]
        if name == "unlikelihood":
            return -jnp.sum(jnp.log1p(-jnp.exp(log_p)) * weights)
        extra = 0.1 * jax.nn.logsumexp(z, -1) ** 2 if name == "z_loss" else 0.0
        return jnp.sum((extra - log_p) * weights)

    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(textbook)(logits), atol=2e-5)


@pytest.mark.parametrize("gap", [-300.0, -30.0, 0.0, 30.0, 300.0])
def test_unlikelihood_is_exact_and_its_gradient_bounded_at_the_extremes(gap):
    """p(target) from e^-300 to 1 - e^-300: -log(1-p) is log1p(e^gap), which is `gap` for large gaps."""
    logits = jnp.array([[gap, 0.0, -jnp.inf]])
    targets = jnp.array([0])

    def loss(z):
        return losses.unlikelihood(losses.statistics(z, targets), jnp.ones(1))

    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, np.logaddexp(0.0, gap), rtol=1e-6, atol=1e-37)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() <= 1.0
    np.testing.assert_allclose(gradient[0, 0], 1 / (1 + np.exp(-gap)), rtol=1e-5, atol=1e-37)


def run(config, params, batch, **options):
    return jax.jit(lambda p: losses.objective(config, p, batch, **options))(params)


def test_objective_equals_the_numpy_model(config, params, make_batch):
    batch = make_batch(1, wrong=True)
    loss, metrics = run(config, params, batch, lambda_unlikelihood=3.0)
    model = NumpyT5(params, config.num_heads)
    lm, ul, tokens = 0.0, 0.0, 0
    for row, target in enumerate(batch["decoder_target_tokens"]):
        target = target[target > 0]
        tokens += len(target)
        for name, is_wrong in (
            ("encoder_input_tokens", False),
            ("wrong_encoder_input_tokens", True),
        ):
            inputs = batch[name][row]
            log_p = numpy_log_probs(model.logits(inputs[inputs > 0], target), target)
            if is_wrong:
                ul -= batch["wrong_weights"][row] * np.log1p(-np.exp(log_p)).sum()
            else:
                lm -= log_p.sum()
    np.testing.assert_allclose(metrics["loss_lm"], lm / tokens, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_ul"], ul / tokens, rtol=1e-5)
    np.testing.assert_allclose(loss, (lm + 3 * ul) / tokens, rtol=1e-5)
    assert metrics["tokens"] == tokens and metrics["examples"] == 4


def test_objective_gradient_equals_finite_differences(config, params, make_batch):
    batch = make_batch(2, wrong=True)

    @jax.jit
    def loss(p):
        return losses.objective(config, p, batch, lambda_unlikelihood=3.0)[0]

    gradient = jax.jit(jax.grad(loss))(params)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
    direction = jax.tree.unflatten(
        jax.tree.structure(params),
        [
            jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, jax.tree.leaves(params), strict=True)
        ],
    )
    epsilon = 1e-3

    def moved(sign):
        return loss(jax.tree.map(lambda p, d: p + sign * epsilon * d, params, direction))

    slope = (moved(1) - moved(-1)) / (2 * epsilon)
    expected = sum(
        jnp.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(slope, expected, rtol=2e-2)


def test_lambda_zero_is_the_plain_objective(config, params, make_batch):
    with_wrong = make_batch(3, wrong=True)
    without = {name: value for name, value in with_wrong.items() if "wrong" not in name}
    zero, zero_metrics = run(config, params, with_wrong, lambda_unlikelihood=0.0)
    plain, _ = run(config, params, without, lambda_unlikelihood=3.0)
    assert zero == plain and zero_metrics["loss_ul"] == 0


def test_rows_of_weight_zero_change_nothing(config, params, make_batch):
    batch = make_batch(4, rows=6, wrong=True)
    empty = {name: np.zeros_like(value[:2]) for name, value in batch.items()}
    noise = dict(make_batch(5, rows=2, wrong=True))
    noise["decoder_loss_weights"] = np.zeros_like(noise["decoder_loss_weights"])
    loss, metrics = run(config, params, batch, lambda_unlikelihood=3.0)
    for extra in (empty, noise):
        padded = {name: np.concatenate([batch[name], extra[name]]) for name in batch}
        padded_loss, padded_metrics = run(config, params, padded, lambda_unlikelihood=3.0)
        np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
        assert padded_metrics["examples"] == metrics["examples"] == 6
