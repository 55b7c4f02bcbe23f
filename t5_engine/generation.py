"""Text from the model: greedy, or the best of a beam, one token a step with keys and values kept.

Each input is encoded once, and the keys and values of cross-attention are computed once for all steps and beams.
The beam search is the usual one (Wu et al. 2016, arXiv 1609.08144, section 7), with its normalisation by a power
of the length; it ends when no running beam is better than the worst that has ended.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flipped_core.errors import UserError
from t5_engine.attention import padding_bias
from t5_engine.batching import round_up
from t5_engine.config import T5Config
from t5_engine.layers import GatedMlp, RMSNorm, relative_position_bucket
from t5_engine.model import PAD, STACKED, T5, Params
from t5_engine.ragged import MASKED

EOS = 1
INPUT_BUCKETS = (32, 64, 128, 256, 512)
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Generated:
    """What the model says to one input.

    Attributes:
      ids: without eos.
      log_prob: the sum over its tokens, eos included where there is one.
      complete: whether it ends with eos; otherwise it was cut at the largest number of tokens.
    """

    ids: list[int]
    log_prob: float
    complete: bool


def generate(
    config: T5Config,
    params: Params,
    inputs: Sequence[Sequence[int]],
    *,
    num_beams: int = 1,
    max_tokens: int = 64,
    length_penalty: float = 1.0,
    batch_size: int = BATCH_SIZE,
) -> list[Generated]:
    """The most probable continuation of each input, as far as the search finds it.

    Args:
      config: the model's.
      params: the model's.
      inputs: ids, without padding.
      num_beams: 1 takes the most probable token at each step; more keep so many beginnings.
      max_tokens: of a result, eos included.
      length_penalty: beams are ranked by log-probability / tokens ** length_penalty.
      batch_size: inputs at a time.

    Returns:
      One for each input, in their order.

    Raises:
      UserError: a number below 1, or an empty input.
    """
    numbers = {"num_beams": num_beams, "max_tokens": max_tokens, "batch_size": batch_size}
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")
    for number, ids in enumerate(inputs):
        if not len(ids):
            raise UserError(f"input {number}: expected at least one token, got none")
    config = config.replace(dropout_rate=0.0, remat="none", attention="plain")
    results: dict[int, Generated] = {}
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        tokens = np.zeros((len(some), round_up(len(inputs[some[-1]]), INPUT_BUCKETS)), np.int32)
        for row, i in enumerate(some):
            tokens[row, : len(inputs[i])] = inputs[i]
        if num_beams == 1:
            found = greedy(config, params, tokens, max_tokens)
        else:
            found = beam_search(config, params, tokens, max_tokens, num_beams, length_penalty)
        for i, ids, log_prob in zip(some, *map(np.asarray, found), strict=True):
            results[i] = _generated(ids, float(log_prob))
    return [results[i] for i in range(len(inputs))]


def _generated(ids: np.ndarray, log_prob: float) -> Generated:
    ends = np.flatnonzero(ids == EOS)
    end = ends[0] if len(ends) else len(ids)
    return Generated(ids[:end].tolist(), log_prob, bool(len(ends)))


class _Memory(NamedTuple):
    """What all steps share: the input's keys and values [L, B, S, N, H], what hides its padding, the own bias."""

    key: jax.Array
    value: jax.Array
    hide: jax.Array  # [B, 1, 1, S]
    bias: jax.Array  # [N, T, T] of self-attention


class _Cache(NamedTuple):
    """Keys and values of the tokens so far, [L, B, K, T, N, H]."""

    key: jax.Array
    value: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "max_tokens"))
