"""Adafactor on stacked layers is Adafactor on each layer; the schedules; what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flipped_core.errors import UserError
from t5_engine import optimizer
from t5_engine.config import size
from t5_engine.model import init_params, unstack


@pytest.fixture(scope="module")
def wide_params():
    """Wide enough that Adafactor factors the kernels (both dimensions at least 128), with layers of unlike size."""
    wide = size("tiny", emb_dim=128, num_heads=2, head_dim=64, mlp_dim=160, vocab_size=256)
    params = jax.jit(lambda key: init_params(wide, key))(jax.random.key(0))
    for stack_name in ("encoder", "decoder"):
        layers = params[stack_name]["layers"]
        params[stack_name]["layers"] = jax.tree.map(lambda leaf: leaf.at[1].multiply(20.0), layers)
    return params


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    scales = 10.0 ** jnp.arange(-3, 3)
    # Layers (axis 0 of a stacked leaf) get gradients of unlike size, so that mixing them shows.
    drawn = []
    for i, (key, leaf) in enumerate(zip(keys, leaves, strict=True)):
        by_layer = jnp.arange(1.0, 1 + leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
        drawn.append(jax.random.normal(key, leaf.shape) * scales[i % 6] * by_layer)
    return jax.tree.unflatten(structure, drawn)


def updates_of(transform, stacked_params, convert):
    """Three steps' updates, on parameters and gradients in the form that `convert` gives them."""
    params = convert(stacked_params)
    state = transform.init(params)
    found = []
    for seed in range(3):
        gradient = convert(random_like(stacked_params, seed))
        updates, state = jax.jit(transform.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found


def plain_adafactor():
    return optax.adafactor(1e-2, min_dim_size_to_factor=128, decay_rate=0.8, momentum=None)


def test_adafactor_of_stacked_layers_equals_adafactor_of_each_layer(wide_params):
    stacked = updates_of(optimizer.adafactor(1e-2), wide_params, dict)
    apart = updates_of(plain_adafactor(), wide_params, unstack)
    for ours, theirs in zip(stacked, apart, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
            unstack(ours),
            theirs,
        )


def test_adafactor_on_the_stack_itself_would_differ(wide_params):
    """The law above can fail: without the map over layers the updates are far off."""
    ours = updates_of(optimizer.adafactor(1e-2), wide_params, dict)[0]
    naive = updates_of(plain_adafactor(), wide_params, dict)[0]
    kernel = ours["encoder"]["layers"]["attention"]["key"]["kernel"]
    other = naive["encoder"]["layers"]["attention"]["key"]["kernel"]
    assert np.abs(kernel - other).max() > 0.3 * np.abs(kernel).max()


def test_adafactor_keeps_vectors_for_factored_kernels(wide_params):
    state = optimizer.adafactor(1e-2).init(wide_params)
    largest = max(np.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    kernels = wide_params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert largest < kernels.size / 10


def test_schedules():
    linear = optimizer.schedule(1.0, warmup_steps=4, decay="linear", steps=14)
    assert [round(float(linear(step)), 3) for step in (0, 4, 9, 14)] == [0.25, 1.0, 0.5, 0.0]
    assert float(optimizer.schedule(1e-4)(123)) == pytest.approx(1e-4)
    cosine = optimizer.schedule(1.0, decay="cosine", steps=10)
    assert float(cosine(5)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "adafacto"}, "nearest: 'adafactor'"),
        ({"decay": "cosin"}, "nearest: 'cosine'"),
        ({"decay": "linear", "warmup_steps": 5, "steps": 5}, "steps > warmup_steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        optimizer.make(**{"name": "adam", "learning_rate": 1e-3, **arguments})
