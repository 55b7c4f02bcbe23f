"""Attention itself, between the projections: the plain form that runs everywhere, and cuDNN's for NVIDIA GPUs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flipped_core.errors import UserError
from t5_engine.axes import platform
from t5_engine.ragged import MASKED


class Bias(NamedTuple):
    """What decides, beside the words themselves, how much a query attends to a key.

    The two parts stay apart until they are used: their sum would be an array [B', N, T, S] in memory.

    Attributes:
      position: [1, N, T, S] float32, by relative position; None is nothing.
      words: [B', S] bool, False for keys that are padding, which stand last; None is all True.
    """

    position: jax.Array | None = None
    words: jax.Array | None = None


def attend_plainly(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Bias, causal: bool
) -> jax.Array:
    """The weighted means of the values; softmax in float32.

    Args:
      query: [B', T, N, H].
      key, value: [B', S, N, H].
      bias: see there.
      causal: whether a query sees only the keys up to its own place.

    Returns:
      [B', T, N, H], of the values' type.
    """
    hidden = jnp.zeros((1, 1, 1, 1))
    if causal:
        hidden = hidden + causal_bias(query.shape[1])
    if bias.words is not None:
        hidden = hidden + padding_bias(bias.words)
    return _weighted_means(query, key, value, bias.position, hidden)


# Its own gradient keeps as little as possible of the largest arrays, [B', N, T, S], in memory: accelerators spend more
# time on reading and writing them than on the arithmetic.
@jax.custom_vjp
def _weighted_means(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    position: jax.Array | None,
    hidden: jax.Array,
) -> jax.Array:
    """Without its derivative with respect to `hidden`, which is added to the logits, 0 or MASKED."""
    return _forward(query, key, value, position, hidden)[0]


_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    position: jax.Array | None,
    hidden: jax.Array,
) -> tuple[jax.Array, _Saved]:
    logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32)
    if position is not None:
        logits = logits + position
    logits = logits + hidden
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1)  # [B', N, T]
    weights = weights.astype(value.dtype)
    means = jnp.einsum("BNTS,BSNH->BTNH", weights, value, preferred_element_type=jnp.float32)
    means = (means / _by_query(total)).astype(value.dtype)
    return means, (query, key, value, position, weights, total, means)


def _backward(saved: _Saved, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    query, key, value, position, weights, total, means = saved
    share = gradient.astype(jnp.float32) / _by_query(total)
    # What each query's weights have in common: sum_s weights * d weights = sum_h means * d means.
    common = jnp.sum(share * means, axis=-1).swapaxes(1, 2)[..., None]  # [B', N, T, 1]
    share = share.astype(value.dtype)
    by_weight = jnp.einsum("BTNH,BSNH->BNTS", share, value, preferred_element_type=jnp.float32)
    # Written once, and not computed anew for each of its uses.
    by_logit = jax.lax.optimization_barrier((weights * (by_weight - common)).astype(value.dtype))
    by_position = None
    if position is not None:
        by_position = jnp.sum(by_logit, axis=0, keepdims=True, dtype=jnp.float32)
    return (
        jnp.einsum("BNTS,BSNH->BTNH", by_logit, key),
        jnp.einsum("BNTS,BTNH->BSNH", by_logit, query),
        jnp.einsum("BNTS,BTNH->BSNH", weights, share),
        by_position,
        None,
    )


def _by_query(x: jax.Array) -> jax.Array:
    """[B', N, T] -> [B', T, N, 1]."""
    return x.swapaxes(1, 2)[..., None]


_weighted_means.defvjp(_forward, _backward)


def attend_by_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Bias, causal: bool
) -> jax.Array:
    """As `attend_plainly`, by cuDNN's fused kernel, which keeps no logits in memory.

    bfloat16 with a softmax in float32; the bias of positions is rounded to bfloat16.

    Raises:
      UserError: not on an NVIDIA GPU, or an odd number of queries or keys.
    """
    if platform() != "gpu":
        raise UserError(
            f"attention: 'cudnn' runs on NVIDIA GPUs, and the device here is {platform()!r}; use 'plain'"
        )
    queries, keys = query.shape[1], key.shape[1]
    if queries % 2 or keys % 2:
        raise UserError(
            f"attention: 'cudnn' needs even lengths, got {queries} queries and {keys} keys"
        )
    position = None if bias.position is None else bias.position.astype(query.dtype)
    lengths = None
    if bias.words is not None:
        # At least one: an example of padding only must not divide by zero.
        lengths = jnp.maximum(jnp.sum(bias.words, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        position,
        scale=1.0,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


KERNELS = {"plain": attend_plainly, "cudnn": attend_by_cudnn}


def causal_bias(length: int) -> np.ndarray:
    """What hides later keys from each query, [T, T] float32."""
    return np.where(np.tril(np.ones((length, length), bool)), 0.0, MASKED).astype(np.float32)


def padding_bias(words: jax.Array) -> jax.Array:
    """[B, S], True where there is a word -> what hides the padding from attention, [B, 1, 1, S] float32."""
    return jnp.where(words, 0.0, MASKED).astype(jnp.float32)[:, None, None, :]
