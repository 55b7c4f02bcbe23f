"""T5X's encoder-decoder model with FLIPPED's unlikelihood term, and the recipe's optimizer in T5X's form."""

# ruff: noqa: E402 - what T5X needs comes before its import
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import seqio

from flipped_core.errors import UserError, unknown
from flipped_t5x import requirement
from flipped_t5x.converter import PairedFeatureConverter
from flipped_tasks.seqio_vocabulary import SeqioVocabulary

requirement.prepare()
from t5x import adafactor, losses, metrics, models

OPTIMIZERS = ("adafactor",)


class FlippedModel(models.EncoderDecoderModel):
    """`EncoderDecoderModel` that is trained on L_LM + weight · L_UL; with weight 0 it is `EncoderDecoderModel`.

    Source: Ye et al. 2022 (arXiv 2210.02969), equation 3.
    """

    def __init__(self, *args: Any, unlikelihood_weight: float = 0.0, **settings: Any):
        """Args: unlikelihood_weight: the factor of L_UL; the other arguments are `EncoderDecoderModel`'s.

        Above 0 the batches must have `wrong_encoder_input_tokens` [B, S] and `wrong_weights` [B]: the model's
        feature converter, unless another is given, is `PairedFeatureConverter`.
        """
        if unlikelihood_weight < 0:
            raise UserError(f"unlikelihood_weight: expected at least 0, got {unlikelihood_weight}")
        if unlikelihood_weight and settings.get("feature_converter_cls") is None:
            settings["feature_converter_cls"] = PairedFeatureConverter
        super().__init__(*args, **settings)
        self._unlikelihood_weight = unlikelihood_weight

    def loss_fn(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """T5X's loss and metrics, and the unlikelihood term: metrics 'loss_lm' and 'loss_ul' (without its factor).

        Both terms are divided by T5X's `loss_normalizing_factor`; an example without a wrong choice adds 0 to L_UL.
        """
        if not self._unlikelihood_weight:
            return super().loss_fn(params, batch, dropout_rng)
        keys = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        loss_lm, found = super().loss_fn(params, batch, keys[0])
        wrong = {**batch, "encoder_input_tokens": batch["wrong_encoder_input_tokens"]}
        logits = self._compute_logits(params, wrong, keys[1])
        divisor, weights = losses.get_loss_normalizing_factor_and_weights(
            self._loss_normalizing_factor, batch
        )
        weights = weights * batch["wrong_weights"].astype(jnp.float32)[:, None]
        loss_ul = jnp.sum(unlikelihood(logits, batch["decoder_target_tokens"]) * weights)
        if divisor is not None:
            loss_ul = loss_ul / divisor
        loss = loss_lm + self._unlikelihood_weight * loss_ul
        found["loss"] = metrics.AveragePerStep(total=loss)
        found["loss_lm"] = metrics.AveragePerStep(total=loss_lm)
        found["loss_ul"] = metrics.AveragePerStep(total=loss_ul)
        return loss, found


def unlikelihood(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−log(1 − p(target)) of each token: logits [B, T, V], targets [B, T] → [B, T] float32.

    It is softplus(z − log Σ exp of all other words' logits), which loses no digits as p nears 1.
    """
    logits = logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    is_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    others = jax.scipy.special.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    return jax.nn.softplus(target - others)


def optimizer(name: str) -> Any:
    """T5X's optimizer of the recipe's name: 'adafactor', as T5X's own T5 v1.1 configurations set it.

    Raises:
      UserError: another name; bind `FlippedModel.optimizer_def` to an optimizer of T5X then.
    """
    if name not in OPTIMIZERS:
        raise unknown("OPTIMIZER (for T5X)", name, OPTIMIZERS)
    return adafactor.Adafactor(
        decay_rate=0.8,
        step_offset=0,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
    )


def vocabulary(path: str) -> seqio.Vocabulary:
    """The vocabulary of a SentencePiece file, as this project's tasks have it.

    Raises:
      UserError: the file cannot be read.
    """
    found = SeqioVocabulary(path)
    assert found.vocab_size > 0
    return found
