"""The building blocks of T5.1.1: RMS norm, dense, relative positions, attention, gated feed-forward.

Every parameter is declared once, with its shape, initialiser and logical axes ("embed", "joined_kv", "mlp",
"vocab", "norm", "heads", "relpos_buckets"); `t5_engine.axes` maps these to the mesh. Names, shapes and
initialisers are T5X's (google-research/t5x, `examples/t5`), so that its checkpoints map one to one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5_engine.attention import KERNELS, Bias, causal_bias
from t5_engine.axes import constrain, gathered
from t5_engine.config import T5Config
from t5_engine.ragged import Ragged

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]

ATTENTION_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
DENSE_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
EMBEDDING_INIT: Initializer = nn.initializers.normal(stddev=1.0)
RELATIVE_INIT: Initializer = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")

# `matching_init`: by how much the chosen heads prefer the neighbouring word, in nats.
NEIGHBOUR_BIAS = 4.0


class RMSNorm(nn.Module):
    """Divides by the root mean square over D and multiplies by a learned scale; no mean, no bias.

    Computed in float32; the result has the model's `dtype`.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (self.config.emb_dim,),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return (y * scale).astype(self.config.dtype)


class Dense(nn.Module):
    """A matrix product without bias: [..., in] -> [..., features].

    The kernel is kept 2-D, [in, features] in float32, and cast to `dtype` for the product.
    """

    features: int
    axes: tuple[str, str]
    kernel_init: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.axes),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        # As one matrix product of all positions: XLA's CPU compiler runs it faster than a batched one.
        flat = constrain(x.astype(self.dtype).reshape(-1, x.shape[-1]), "batch", self.axes[0])
        kernel = gathered(kernel.astype(self.dtype), *self.axes)
        product = constrain(jnp.dot(flat, kernel), "batch", self.axes[1])
        return product.reshape(*x.shape[:-1], self.features)


class Dropout(nn.Module):
    """Dropout that draws once along one axis: x of any shape -> the same shape.

    Flax's own selects, for which TPUs write the broadcast mask to memory; a factor is applied where x is computed.

    Attributes:
      rate: the share of zeros, 0 to below 1.
      broadcast: the axis along which the draw is the same.
    """

    rate: float
    broadcast: int

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        """Drops features of x [B, S, ...] unless `deterministic`; `segment_ids` [B, S] draws for each segment."""
        if deterministic or not self.rate:
            return x
        if segment_ids is not None:
            return segment_dropout(x, segment_ids, self.make_rng("dropout"), self.rate)
        shape = list(x.shape)
        shape[self.broadcast] = 1
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return (x * jnp.where(keep, 1 / (1 - self.rate), 0.0)).astype(x.dtype)


