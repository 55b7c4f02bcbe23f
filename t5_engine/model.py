"""T5.1.1: an encoder and a decoder with shared input embeddings and separate (untied) logits.

The layers of a stack run under `nn.scan`: their parameters are stacked on axis 0, for example
`encoder/layers/attention/query/kernel` [L, D, N * H]. `unstack` and `stack` translate to and from T5X's names,
`encoder/layers_0/attention/query/kernel` [D, N * H] and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5_engine.attention import Bias
from t5_engine.config import T5Config
from t5_engine.layers import (
    DENSE_INIT,
    Attention,
    Dense,
    Dropout,
    Embed,
    GatedMlp,
    RelativePositionBias,
    RMSNorm,
)
from t5_engine.ragged import Ragged

STACKS = ("encoder", "decoder")
STACKED = "layers"
PAD = 0

Params = dict[str, Any]


def _dropout(
    config: T5Config, x: jax.Array, deterministic: bool, segment_ids: jax.Array | None
) -> jax.Array:
    """Dropout of the residual stream: the same features for all positions of an example, as in T5X."""
    return Dropout(config.dropout_rate, broadcast=-2)(x, deterministic, segment_ids)


def _query_segments(bias: Bias) -> jax.Array | None:
    return None if bias.segment_ids is None else bias.segment_ids[0]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each after a norm and around a residual: [B, S, D] -> [B, S, D]."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, bias: Bias, ragged: Ragged | None) -> tuple[jax.Array, None]:
        config, off, segments = self.config, self.deterministic, _query_segments(bias)
        with jax.named_scope("attention"):
            y = RMSNorm(config, name="pre_attention_layer_norm")(x)
            y = Attention(config, name="attention")(y, y, bias, off, ragged)
            x = x + _dropout(config, y, off, segments)
        with jax.named_scope("mlp"):
            y = RMSNorm(config, name="pre_mlp_layer_norm")(x)
            y = GatedMlp(config, name="mlp")(y, off, segments)
            x = x + _dropout(config, y, off, segments)
        return x, None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward block: [B, T, D] -> [B, T, D]."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        self_bias: Bias,
        cross_bias: Bias,
        ragged: tuple[Ragged | None, Ragged | None],
    ) -> tuple[jax.Array, None]:
        config, off, segments = self.config, self.deterministic, _query_segments(self_bias)
        with jax.named_scope("self_attention"):
            y = RMSNorm(config, name="pre_self_attention_layer_norm")(x)
            attention = Attention(config, causal=True, name="self_attention")
            y = attention(y, y, self_bias, off, ragged[0])
            x = x + _dropout(config, y, off, segments)
        with jax.named_scope("cross_attention"):
            y = RMSNorm(config, name="pre_cross_attention_layer_norm")(x)
            attention = Attention(config, name="encoder_decoder_attention")
            y = attention(y, encoded, cross_bias, off, ragged[1])
            x = x + _dropout(config, y, off, segments)
        with jax.named_scope("mlp"):
            y = RMSNorm(config, name="pre_mlp_layer_norm")(x)
            y = GatedMlp(config, name="mlp")(y, off, segments)
            x = x + _dropout(config, y, off, segments)
        return x, None


def _layers(layer: type[nn.Module], config: T5Config, length: int, inputs: int) -> Any:
    """`length` copies of a layer class that has `inputs` arguments beside the carried x, scanned, maybe remat."""
    if config.remat != "none":
        policy = (
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            if config.remat == "minimal"
            else None
        )
        layer = nn.remat(layer, prevent_cse=config.unroll_layers, policy=policy)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * inputs,
        length=length,
        unroll=length if config.unroll_layers else 1,
        metadata_params={nn.PARTITION_NAME: STACKED},
    )


class Encoder(nn.Module):
    """As `T5.encode`, of embedded tokens [B, S, D]."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        padding_mask: jax.Array | None,
        deterministic: bool,
        ragged: Ragged | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        relpos = RelativePositionBias(config, bidirectional=True, name="relpos_bias")
        if segment_ids is not None:
            bias = Bias(relpos(x.shape[1], x.shape[1]), segment_ids=(segment_ids, segment_ids))
        elif ragged is None:
            bias = Bias(relpos(x.shape[1], x.shape[1]), padding_mask)
        else:
            bias = Bias(relpos(ragged.keys.shape[2], ragged.keys.shape[2]))
        x = _dropout(config, x, deterministic, segment_ids)
        layers = _layers(EncoderLayer, config, config.num_encoder_layers, inputs=2)
        x, _ = layers(config, deterministic, name=STACKED)(x, bias, ragged)
        x = RMSNorm(config, name="encoder_norm")(x)
        return _dropout(config, x, deterministic, segment_ids)


