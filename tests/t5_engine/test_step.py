"""One step: microbatches give the batch's gradient, and what is computed in which type."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5_engine import losses
from t5_engine.config import size
from t5_engine.speed import forward_flops, nominal_rate, step_flops
from t5_engine.step import accumulated

LAMBDA = 3.0


def loss_of(config):
    def loss(params, batch, key, divisor):
        return losses.objective(
            config,
            params,
            batch,
            lambda_unlikelihood=LAMBDA,
            z_loss=1e-3,
            dropout_key=key,
            divisor=divisor,
        )

    return loss


@pytest.fixture(scope="module")
def small(config):
    return dataclasses.replace(config, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def small_params(small):
    from t5_engine.model import init_params

    return jax.jit(lambda key: init_params(small, key))(jax.random.key(1))


def test_microbatches_give_the_gradient_of_the_batch(small, small_params, make_batch):
    """Parts with few target tokens, or with none, weigh as little as in the batch."""
    batch = make_batch(0, rows=6, wrong=True)
    batch["decoder_loss_weights"][1] = 0  # part 1 of 3 has rows 1 and 4
    batch["decoder_loss_weights"][4] = 0
    loss = loss_of(small)
    whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(small_params, batch, None, None)
    (_, metrics), grads = whole
    parts = jax.jit(lambda p: accumulated(loss, p, batch, None, 3))(small_params)
    for name, value in metrics.items():
        np.testing.assert_allclose(parts[0][name], value, rtol=2e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts[1], grads
    )


def test_each_microbatch_drops_other_activations(small, small_params, make_batch):
    dropping = small.replace(dropout_rate=0.5)
    batch = {name: np.repeat(array[:1], 2, axis=0) for name, array in make_batch(1).items()}
    loss = loss_of(dropping)
    key = jax.random.key(0)
    metrics, _ = jax.jit(lambda p: accumulated(loss, p, batch, key, 2))(small_params)
    one = {name: array[:1] for name, array in batch.items()}
    divisor = losses.divisor_of(batch)
    each = [
        float(loss(small_params, one, jax.random.fold_in(key, i), divisor)[1]["loss"])
        for i in range(2)
    ]
    assert each[0] != each[1]
    np.testing.assert_allclose(metrics["loss"], sum(each), rtol=1e-5)


def equations(jaxpr):
    """All equations of a jaxpr, those inside loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_bfloat16_is_for_activations_only(small, small_params, make_batch):
    """Products of layers in bfloat16; parameters, gradients, softmax, norms' means, logits and loss in float32."""
    low = small.replace(dtype="bfloat16")
    batch = make_batch(2, wrong=True)
    forward = jax.make_jaxpr(loss_of(low))(small_params, batch, None, None)
    vocabulary = small.vocab_size
    for equation in equations(forward.jaxpr):
        kinds = {str(v.aval.dtype) for v in equation.invars if hasattr(v, "aval")}
        name = equation.primitive.name
        if not equation.outvars:  # what is left of a call whose results nobody uses
            assert not list(equations(equation.params["call_jaxpr"].jaxpr))
            continue
        shape = equation.outvars[0].aval.shape
        if name == "dot_general" and shape[-1] == vocabulary:
            assert kinds == {"float32"}, "logits"
        elif name == "dot_general":
            assert kinds == {"bfloat16"}, equation
        elif name in ("exp", "log", "logistic", "rsqrt", "reduce_max", "log1p"):
            assert kinds == {"float32"}, equation
        elif name == "reduce_sum" and shape != ():
            assert "bfloat16" not in kinds, equation
    loss, grads = jax.value_and_grad(lambda p: loss_of(low)(p, batch, None, None)[0])(small_params)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


def test_bfloat16_is_near_float32(small, small_params, make_batch):
    """Loss within 1%, gradient within 5% of its norm: bfloat16 rounds to 8 bits."""
    batch = make_batch(3, rows=8, wrong=True)

    def run(config):
        return jax.jit(jax.value_and_grad(lambda p: loss_of(config)(p, batch, None, None)[0]))(
            small_params
        )

    (loss, grads), (low_loss, low_grads) = run(small), run(small.replace(dtype="bfloat16"))
    np.testing.assert_allclose(low_loss, loss, rtol=0.01)
    flat, low_flat = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (grads, low_grads)
    )
    assert 0 < np.linalg.norm(flat - low_flat) < 0.05 * np.linalg.norm(flat)


def test_flops_are_the_matrix_products_of_the_compiled_model(small, small_params):
    """The compiler's count is a little higher: it has norms, softmax and biases too."""
    config = small.replace(unroll_layers=True, emb_dim=64, mlp_dim=96, head_dim=32)
    from t5_engine.model import T5, init_params

    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = (jax.ShapeDtypeStruct((1, 40), jnp.int32), jax.ShapeDtypeStruct((1, 24), jnp.int32))
    lowered = jax.jit(lambda p, *t: T5(config).apply({"params": p}, *t)).lower(params, *tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    assert 1.0 < counted / forward_flops(config, 40, 24) < 1.25


def test_flops_of_the_recipe():
    """The numbers that the recipe is planned with: of one example at 512/128, and of a step with 240 of them."""
    for name, forward, expected in (("xl", 1.824e12, 1.313e15), ("xxl", 7.127e12, 5.131e15)):
        assert forward_flops(size(name), 512, 128) == pytest.approx(forward, rel=3e-4)
        step = 240 * step_flops(size(name), 512, 128, with_wrong=False)
        assert step == pytest.approx(expected, rel=1e-3)
        assert 240 * step_flops(size(name), 512, 128, with_wrong=True) == 2 * step


@pytest.mark.parametrize(
    "kind, rate",
    [
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_nominal_rates(kind, rate):
    assert nominal_rate(kind) == rate
