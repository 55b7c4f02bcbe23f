"""Packs the examples of a batch into rows that hold several each, so that next to nothing is computed for padding.

A sequence is one encoder input with its target; a row holds whole sequences, inputs and targets of the same ones, in
the same order. FLIPPED's wrong inputs are sequences of their own. The loss of a packed batch, its metrics and its
gradient are those of the padded batch: attention stays within a sequence (`segment_ids`), relative positions are
differences of positions on the row, and the sums over tokens are divided by the same normalizer.

Which sequences share a row, and how many rows there are, depends on the lengths of the batch's sequences alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from flipped_core.errors import UserError

PAD = 0
# The numbers of rows that are compiled: so many for each doubling.
RUNGS_PER_OCTAVE = 8


@dataclasses.dataclass(frozen=True)
class RowLengths:
    """The lengths of a packed row.

    Attributes:
      inputs: S, encoder tokens of a row.
      targets: T, decoder tokens of a row.
    """

    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Where the sequences of a batch lie.

    Attributes:
      rows: the sequences of each row, by index, in their order on the row.
      input_lengths, target_lengths: of each sequence, int [n].
    """

    rows: Sequence[Sequence[int]]
    input_lengths: np.ndarray
    target_lengths: np.ndarray


def assign(
    input_lengths: np.ndarray, target_lengths: np.ndarray, lengths: RowLengths
) -> Assignment:
    """First-fit decreasing by the larger of the shares of a row that a sequence's input and target take.

    Args:
      input_lengths, target_lengths: of each sequence, int [n]; those without a target get no place.
      lengths: of a row.

    Raises:
      UserError: a sequence is longer than a row.
    """
    for name, found, most in (
        ("inputs", input_lengths, lengths.inputs),
        ("targets", target_lengths, lengths.targets),
    ):
        longest = int(found.max(initial=0))
        if longest > most:
            raise UserError(
                f"PACK_ROW_LENGTHS[{name!r}]: expected at least the longest example, {longest} tokens, got {most}"
            )
    share = np.maximum(input_lengths / lengths.inputs, target_lengths / lengths.targets)
    order = [int(i) for i in np.argsort(-share, kind="stable") if target_lengths[i]]
    free = np.tile([lengths.inputs, lengths.targets], (max(1, len(order)), 1))
    rows: list[list[int]] = []
    for i in order:
        needed = (input_lengths[i], target_lengths[i])
        row = int(np.argmax((free >= needed).all(axis=1)))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        free[row] -= needed
    return Assignment(rows, input_lengths, target_lengths)


def rung(rows: int, multiple: int) -> int:
    """The number of rows to compile for, at least `rows`.

    Args:
      rows: that are needed.
      multiple: the result is a multiple of this: the devices of the data axis times the microbatches.
    """
    rows = max(1, rows)
    step = max(1, 2 ** (rows.bit_length() - 1) // RUNGS_PER_OCTAVE)
    step = -(-step // multiple) * multiple
    return -(-rows // step) * step


def pack(
    batch: Mapping[str, np.ndarray],
    lengths: RowLengths,
    multiple: int = 1,
    num_rows: int | None = None,
) -> dict[str, np.ndarray]:
    """A padded batch as packed rows.

    Args:
      batch: `encoder_input_tokens` [B, S'], `decoder_target_tokens` and `decoder_loss_weights` [B, T'], and for
        FLIPPED `wrong_encoder_input_tokens` [B, S'] and `wrong_weights` [B].
      lengths: of the rows.
      multiple: of the number of rows; see `rung`.
      num_rows: the number of rows, where it is known; `rung` chooses it otherwise.

    Returns:
      int32 `encoder_input_tokens` and `encoder_segment_ids` [R, S]; `decoder_input_tokens` (shifted within each
      sequence), `decoder_target_tokens`, `decoder_segment_ids` and `decoder_loss_weights` [R, T]; and for FLIPPED
      `unlikelihood_weights` [R, T]. A sequence has one segment id, from 1 in each row; padding has 0.

    Raises:
      UserError: a sequence is longer than a row, or `num_rows` do not hold the batch.
    """
    sequences = _sequences(batch)
    inputs, targets, right, wrong = sequences
    assigned = assign((inputs != PAD).sum(axis=1), (targets != PAD).sum(axis=1), lengths)
    needed = len(assigned.rows)
    if num_rows is None:
        num_rows = rung(needed, multiple)
    if needed > num_rows:
        raise UserError(
            f"PACK_ROWS: expected at least the {needed} rows that the batch needs, got {num_rows}"
        )
    out = {
        name: np.zeros(
            (num_rows, lengths.inputs if name.startswith("encoder") else lengths.targets), np.int32
        )
        for name in (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_target_tokens",
            "decoder_segment_ids",
            "decoder_loss_weights",
            "unlikelihood_weights",
        )
    }
    for row, members in enumerate(assigned.rows):
        at = at_target = 0
        for segment, i in enumerate(members, start=1):
            length, target_length = assigned.input_lengths[i], assigned.target_lengths[i]
            place = slice(at, at + length)
            out["encoder_input_tokens"][row, place] = inputs[i, :length]
            out["encoder_segment_ids"][row, place] = segment
            place = slice(at_target, at_target + target_length)
            ids = targets[i, :target_length]
            out["decoder_target_tokens"][row, place] = ids
            out["decoder_input_tokens"][row, place] = [0, *ids[:-1]]
            out["decoder_segment_ids"][row, place] = segment
            out["decoder_loss_weights"][row, place] = right[i]
            out["unlikelihood_weights"][row, place] = wrong[i]
            at, at_target = at + length, at_target + target_length
    if "wrong_encoder_input_tokens" not in batch:
        del out["unlikelihood_weights"]
    return out


def _sequences(
    batch: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(inputs [n, S'], targets [n, T'], likelihood weights [n], unlikelihood weights [n]) of all sequences.

    A right sequence whose tokens all have weight 0, and a wrong one that is not there, have an empty target.
    """
    weighted = np.any(batch["decoder_loss_weights"], axis=1).astype(np.int32)
    inputs = batch["encoder_input_tokens"]
    targets = batch["decoder_target_tokens"] * weighted[:, None]
    if "wrong_encoder_input_tokens" not in batch:
        return inputs, targets, weighted, np.zeros_like(weighted)
    wrong = (batch["wrong_weights"] != 0).astype(np.int32) * weighted
    return (
        np.concatenate([inputs, batch["wrong_encoder_input_tokens"]]),
        np.concatenate([targets, targets * wrong[:, None]]),
        np.concatenate([weighted, np.zeros_like(weighted)]),
        np.concatenate([np.zeros_like(wrong), wrong]),
    )


def filled(batch: Mapping[str, np.ndarray]) -> float:
    """The share of a packed batch's positions, encoder and decoder together, that hold tokens."""
    ids = [batch[name] for name in ("encoder_segment_ids", "decoder_segment_ids")]
    return float(sum((x != 0).sum() for x in ids) / sum(x.size for x in ids))
