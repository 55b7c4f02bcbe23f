"""The objectives of DIRECT, CHANNEL and FLIPPED (Ye et al. 2022, arXiv 2210.02969, section 3).

Both per-token losses come from one number, the margin m = z_target - log(sum of exp(z) over all *other* words):
p(target) = sigmoid(m), so

    -log p       = softplus(-m)      the cross-entropy
    -log (1 - p) = softplus(m)       the unlikelihood

which are exact in float32 however close p is to 0 or 1, with gradients that stay within [-1, 1]. Taking log(1 - p)
from p, or from log p, loses every digit as p approaches 1, which is where unlikelihood matters most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5_engine.axes import data_size
from t5_engine.config import T5Config
from t5_engine.model import PAD, T5, Params

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class TokenStatistics(NamedTuple):
    """What the losses need of each target token; arrays of the targets' shape."""

    margin: jax.Array  # z_target - logsumexp(z of all others), float32
    target_logit: jax.Array  # z_target, float32
    hit: jax.Array  # bool: no other word has a higher logit


@jax.custom_vjp
def token_statistics(logits: jax.Array, targets: jax.Array) -> TokenStatistics:
    """The target's logit against all others: logits [M, V] float32, targets [M] int in [0, V) -> [M] each.

    The gradient is written out: one pass over the logits, with nothing kept from the forward pass but one number a
    token. What differentiation derives by itself is several times slower where V is large.
    """
    return _token_statistics(logits, targets)[0]


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets[:, None]


def _token_statistics(
    logits: jax.Array, targets: jax.Array
) -> tuple[TokenStatistics, tuple[jax.Array, ...]]:
    target_logit = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    others = jnp.where(_is_target(logits, targets), -jnp.inf, logits)
    highest = jnp.max(others, axis=1)
    log_sum = highest + jnp.log(jnp.sum(jnp.exp(others - highest[:, None]), axis=1))
    found = TokenStatistics(target_logit - log_sum, target_logit, target_logit >= highest)
    return found, (logits, targets, log_sum)


def _token_statistics_gradient(
    kept: tuple[jax.Array, ...], given: TokenStatistics
) -> tuple[jax.Array, None]:
    logits, targets, log_sum = kept
    of_target = (given.margin + given.target_logit)[:, None]
    of_others = -given.margin[:, None] * jnp.exp(logits - log_sum[:, None])
    return jnp.where(_is_target(logits, targets), of_target, of_others), None


token_statistics.defvjp(_token_statistics, _token_statistics_gradient)