def segment_dropout(x: jax.Array, segment_ids: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Dropout that draws each feature once for each segment of each row.

    A feature is kept by a hash (MurmurHash3's finalizer) of two random words, one of the segment and one of the
    feature, which is computed where x is. Masks drawn for every segment, [B, segments, D], would have to be gathered to
    [B, S, D] in memory.

    Args:
      x: [B, S, D].
      segment_ids: [B, S] int.
      key: what is drawn from.
      rate: the share of zeros, above 0 and below 1.

    Returns:
      Of the shape and type of x.
    """
    of_rows, of_features = jax.random.split(key)
    rows = jax.random.bits(of_rows, x.shape[:1], jnp.uint32)
    features = jax.random.bits(of_features, x.shape[-1:], jnp.uint32)
    segments = _mixed(rows[:, None] ^ segment_ids.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    return _drop(rate, x, segments, features)


def _mixed(bits: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer: uint32 of any shape -> the same shape."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


# With its own gradient the mask, [B, S, D], is computed twice and never kept.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _drop(rate: float, x: jax.Array, segments: jax.Array, features: jax.Array) -> jax.Array:
    kept = _mixed(segments[..., None] ^ features) >= jnp.uint32(int(rate * 2**32))
    return (x * jnp.where(kept, 1 / (1 - rate), 0.0)).astype(x.dtype)


def _drop_forward(
    rate: float, x: jax.Array, segments: jax.Array, features: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _drop(rate, x, segments, features), (segments, features)


def _drop_gradient(
    rate: float, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    return _drop(rate, gradient, *saved), None, None


_drop.defvjp(_drop_forward, _drop_gradient)


class Embed(nn.Module):
    """A table of words, [V, D] in float32: ids [...] -> [..., D] in `dtype`."""

    config: T5Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        axes = ("vocab", "embed")
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(EMBEDDING_INIT, axes),
            (self.config.vocab_size, self.config.emb_dim),
            jnp.float32,
        )
        return jnp.take(gathered(table.astype(self.config.dtype), *axes), tokens, axis=0)


def relative_position_bucket(
    relative: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each relative position (key minus query).

    Half of the buckets of a direction hold one distance each; the other half grow logarithmically up to
    `max_distance`, beyond which all share the last. A bidirectional table gives half of its buckets to keys on
    the right; a causal one counts only keys on the left (Raffel et al. 2020, section 2.1).

    Args:
      relative: integers, any shape.
      bidirectional: True in the encoder.
      num_buckets: the number of buckets in all.
      max_distance: in tokens.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    distance = -relative
    bucket = np.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        bucket = bucket + np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # In float32 and with the tiny addition, as the reference does: the edges of the logarithmic buckets
    # depend on the rounding.
    ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
    growth = np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)
    logarithmic = np.minimum(exact + growth.astype(np.int32), num_buckets - 1)
    return (bucket + np.where(distance < exact, distance, logarithmic)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """The bias of a stack's self-attention logits, one table for all its layers: -> [1, N, T, S] float32."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_length: int, key_length: int) -> jax.Array:
        config = self.config
        table = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(self._init, ("heads", "relpos_buckets")),
            (config.num_heads, config.relative_attention_num_buckets),
            jnp.float32,
        )
        relative = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]  # [T, S]
        return jnp.take(table, self._bucket(relative), axis=1)[None]

    def _bucket(self, relative: np.ndarray) -> np.ndarray:
        return relative_position_bucket(
            relative,
            bidirectional=self.bidirectional,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )

    def _init(self, key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        table = RELATIVE_INIT(key, shape, dtype)
        if self.config.matching_init:
            offsets = (-1, 1) if self.bidirectional else (-1,)
            for head, offset in enumerate(offsets[: self.config.num_heads]):
                table = table.at[head, self._bucket(np.array(offset))].add(NEIGHBOUR_BIAS)
        return table


class Attention(nn.Module):
    """Multi-head attention without scaling of the logits.

    T5 does not divide the logits by sqrt(H); the query kernel's initialiser is divided by it instead, which is
    the same at the start of training and saves the division.

    Attributes:
      config: the model's.
      causal: whether a query sees only the keys up to its own place.
    """

    config: T5Config
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        bias: Bias,
        deterministic: bool,
        ragged: Ragged | None = None,
    ) -> jax.Array:
        """Attends from x to memory.

        Args:
          x: queries [B, T, D].
          memory: keys and values [B', S, D]. B is a multiple of B': the B / B' consecutive rows of x that share
            a row of memory (the choices of one prompt) also share its keys and values.
          bias: of [B', T * B / B'] queries and [B', S] keys; with `ragged`, of those of one sequence.
          deterministic: True switches dropout off.
          ragged: the sequences, where x and memory are rows of several: x [B, M, D], memory [B, M', D]. Without
            dropout.

        Returns:
          Of the shape of x.
        """
        config = self.config
        query_init, key_init = self._query_and_key_init()

        def project(name: str, inputs: jax.Array, init: Initializer) -> jax.Array:
            dense = Dense(config.joined_kv, ("embed", "joined_kv"), init, config.dtype, name=name)
            return dense(inputs).reshape(memory.shape[0], -1, config.num_heads, config.head_dim)

        query = project("query", x, query_init)  # [B', T * B / B', N, H]
        key = project("key", memory, key_init)  # [B', S, N, H]
        value = project("value", memory, ATTENTION_INIT)
        if ragged is None:
            # The same keys are dropped for all queries of a head, as in T5X: to drop their values is the same.
            value = Dropout(config.dropout_rate, broadcast=-1)(value, deterministic)
            mixed = KERNELS[config.attention](query, key, value, bias, self.causal)
        else:
            mixed = ragged.attend(query, key, value, self._of_one_sequence(bias))
        mixed = mixed.reshape(x.shape[0], -1, config.joined_kv)
        out = Dense(
            config.emb_dim, ("joined_kv", "embed"), ATTENTION_INIT, config.dtype, name="out"
        )
        return out(mixed)

    def _of_one_sequence(self, bias: Bias) -> jax.Array:
        """[1, N, T, S], or [1, 1, 1, 1] where there is none; `ragged` knows which keys are words."""
        if bias.position is None:
            return jnp.zeros((1, 1, 1, 1))
        return bias.position + causal_bias(bias.position.shape[2]) if self.causal else bias.position

    def _query_and_key_init(self) -> tuple[Initializer, Initializer]:
        scale = self.config.head_dim**-0.5

        def query_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            return ATTENTION_INIT(key, shape, dtype) * scale

        if not (self.config.matching_init and self.is_initializing()):
            return query_init, ATTENTION_INIT
        shared = self.make_rng("params")
        return (
            lambda _, shape, dtype: query_init(shared, shape, dtype),
            lambda _, shape, dtype: ATTENTION_INIT(shared, shape, dtype),
        )


class GatedMlp(nn.Module):
    """The feed-forward block: gelu(x W_0) * (x W_1), then W_o; [B, T, D] -> [B, T, D]."""

    config: T5Config

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        config = self.config

        def into(name: str) -> Dense:
            return Dense(config.mlp_dim, ("embed", "mlp"), DENSE_INIT, config.dtype, name=name)

        hidden = nn.gelu(into("wi_0")(x), approximate=True) * into("wi_1")(x)
        hidden = Dropout(config.dropout_rate, broadcast=-2)(hidden, deterministic, segment_ids)
        return Dense(config.emb_dim, ("mlp", "embed"), DENSE_INIT, config.dtype, name="wo")(hidden)