def greedy(
    config: T5Config, params: Params, tokens: jax.Array, max_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """The most probable token at each step: inputs [B, S], 0 for padding -> ids [B, T], log-probabilities [B]."""
    memory = _remember(config, params, tokens, max_tokens)
    batch = len(tokens)

    def go_on(state: tuple[jax.Array, ...]) -> jax.Array:
        step, _, _, ended, _ = state
        return (step < max_tokens) & ~jnp.all(ended)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, ids, log_probs, ended, cache = state
        last = jnp.where(step > 0, ids[:, step - 1], PAD)
        found, cache = _step(config, params, memory, cache, last[:, None], step)
        token = jnp.where(ended, PAD, found[:, 0].argmax(axis=-1).astype(jnp.int32))
        log_probs = log_probs + jnp.where(ended, 0.0, found[:, 0].max(axis=-1))
        return step + 1, ids.at[:, step].set(token), log_probs, ended | (token == EOS), cache

    start = (
        jnp.int32(0),
        jnp.full((batch, max_tokens), PAD, jnp.int32),
        jnp.zeros(batch),
        jnp.zeros(batch, bool),
        _empty(config, batch, 1, max_tokens),
    )
    _, ids, log_probs, _, _ = jax.lax.while_loop(go_on, advance, start)
    return ids, log_probs


class _Beams(NamedTuple):
    """Beginnings that run on and such as have ended, best first."""

    step: jax.Array
    ids: jax.Array  # [B, K, T]
    log_probs: jax.Array  # [B, K]
    ended_ids: jax.Array  # [B, K, T]
    ended_log_probs: jax.Array  # [B, K]
    scores: (
        jax.Array
    )  # [B, K] of those that have ended: log-probability / length ** penalty; -inf for none
    closed: jax.Array  # [B] no running one can become better
    cache: _Cache


@functools.partial(jax.jit, static_argnames=("config", "max_tokens", "num_beams"))
def beam_search(
    config: T5Config,
    params: Params,
    tokens: jax.Array,
    max_tokens: int,
    num_beams: int,
    length_penalty: float,
) -> tuple[jax.Array, jax.Array]:
    """The best of a beam: inputs [B, S], 0 for padding -> ids [B, T], log-probabilities [B]."""
    memory = _remember(config, params, tokens, max_tokens)
    batch = len(tokens)

    def go_on(beams: _Beams) -> jax.Array:
        return (beams.step < max_tokens) & ~jnp.all(beams.closed)

    def advance(beams: _Beams) -> _Beams:
        step = beams.step
        last = jnp.where(step > 0, beams.ids[:, :, step - 1], PAD)
        found, cache = _step(config, params, memory, beams.cache, last, step)
        sums = (beams.log_probs[:, :, None] + found).reshape(batch, -1)
        # Twice as many as needed: at most half of them end here.
        sums, places = jax.lax.top_k(sums, 2 * num_beams)
        parent, token = places // config.vocab_size, (places % config.vocab_size).astype(jnp.int32)
        ids = _pick(beams.ids, parent).at[:, :, step].set(token)

        ends = (token == EOS) | (step + 1 == max_tokens)
        among_best = jnp.arange(2 * num_beams) < num_beams
        open_still = ~beams.closed[:, None]
        length = (step + 1).astype(jnp.float32) ** length_penalty
        new = jnp.where(ends & among_best & open_still, sums / length, -jnp.inf)
        scores, best = jax.lax.top_k(jnp.concatenate([beams.scores, new], 1), num_beams)
        ended_ids = _pick(jnp.concatenate([beams.ended_ids, ids], 1), best)
        ended_log_probs = _pick(jnp.concatenate([beams.ended_log_probs, sums], 1), best)

        log_probs, on = jax.lax.top_k(jnp.where(token == EOS, -jnp.inf, sums), num_beams)
        parent = _pick(parent, on)
        cache = _Cache(*(jax.vmap(_pick, in_axes=(0, None))(kept, parent) for kept in cache))
        closed = beams.closed | (log_probs[:, 0] / length <= scores[:, -1])
        return _Beams(
            step + 1, _pick(ids, on), log_probs, ended_ids, ended_log_probs, scores, closed, cache
        )

    nothing = jnp.full((batch, num_beams, max_tokens), PAD, jnp.int32)
    none = jnp.full((batch, num_beams), -jnp.inf)
    start = _Beams(
        jnp.int32(0),
        nothing,
        none.at[:, 0].set(0.0),  # all beams begin alike: only one counts
        nothing,
        none,
        none,
        jnp.zeros(batch, bool),
        _empty(config, batch, num_beams, max_tokens),
    )
    beams = jax.lax.while_loop(go_on, advance, start)
    return beams.ended_ids[:, 0], beams.ended_log_probs[:, 0]


def _pick(x: jax.Array, places: jax.Array) -> jax.Array:
    """[B, K, ...] and places in K [B, J] -> [B, J, ...]."""
    return jax.vmap(lambda row, place: row[place])(x, places)


def _empty(config: T5Config, batch: int, beams: int, max_tokens: int) -> _Cache:
    shape = (batch, beams, max_tokens, config.num_heads, config.head_dim)
    zeros = jnp.zeros((config.num_decoder_layers, *shape), config.dtype)
    return _Cache(zeros, zeros)


def _remember(config: T5Config, params: Params, tokens: jax.Array, max_tokens: int) -> _Memory:
    encoded = T5(config).apply({"params": params}, tokens, method="encode")
    cross = params["decoder"][STACKED]["encoder_decoder_attention"]

    def of_all_layers(name: str) -> jax.Array:
        kernels = cross[name]["kernel"].astype(config.dtype)
        return jax.vmap(lambda kernel: _heads(config, encoded @ kernel))(kernels)

    place = np.arange(max_tokens)
    bucket = relative_position_bucket(
        place[None, :] - place[:, None],
        bidirectional=False,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    bias = params["decoder"]["relpos_bias"]["rel_embedding"][:, bucket]
    bias = jnp.where(place[None, :] <= place[:, None], bias, MASKED)
    return _Memory(of_all_layers("key"), of_all_layers("value"), padding_bias(tokens != PAD), bias)


def _heads(config: T5Config, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], config.num_heads, config.head_dim)


def _step(
    config: T5Config,
    params: Params,
    memory: _Memory,
    cache: _Cache,
    tokens: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, _Cache]:
    """One token further: the last tokens [B, K] -> log-probabilities of the next [B, K, V], and the longer cache."""
    decoder = params["decoder"]
    x = params["token_embedder"]["embedding"][tokens].astype(config.dtype)
    own_bias = memory.bias[:, step][:, None]  # [N, 1, T]

    def layer(x: jax.Array, of_layer: tuple[Any, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        weights, own_key, own_value, key, value = of_layer
        y = _norm(config, weights["pre_self_attention_layer_norm"], x)
        attention = weights["self_attention"]
        new_key, new_value = (
            _heads(config, _project(attention[name], y))[:, :, None] for name in ("key", "value")
        )
        own_key = jax.lax.dynamic_update_slice_in_dim(own_key, new_key, step, axis=2)
        own_value = jax.lax.dynamic_update_slice_in_dim(own_value, new_value, step, axis=2)
        query = _heads(config, _project(attention["query"], y))
        logits = jnp.einsum("BKNH,BKTNH->BNKT", query, own_key, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(logits + own_bias, axis=-1).astype(config.dtype)
        mixed = jnp.einsum("BNKT,BKTNH->BKNH", shares, own_value)
        x = x + _project(attention["out"], mixed.reshape(*x.shape[:2], -1))

        y = _norm(config, weights["pre_cross_attention_layer_norm"], x)
        attention = weights["encoder_decoder_attention"]
        query = _heads(config, _project(attention["query"], y))
        logits = jnp.einsum("BKNH,BSNH->BNKS", query, key, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(logits + memory.hide, axis=-1).astype(config.dtype)
        mixed = jnp.einsum("BNKS,BSNH->BKNH", shares, value)
        x = x + _project(attention["out"], mixed.reshape(*x.shape[:2], -1))

        y = _norm(config, weights["pre_mlp_layer_norm"], x)
        return x + GatedMlp(config).apply({"params": weights["mlp"]}, y, True), (own_key, own_value)

    x, kept = jax.lax.scan(layer, x, (decoder[STACKED], *cache, memory.key, memory.value))
    x = _norm(config, decoder["decoder_norm"], x)
    logits = x.astype(jnp.float32) @ decoder["logits_dense"]["kernel"]
    return jax.nn.log_softmax(logits, axis=-1), _Cache(*kept)


def _norm(config: T5Config, weights: Params, x: jax.Array) -> jax.Array:
    return RMSNorm(config).apply({"params": weights}, x)


def _project(weights: Params, x: jax.Array) -> jax.Array:
    return x @ weights["kernel"].astype(x.dtype)