def statistics(logits: jax.Array, targets: jax.Array) -> TokenStatistics:
    """`token_statistics` of logits [..., V] and targets [...], each result with the targets' shape."""
    # Two-dimensional on purpose: with [B, T, V] XLA's CPU compiler transposes the logits (4 times slower).
    flat = token_statistics(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return TokenStatistics(*(value.reshape(targets.shape) for value in flat))


def token_log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log p(target) of each token: logits [..., V] float32, targets [...] int -> [...] float32, at most 0."""
    return -jax.nn.softplus(-statistics(logits, targets).margin)


def cross_entropy(found: TokenStatistics, weights: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """The sum over tokens of -weight * log p(target).

    Args:
      found: `statistics` of the logits, [B, T] each.
      weights: [B, T], 0 for what does not count.
      z_loss: the factor of log(Z)^2, which keeps the logits' normaliser Z near 1 (T5X uses 1e-4; 0 is off).

    Returns:
      A float32 scalar, not divided by the number of tokens.
    """
    losses = jax.nn.softplus(-found.margin)
    if z_loss:
        losses = losses + z_loss * jnp.square(found.target_logit + losses)  # log Z = z - log p
    return jnp.sum(losses * weights)


def unlikelihood(found: TokenStatistics, weights: jax.Array) -> jax.Array:
    """The sum over tokens of -weight * log(1 - p(target)); arguments and result as in `cross_entropy`."""
    return jnp.sum(jax.nn.softplus(found.margin) * weights)


def objective(
    config: T5Config,
    params: Params,
    batch: Batch,
    *,
    lambda_unlikelihood: float = 0.0,
    z_loss: float = 0.0,
    dropout_key: jax.Array | None = None,
    divisor: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The loss of a batch: L_LM + lambda * L_UL, each a mean over the batch's target tokens.

    Tokens of weight 0 (padding, or a whole example of weight 0) are in neither sum. L_UL of an example without a
    wrong choice is 0; its tokens stay in the divisor, which is the same for both terms.

    Args:
      config: the model's.
      params: the model's.
      batch: padded, `encoder_input_tokens` [B, S], `decoder_input_tokens`, `decoder_target_tokens` and
        `decoder_loss_weights` [B, T]; for the unlikelihood term also `wrong_encoder_input_tokens` [B, S], the
        input with a wrong choice, and `wrong_weights` [B], 0 where an example has no wrong choice. Or packed, as
        `packing.lay_out` makes it.
      lambda_unlikelihood: the weight of L_UL. With 0, or without wrong inputs in the batch, the model runs once.
      z_loss: see `cross_entropy`.
      dropout_key: a key switches dropout on.
      divisor: what sums over tokens are divided by: `divisor` of the whole batch where this is a part of one, so
        that the parts' losses, gradients and metrics add up to the batch's. The batch's own where not given.

    Returns:
      (loss, metrics), metrics being float32 scalars: loss, loss_lm, loss_ul (without its factor), accuracy (of the
      most probable next token), tokens (of targets), input_tokens (those with wrong choices included), examples, and
      useful_tokens: of inputs, and of targets as often as the model sees them.
    """
    packed = "encoder_segment_ids" in batch
    with_wrong = (
        bool(lambda_unlikelihood)
        and ("unlikelihood_weights" if packed else "wrong_encoder_input_tokens") in batch
    )
    inputs, decoder_inputs, targets, weights, wrong_weights, segment_ids = (
        _packed(batch) if packed else _padded(batch, with_wrong)
    )
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    logits = T5(config).apply(
        {"params": params},
        inputs,
        decoder_inputs,
        segment_ids=segment_ids,
        deterministic=dropout_key is None,
        rngs=rngs,
    )
    with jax.named_scope("loss"):
        found = statistics(logits, targets)
        if divisor is None:
            divisor = divisor_of(batch)
        loss_lm = cross_entropy(found, weights, z_loss) / divisor
        loss_ul = unlikelihood(found, wrong_weights) / divisor if with_wrong else jnp.zeros(())
    loss = loss_lm + lambda_unlikelihood * loss_ul
    useful = (weights != 0) | (wrong_weights != 0)
    if segment_ids is None:
        examples = jnp.any(weights > 0, axis=-1)
        input_tokens = (inputs != PAD) & jnp.any(useful, axis=-1, keepdims=True)
    else:  # the first token of each sequence; examples of weight 0 are not in a packed batch
        before = jnp.pad(segment_ids[1], ((0, 0), (1, 0)))[:, :-1]
        examples = (weights > 0) & (segment_ids[1] != before)
        input_tokens = inputs != PAD
    metrics = {
        "loss": loss,
        "loss_lm": loss_lm,
        "loss_ul": loss_ul,
        "accuracy": jnp.sum(found.hit * weights) / divisor,
        "tokens": jnp.sum(weights),
        "input_tokens": jnp.sum(input_tokens, dtype=jnp.float32),
        "examples": jnp.sum(examples, dtype=jnp.float32),
        "useful_tokens": jnp.sum(input_tokens, dtype=jnp.float32)
        + jnp.sum(useful, dtype=jnp.float32),
    }
    return loss, metrics


# inputs [B, S]; decoder inputs and targets [B, T]; likelihood and unlikelihood weights float32 [B, T]; segment ids.
_Arrays = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None
]


def _packed(batch: Batch) -> _Arrays:
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    wrong = batch.get("unlikelihood_weights")
    return (
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        batch["decoder_target_tokens"],
        weights,
        jnp.zeros_like(weights) if wrong is None else wrong.astype(jnp.float32),
        (batch["encoder_segment_ids"], batch["decoder_segment_ids"]),
    )


def _padded(batch: Batch, with_wrong: bool) -> _Arrays:
    """With wrong choices one forward pass of twice the batch, on each device its right choices, then its wrong ones."""
    inputs, decoder_inputs = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    targets = batch["decoder_target_tokens"]
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    nothing = jnp.zeros_like(weights)
    if not with_wrong:
        return inputs, decoder_inputs, targets, weights, nothing, None
    wrong_weights = weights * batch["wrong_weights"].astype(jnp.float32)[:, None]
    return (
        _both(inputs, batch["wrong_encoder_input_tokens"]),
        _both(decoder_inputs, decoder_inputs),
        _both(targets, targets),
        _both(weights, nothing),
        _both(nothing, wrong_weights),
        None,
    )


def divisor_of(batch: Batch) -> jax.Array:
    """The number of a batch's target tokens, at least 1: what makes sums over them means."""
    return jnp.maximum(jnp.sum(batch["decoder_loss_weights"].astype(jnp.float32)), 1.0)


def _both(first: jax.Array, second: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2B, ...], so that no device needs another's rows: for each of them first, then second."""
    devices = data_size()
    parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (first, second)]
    return jnp.concatenate(parts, axis=1).reshape(-1, *first.shape[1:])
