"""Attention over sequences that lie one after the other on a row, without padding between them.

All but attention treats each word by itself and runs on the rows as they are; attention is a small part of the
arithmetic. So sequences of unlike length share a row and next to nothing is computed for padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to the attention logits of keys that must not be seen. Finite, so that a row of padding only (an example
# of weight 0) gives a uniform softmax and not NaN.
MASKED = -1e10

# On a CPU each sequence's keys are padded to the first of these shares of S that holds them, and its queries are
# taken so many at a time: their logits stay in the processor's cache.
RUNGS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
QUERIES = 64


class Ragged(NamedTuple):
    """Where the C sequences of each row are. They are padded to T queries and S keys for attention alone.

    Attributes:
      queries: [B, C, T] int, the place on the row of each query; any place where there is none. Sequences follow one
        another in their order, those without queries last.
      keys: [B, C, S] int, likewise on the rows that are attended to, in any order.
      seen: [B, C, 1 or T, S] bool, which keys each query attends to.
      back: [B, M] int, for each place on the row the number of its query, in [0, C * T).
      query_lengths: [B, C] int, how many queries there are.
      key_lengths: [B, C] int, likewise.
    """

    queries: jax.Array
    keys: jax.Array
    seen: jax.Array
    back: jax.Array
    query_lengths: jax.Array
    key_lengths: jax.Array

    def attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """The weighted means of the values.

        Args:
          query: [B, M, N, H].
          key, value: [B, M', N, H].
          bias: added to the logits of each sequence, [1, N, T, S] or [1, 1, 1, 1] float32.

        Returns:
          [B, M, N, H].
        """
        return jax.vmap(_side_by_side, in_axes=(0, 0, 0, None, 0))(query, key, value, bias[0], self)


class OneByOne(Ragged):
    """Where the sequences of one row are that are attended to one after the other: the faster way on a CPU.

    There XLA's small matrix products in a batch are slow, and what one sequence needs stays in the cache.
    """

    def attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """As `Ragged.attend`, for B = 1."""
        row = OneByOne(*(array[0] for array in self))
        return _one_by_one(query[0], key[0], value[0], bias[0], row)[None]


def _side_by_side(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, ragged: Ragged
) -> jax.Array:
    """`Ragged.attend` on one row."""

    def sequence(queries: jax.Array, keys: jax.Array, seen: jax.Array) -> jax.Array:
        q, k, v = _at(query, queries), _at(key, keys), _at(value, keys)
        logits = jnp.einsum("TNH,SNH->NTS", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(seen, logits + bias, MASKED), axis=-1)
        return jnp.einsum("NTS,SNH->TNH", weights.astype(v.dtype), v)

    several = jax.vmap(sequence)(ragged.queries, ragged.keys, ragged.seen)  # [C, T, N, H]
    return _at(several.reshape(-1, *several.shape[2:]), ragged.back)


def _one_by_one(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, ragged: OneByOne
) -> jax.Array:
    """`OneByOne.attend` on its row, a part of one sequence's queries at a time; what is attended to is not copied."""
    most_queries, most_keys = ragged.queries.shape[1], ragged.keys.shape[1]
    parts = math.ceil(most_queries / QUERIES)
    size = math.ceil(most_queries / parts)

    def roomy(x: jax.Array, room: int, axis: int) -> jax.Array:
        """With so many zeros at the end of the axis: a slice that begins before it never reaches beyond."""
        return jnp.pad(x, [(0, room if axis == other else 0) for other in range(x.ndim)])

    query = roomy(query.swapaxes(0, 1), parts * size, 1)  # [N, M + …, H]
    key, value = (roomy(x.swapaxes(0, 1), most_keys, 1) for x in (key, value))
    seen = ragged.seen
    if seen.shape[1] > 1:
        seen = roomy(seen, parts * size - most_queries, 1)
    if bias.shape[1] > 1:
        bias = roomy(bias, parts * size - most_queries, 1)
    lengths = [math.ceil(share * most_keys) for share in RUNGS]
    rung = jnp.sum(ragged.key_lengths[:, None] > jnp.array(lengths[:-1]), axis=1)

    def at_length(length: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def sequence(number: jax.Array, found: jax.Array) -> jax.Array:
            begin = ragged.queries[number, 0]
            k, v = (_part(x, ragged.keys[number, 0], length, 1) for x in (key, value))

            def part(i: jax.Array, found: jax.Array) -> jax.Array:
                q = _part(query, begin + i * size, size, 1)
                logits = jnp.einsum("NTH,NSH->NTS", q, k, preferred_element_type=jnp.float32)
                logits += _part(bias[:, :, :length], i * size, size, 1)
                sees = _part(seen[number, :, :length], i * size, size, 0)
                weights = jax.nn.softmax(jnp.where(sees, logits, MASKED), axis=-1)
                mixed = jnp.einsum("NTS,NSH->NTH", weights.astype(v.dtype), v)
                # What lies beyond the sequence's end is written over by the next one.
                return jax.lax.dynamic_update_slice_in_dim(found, mixed, begin + i * size, 1)

            return jax.lax.fori_loop(0, -(-ragged.query_lengths[number] // size), part, found)

        return sequence

    branches = [at_length(length) for length in lengths]
    found = jax.lax.fori_loop(
        0,
        jnp.sum(ragged.query_lengths > 0),
        lambda number, found: jax.lax.switch(rung[number], branches, number, found),
        jnp.zeros_like(query),
    )
    return found[:, : len(ragged.back)].swapaxes(0, 1)


def _part(x: jax.Array, begin: jax.Array, size: int, axis: int) -> jax.Array:
    """So many of an axis from one on; the whole where the axis is 1 long and so the same for all."""
    if x.shape[axis] == 1:
        return x
    return jax.lax.dynamic_slice_in_dim(x, begin, size, axis)


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
    return x.at[places].get(mode="promise_in_bounds")
