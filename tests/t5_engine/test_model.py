"""The network against the numpy reference, and its laws: causality, padding, scan, remat, parameter names."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5_engine.attention import Bias
from t5_engine.config import size
from t5_engine.layers import Attention, relative_position_bucket
from t5_engine.model import T5, init_params, stack, unstack
from tests.t5_engine.reference import NumpyT5, bucket


def logits(config, params, batch, **options):
    return jax.jit(
        lambda p: T5(config).apply(
            {"params": p}, batch["encoder_input_tokens"], batch["decoder_input_tokens"], **options
        )
    )(params)


def test_logits_equal_the_numpy_model_row_by_row(config, params, make_batch):
    """The batch is padded, numpy sees each example alone: so this is also the law of padding."""
    batch = make_batch(0, rows=5, inputs=40, targets=20)
    ours = logits(config, params, batch)
    model = NumpyT5(params, config.num_heads)
    for row in range(5):
        inputs, targets = batch["encoder_input_tokens"][row], batch["decoder_target_tokens"][row]
        targets = targets[targets > 0]
        theirs = model.logits(inputs[inputs > 0], targets)
        np.testing.assert_allclose(ours[row, : len(targets)], theirs, atol=2e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_position_buckets_equal_the_reference(bidirectional):
    relative = np.arange(-600, 601)
    ours = relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    theirs = [bucket(int(r), bidirectional=bidirectional) for r in relative]
    np.testing.assert_array_equal(ours, theirs)


def test_no_position_sees_the_future(config, params, make_batch):
    """The gradient of position t's logits with respect to the decoder's inputs after t is zero, up to t it is not."""
    batch = make_batch(1, rows=1, targets=6)
    model = T5(config)
    encoded = model.apply({"params": params}, batch["encoder_input_tokens"], method="encode")
    words = batch["encoder_input_tokens"] != 0

    def at(x, t):
        from_embedded = model.apply(
            {"params": params},
            method=lambda self: self.decoder(x, encoded, words, True),
        )
        return from_embedded[0, t].sum()

    x = params["token_embedder"]["embedding"][batch["decoder_input_tokens"]]
    gradient = jax.jit(jax.grad(at))
    sizes = [np.abs(gradient(x, t)[0]).sum(-1) for t in range(6)]
    for t in range(6):
        assert (sizes[t][: t + 1] > 0).all() and (sizes[t][t + 1 :] == 0).all()


def test_choices_of_one_prompt_may_share_its_encoding(config, params, make_batch):
    """Decoding B rows over B' encoded inputs equals repeating each encoded input B / B' times."""
    batch = make_batch(2, rows=6)
    inputs = batch["encoder_input_tokens"][:2]
    model = T5(config)
    encoded = model.apply({"params": params}, inputs, method="encode")

    def decode(encoded, words):
        arguments = (encoded, words, batch["decoder_input_tokens"])
        return model.apply({"params": params}, *arguments, method="decode")

    repeated = decode(jnp.repeat(encoded, 3, axis=0), jnp.repeat(inputs != 0, 3, axis=0))
    np.testing.assert_allclose(decode(encoded, inputs != 0), repeated, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"unroll_layers": True}, {"remat": "full"}, {"remat": "minimal", "unroll_layers": True}],
    ids=["unrolled", "remat full", "remat minimal"],
)
def test_execution_settings_change_neither_logits_nor_gradients(
    config, params, make_batch, changes
):
    batch = make_batch(3)
    other = config.replace(**changes)

    def loss(c):
        return lambda p: jnp.mean(jnp.square(logits(c, p, batch)))

    value, gradient = jax.value_and_grad(loss(config))(params)
    other_value, other_gradient = jax.value_and_grad(loss(other))(params)
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, other_gradient)


def test_bfloat16_activations_give_float32_logits_near_those_of_float32(config, params, make_batch):
    batch = make_batch(4)
    low = logits(config.replace(dtype="bfloat16"), params, batch)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, logits(config, params, batch), atol=0.25)


def test_dropout_needs_a_key_and_changes_the_logits(config, params, make_batch):
    batch = make_batch(5)
    dropping = config.replace(dropout_rate=0.5)
    first = logits(
        dropping, params, batch, deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    again = logits(
        dropping, params, batch, deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - logits(dropping, params, batch)).max() > 0.1


GOLDEN_NAMES = """\
decoder/decoder_norm/scale [16]
decoder/layers_0/encoder_decoder_attention/key/kernel [16, 16]
decoder/layers_0/encoder_decoder_attention/out/kernel [16, 16]
decoder/layers_0/encoder_decoder_attention/query/kernel [16, 16]
decoder/layers_0/encoder_decoder_attention/value/kernel [16, 16]
decoder/layers_0/mlp/wi_0/kernel [16, 24]
decoder/layers_0/mlp/wi_1/kernel [16, 24]
decoder/layers_0/mlp/wo/kernel [24, 16]
decoder/layers_0/pre_cross_attention_layer_norm/scale [16]
decoder/layers_0/pre_mlp_layer_norm/scale [16]
decoder/layers_0/pre_self_attention_layer_norm/scale [16]
decoder/layers_0/self_attention/key/kernel [16, 16]
decoder/layers_0/self_attention/out/kernel [16, 16]
decoder/layers_0/self_attention/query/kernel [16, 16]
decoder/layers_0/self_attention/value/kernel [16, 16]
decoder/logits_dense/kernel [16, 48]
decoder/relpos_bias/rel_embedding [2, 32]
encoder/encoder_norm/scale [16]
encoder/layers_0/attention/key/kernel [16, 16]
encoder/layers_0/attention/out/kernel [16, 16]
encoder/layers_0/attention/query/kernel [16, 16]
encoder/layers_0/attention/value/kernel [16, 16]
encoder/layers_0/mlp/wi_0/kernel [16, 24]
encoder/layers_0/mlp/wi_1/kernel [16, 24]
encoder/layers_0/mlp/wo/kernel [24, 16]
encoder/layers_0/pre_attention_layer_norm/scale [16]
encoder/layers_0/pre_mlp_layer_norm/scale [16]
encoder/relpos_bias/rel_embedding [2, 32]
token_embedder/embedding [48, 16]
"""


def test_unstacked_parameters_have_the_names_and_shapes_of_t5x(params):
    unstacked = unstack(params)
    lines = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(unstacked)
    ]
    first_layers = [line for line in lines if "layers_" not in line or "layers_0" in line]
    assert "\n".join(sorted(first_layers)) + "\n" == GOLDEN_NAMES
    assert sum("layers_1/" in line for line in lines) == 23
    jax.tree.map(np.testing.assert_array_equal, stack(unstacked), params)


def test_initialisers_have_the_spread_of_t5x():
    from t5_engine.config import size

    wide = size("tiny", emb_dim=256, head_dim=64, mlp_dim=512, vocab_size=512)
    params = jax.jit(lambda key: init_params(wide, key))(jax.random.key(0))
    attention = params["encoder"]["layers"]["attention"]
    spreads = {
        "query": (attention["query"]["kernel"], 256**-0.5 * 64**-0.5),
        "key": (attention["key"]["kernel"], 256**-0.5),
        "out": (attention["out"]["kernel"], 256**-0.5),
        "wo": (params["decoder"]["layers"]["mlp"]["wo"]["kernel"], 512**-0.5),
        "logits": (params["decoder"]["logits_dense"]["kernel"], 256**-0.5),
        "embedding": (params["token_embedder"]["embedding"], 1.0),
    }
    for name, (leaf, expected) in spreads.items():
        np.testing.assert_allclose(np.std(leaf), expected, rtol=0.02, err_msg=name)
    assert np.abs(attention["key"]["kernel"][0] - attention["key"]["kernel"][1]).max() > 0.01


def test_matching_init_draws_query_and_key_alike_and_favours_neighbours(config):
    params = init_params(config.replace(matching_init=True), jax.random.key(0))
    for attention in (
        params["encoder"]["layers"]["attention"],
        params["decoder"]["layers"]["self_attention"],
        params["decoder"]["layers"]["encoder_decoder_attention"],
    ):
        query, key = attention["query"]["kernel"], attention["key"]["kernel"]
        np.testing.assert_allclose(query * config.head_dim**0.5, key, rtol=1e-5)
        assert np.abs(key[0] - key[1]).max() > 0.1
    table = params["encoder"]["relpos_bias"]["rel_embedding"]
    assert table[0].argmax() == 1 and table[1].argmax() == 17  # one to the left, one to the right
    assert params["decoder"]["relpos_bias"]["rel_embedding"][0].argmax() == 1


def test_attention_drops_the_same_keys_for_all_queries_of_a_head():
    """Without a bias equal words attend alike, whatever is dropped; the mean over draws is what no dropout gives."""
    config = size("tiny", dropout_rate=0.5)
    memory = jax.random.normal(jax.random.key(0), (1, 6, config.emb_dim))
    x = jnp.repeat(memory[:, :1], 3, axis=1)  # three equal queries
    attention = Attention(config)
    params = nn.unbox(attention.init(jax.random.key(1), x, memory, Bias(), True))

    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return attention.apply(params, x, memory, Bias(), False, rngs=rngs)[0]

    draws = jax.jit(jax.vmap(dropped))(jnp.arange(4000))
    np.testing.assert_allclose(draws, np.repeat(draws[:, :1], 3, axis=1), atol=1e-5)
    assert np.std(draws[:, 0], axis=0).mean() > 0.1
    whole = attention.apply(params, x, memory, Bias(), True)[0]
    np.testing.assert_allclose(draws.mean(0), whole, atol=5 * draws.std() / 4000**0.5)
