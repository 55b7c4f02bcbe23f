"""Attention over sequences that lie one after the other on a row, without padding between them.

All but attention treats each word by itself and runs on the rows as they are; attention is a small part of the
arithmetic. So sequences of unlike length share a row and next to nothing is computed for padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5_engine.axes import platform

# Added to the attention logits of keys that must not be seen. Finite, so that a row of padding only (an example
# of weight 0) gives a uniform softmax and not NaN.
MASKED = -1e10

# On a CPU each sequence is padded to the first of these shares of T and S that holds it.
RUNGS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


class Ragged(NamedTuple):
    """Where the C sequences of each row are. They are padded to T queries and S keys for attention alone.

    Attributes:
      queries: [B, C, T] int, the place on the row of each query; any place where there is none.
      keys: [B, C, S] int, likewise on the rows that are attended to.
      seen: [B, C, 1 or T, S] bool, which keys each query attends to.
      rung: [B, C] int, the first of `RUNGS` that holds the queries and the keys.
      back: [B, M] int, for each place on the row the number of its query, in [0, C * T).
    """

    queries: jax.Array
    keys: jax.Array
    seen: jax.Array
    rung: jax.Array
    back: jax.Array

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
        if one_by_one(len(query)):
            row = Ragged(*(array[0] for array in self))
            return _attend(_each_on_its_rung, query[0], key[0], value[0], bias[0], row)[None]
        attend = functools.partial(_attend, _side_by_side)
        return jax.vmap(attend, in_axes=(0, 0, 0, None, 0))(query, key, value, bias[0], self)


def rungs(lengths: jax.Array, most: int) -> jax.Array:
    """The first of `RUNGS` that holds each length, where all of them is `most`; of the lengths' shape."""
    sizes = jnp.array([math.ceil(share * most) for share in RUNGS])
    return jnp.sum(lengths[..., None] > sizes[:-1], axis=-1)


def one_by_one(rows: int) -> bool:
    """Whether the sequences of so many rows are attended to one after the other instead of side by side.

    On a CPU XLA's small matrix products in a batch are slow, and what one sequence needs stays in the cache.
    """
    return rows == 1 and platform() == "cpu"


Sequence = Callable[
    [jax.Array, jax.Array, jax.Array], jax.Array
]  # queries, keys, seen -> [T, N, H]


def _attend(
    each: Callable[[Sequence, Ragged], jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    ragged: Ragged,
) -> jax.Array:
    """`Ragged.attend` on one row; `each` runs a function on all sequences."""

    def sequence(queries: jax.Array, keys: jax.Array, seen: jax.Array) -> jax.Array:
        q, k, v = _at(query, queries), _at(key, keys), _at(value, keys)
        logits = jnp.einsum("TNH,SNH->NTS", q, k, preferred_element_type=jnp.float32)
        logits = logits + bias[:, : len(queries), : len(keys)]
        weights = jax.nn.softmax(jnp.where(seen, logits, MASKED), axis=-1)
        return jnp.einsum("NTS,SNH->TNH", weights.astype(v.dtype), v)

    several = each(sequence, ragged)  # [C, T, N, H]
    return _at(several.reshape(-1, *several.shape[2:]), ragged.back)


def _side_by_side(sequence: Sequence, ragged: Ragged) -> jax.Array:
    return jax.vmap(sequence)(ragged.queries, ragged.keys, ragged.seen)


def _each_on_its_rung(sequence: Sequence, ragged: Ragged) -> jax.Array:
    most_queries, most_keys = ragged.queries.shape[1], ragged.keys.shape[1]

    def on_rung(share: float) -> Sequence:
        queries, keys = math.ceil(share * most_queries), math.ceil(share * most_keys)

        def cut(*arrays: jax.Array) -> jax.Array:
            found = sequence(arrays[0][:queries], arrays[1][:keys], arrays[2][:queries, :keys])
            return jnp.pad(found, ((0, most_queries - queries), (0, 0), (0, 0)))

        return cut

    branches = [on_rung(share) for share in RUNGS]
    return jax.lax.map(
        lambda one: jax.lax.switch(one[0], branches, *one[1:]),
        (ragged.rung, ragged.queries, ragged.keys, ragged.seen),
    )


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
    return x.at[places].get(mode="promise_in_bounds")