class Decoder(nn.Module):
    """As `T5.decode`, of embedded tokens [B, T, D]."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array,
        padding_mask: jax.Array | None,
        deterministic: bool,
        ragged: tuple[Ragged, Ragged] | None = None,
        logits: bool = True,
        segment_ids: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        config = self.config
        relpos = RelativePositionBias(config, bidirectional=False, name="relpos_bias")
        length = x.shape[1] if ragged is None else ragged[0].queries.shape[2]
        targets = None if segment_ids is None else segment_ids[1]
        x = _dropout(config, x, deterministic, targets)
        self_bias, cross_bias = Bias(relpos(length, length)), Bias(padding_mask=padding_mask)
        if segment_ids is not None:
            self_bias = self_bias._replace(segment_ids=(segment_ids[1], segment_ids[1]))
            cross_bias = Bias(segment_ids=(segment_ids[1], segment_ids[0]))
        layers = _layers(DecoderLayer, config, config.num_decoder_layers, inputs=4)
        x, _ = layers(config, deterministic, name=STACKED)(
            x, encoded, self_bias, cross_bias, ragged or (None, None)
        )
        x = RMSNorm(config, name="decoder_norm")(x)
        x = _dropout(config, x, deterministic, targets)
        if not logits:
            return x
        with jax.named_scope("logits"):
            dense = Dense(
                config.vocab_size, ("embed", "vocab"), DENSE_INIT, "float32", name="logits_dense"
            )
            return dense(x)


class T5(nn.Module):
    """The whole model. Call `encode` and `decode` through `apply(..., method=...)`, or the model for both."""

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embed(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(
        self,
        tokens: jax.Array,
        *,
        ragged: Ragged | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The encoder's output, [B, S, D].

        Args:
          tokens: [B, S] ids, 0 for padding.
          ragged: where rows hold several inputs: tokens are [B, M] then, the result [B, M, D].
          segment_ids: [B, S], the number from 1 of the input that each token belongs to, where rows hold several
            (`t5_engine.packing`); 0 for padding.
          deterministic: True switches dropout off.
        """
        with jax.named_scope("encoder"):
            mask = tokens != PAD if ragged is None else None
            x = self.token_embedder(tokens)
            return self.encoder(x, mask, deterministic, ragged, segment_ids)

    def decode(
        self,
        encoded: jax.Array,
        padding_mask: jax.Array | None,
        decoder_input_tokens: jax.Array,
        *,
        ragged: tuple[Ragged, Ragged] | None = None,
        segment_ids: tuple[jax.Array, jax.Array] | None = None,
        logits: bool = True,
        deterministic: bool = True,
    ) -> jax.Array:
        """The logits of each target position.

        Args:
          encoded: [B', S, D], from `encode`.
          padding_mask: [B', S] bool, False where the encoder's input is padding.
          decoder_input_tokens: [B, T], the target shifted right by one, 0 first. B is a multiple of B'; the
            B / B' consecutive rows that belong to one encoded input share its keys and values.
          ragged: for self-attention and for cross-attention, where rows hold several inputs and targets: encoded
            is [B, M', D] then, padding_mask None, decoder_input_tokens [B, M].
          segment_ids: of inputs [B, S] and targets [B, T], where rows hold several examples; 0 for padding.
          logits: False gives what the logits are a linear map of, [B, T, D].
          deterministic: True switches dropout off.

        Returns:
          [B, T, V] float32.
        """
        with jax.named_scope("decoder"):
            x = self.token_embedder(decoder_input_tokens)
            return self.decoder(
                x, encoded, padding_mask, deterministic, ragged, logits, segment_ids
            )

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        *,
        segment_ids: tuple[jax.Array, jax.Array] | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Token ids [B, S] and [B, T] -> logits [B, T, V] float32; `segment_ids` as in `decode`."""
        encoded = self.encode(
            encoder_input_tokens,
            segment_ids=None if segment_ids is None else segment_ids[0],
            deterministic=deterministic,
        )
        padding_mask = encoder_input_tokens != PAD
        return self.decode(
            encoded,
            padding_mask,
            decoder_input_tokens,
            segment_ids=segment_ids,
            deterministic=deterministic,
        )


def init_boxed(config: T5Config, key: jax.Array) -> Params:
    """Fresh parameters, each in a box that carries its logical axes."""
    tokens = jnp.ones((1, 1), jnp.int32)
    # The parameters are the same, and the plain form takes any lengths and any device.
    plain = config.replace(attention="plain")
    return T5(plain).init(key, tokens, tokens)["params"]


def init_params(config: T5Config, key: jax.Array) -> Params:
    """Fresh parameters, float32, as nested dictionaries of plain arrays."""
    return nn.unbox(init_boxed(config, key))


def abstract_params(config: T5Config) -> Params:
    """The parameters' shapes and types (`jax.ShapeDtypeStruct`), without allocating anything."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))


def unstack(params: Mapping[str, Any]) -> Params:
    """From stacked layers (`layers`, axis 0) to T5X's `layers_0`, `layers_1`, …"""
    result = dict(params)
    for name in STACKS:
        stack_params = dict(params[name])
        stacked = stack_params.pop(STACKED)
        for i in range(len(jax.tree.leaves(stacked)[0])):
            stack_params[f"{STACKED}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        result[name] = stack_params
    return result


def stack(params: Mapping[str, Any]) -> Params:
    """The inverse of `unstack`."""
    result = dict(params)
    for name in STACKS:
        stack_params = dict(params[name])
        count = sum(key.startswith(f"{STACKED}_") for key in stack_params)
        layers = [stack_params.pop(f"{STACKED}_{i}") for i in range(count)]
        stack_params[STACKED] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
        result[name] = stack_params
    return result
