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
    """Attention bias, key padding mask and segments.

    The parts stay apart until they are used: their sum would be an array [B', N, T, S] in memory.

    Attributes:
      position: [1, N, T, S] float32, by relative position; None is nothing.
      padding_mask: [B', S] bool, False for keys that are padding, which stand last; None is all True.
      segment_ids: of queries [B', T] and of keys [B', S], int; a query attends to the keys of its own segment only.
        None where a row holds one sequence. Padding has segment 0.
    """

    position: jax.Array | None = None
    padding_mask: jax.Array | None = None
    segment_ids: tuple[jax.Array, jax.Array] | None = None


def attend_plainly(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Bias, causal: bool
) -> jax.Array:
    """The weighted means of the values; softmax in float32.

    Args:
      query: [B', T, N, H].
      key, value: [B', S, N, H].
      bias: see there.
      causal: whether a query attends only to keys up to its own position.

    Returns:
      [B', T, N, H], of the values' type.
    """
    mask_bias = jnp.zeros((1, 1, 1, 1))
    if causal:
        mask_bias = mask_bias + causal_bias(query.shape[1])
    if bias.padding_mask is not None:
        mask_bias = mask_bias + padding_bias(bias.padding_mask)
    if bias.segment_ids is not None:
        mask_bias = mask_bias + jnp.where(same_segment(bias.segment_ids), 0.0, MASKED)
    return _weighted_means(query, key, value, bias.position, mask_bias)


# Its own gradient keeps as little as possible of the largest arrays, [B', N, T, S], in memory: accelerators spend more
# time on reading and writing them than on the arithmetic.
@jax.custom_vjp
def _weighted_means(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    position: jax.Array | None,
    mask_bias: jax.Array,
) -> jax.Array:
    """Without its derivative with respect to `mask_bias`, which is added to the logits, 0 or MASKED."""
    return _forward(query, key, value, position, mask_bias)[0]


_Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    position: jax.Array | None,
    mask_bias: jax.Array,
) -> tuple[jax.Array, _Saved]:
    logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32)
    if position is not None:
        logits = logits + position
    logits = logits + mask_bias
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

    bfloat16 with a softmax in float32; the bias of positions is rounded to bfloat16. Packed rows are attended to
    plainly: cuDNN would take their segments as part of a bias [B', N, T, S], which was never run on a GPU.

    Raises:
      UserError: not on an NVIDIA GPU, or an odd number of queries or keys.
    """
    if platform() != "gpu":
        raise UserError(
            f"attention: 'cudnn' runs on NVIDIA GPUs, and the device here is {platform()!r}; use 'plain'"
        )
    if bias.segment_ids is not None:
        return attend_plainly(query, key, value, bias, causal)
    queries, keys = query.shape[1], key.shape[1]
    if queries % 2 or keys % 2:
        raise UserError(
            f"attention: 'cudnn' needs even lengths, got {queries} queries and {keys} keys"
        )
    position = None if bias.position is None else bias.position.astype(query.dtype)
    lengths = None
    if bias.padding_mask is not None:
        # At least one: an example of padding only must not divide by zero.
        lengths = jnp.maximum(jnp.sum(bias.padding_mask, axis=1, dtype=jnp.int32), 1)
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
    """The bias that masks later keys, [T, T] float32."""
    return np.where(np.tril(np.ones((length, length), bool)), 0.0, MASKED).astype(np.float32)


def padding_bias(padding_mask: jax.Array) -> jax.Array:
    """The bias that masks padded keys: [B, S] bool, False for padding -> [B, 1, 1, S] float32."""
    return jnp.where(padding_mask, 0.0, MASKED).astype(jnp.float32)[:, None, None, :]


def same_segment(segment_ids: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Whether each query and key are of one segment: ids [B, T] and [B, S] -> [B, 1, T, S] bool."""
    queries, keys = segment_ids
    return (queries[:, :, None] == keys[:, None, :])[:, None]
