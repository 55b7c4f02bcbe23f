"""Our scorer's protocol on T5X's `score_batch`: log p(target given input) of pairs of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from flipped_core.errors import UserError

Pair = tuple[Sequence[int], Sequence[int]]
LENGTH_STEP = 32  # lengths are rounded up to a multiple of it, so that few shapes are compiled


class T5XScorer:
    """Scores pairs with a model of T5X, in place of `t5_engine.scorer.Scorer`."""

    def __init__(self, model: Any, params: Any, batch_size: int = 32):
        """Args: model: a T5X encoder-decoder model; params: its parameters; batch_size: pairs at a time."""
        if batch_size < 1:
            raise UserError(f"batch_size: expected at least 1, got {batch_size}")
        self._params, self._batch_size = params, batch_size
        self._score = jax.jit(lambda params, batch: model.score_batch(params, batch))

    def score(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """The summed log-probability of each pair's target, float32 [n]; tells (done, all) as it goes.

        Raises:
          UserError: an empty target.
        """
        for number, (_, target) in enumerate(pairs):
            if not target:
                raise UserError(f"pair {number}: expected a target with tokens, got none")
        order = sorted(
            range(len(pairs)), key=lambda n: (_rounded(len(pairs[n][0])), len(pairs[n][1]))
        )
        out = np.zeros(len(pairs), np.float32)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            batch = self._batch([pairs[number] for number in chosen])
            out[chosen] = np.asarray(self._score(self._params, batch))[: len(chosen)]
            if progress is not None:
                progress(start + len(chosen), len(pairs))
        return out

    def _batch(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """[batch_size, S] and [batch_size, T], padded with 0; rows beyond the pairs weigh nothing."""
        length = _rounded(max(len(inputs) for inputs, _ in pairs))
        target_length = _rounded(max(len(targets) for _, targets in pairs))
        inputs = np.zeros((self._batch_size, length), np.int32)
        targets = np.zeros((self._batch_size, target_length), np.int32)
        weights = np.zeros((self._batch_size, target_length), np.float32)
        for row, (ids, target) in enumerate(pairs):
            inputs[row, : len(ids)] = ids
            targets[row, : len(target)] = target
            weights[row, : len(target)] = 1
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": weights,
        }


def _rounded(length: int) -> int:
    return max(1, -(-length // LENGTH_STEP)) * LENGTH_STEP
