"""The few shapes that packed batches have: each new one is compiled once.

Chosen from the lengths of the first batches of the run's stream, which every process and every later start of the run
reads alike, so that all of them pack a batch into the same shape without asking each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from flipped_core.errors import UserError
from t5_engine.packing import Batch, Sequences, Shape, assign, lay_out, sequences

# The batches whose lengths are measured.
SAMPLE = 16
# The numbers of rows: the sample's mean and these many standard deviations. The first three hold 34%, 82% and 99% of
# the batches; the last one is also for a batch with a longer example.
_DEVIATIONS = (-0.4, 0.9, 2.4)
_LAST_DEVIATION = 5.0
# Beyond the ladder a batch takes a multiple of this factor more rows.
_GROWTH = 1.25
# Row lengths are multiples of this, and longer than the sample's longest example by this factor.
_ALIGNMENT = 8
_HEADROOM = 1.25
_STRETCHES = (1, 1.1, 1.25, 1.4, 1.6, 1.8, 2, 2.5, 3, 4)
_MARGINS = (1, 1.1, 1.2)
# Longer rows are taken only for this much less arithmetic: attention's memory grows with their square.
_WORTH = 0.98

Cost = Callable[[int, int], float]  # of a row of (inputs, targets) tokens


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Shapes by size, and how a batch finds its own.

    Attributes:
      shapes: the first that holds a batch is taken.
      multiple: of every number of rows: the devices of the data axis times the microbatches.
      limits: the longest input and target that may come, in tokens.
      fixed_lengths, fixed_rows: what the user has set; a batch that they do not hold is an error.
      digest: of the batches that it was fitted to, which all processes must have read alike.
    """

    shapes: tuple[Shape, ...]
    multiple: int
    limits: tuple[int, int]
    fixed_lengths: bool = False
    fixed_rows: bool = False
    digest: str = ""

    def __str__(self) -> str:
        shapes = ", ".join(f"{rows} x {inputs}/{targets}" for rows, inputs, targets in self.shapes)
        return f"batches are packed into rows x inputs/targets tokens: {shapes}"

    def pack(self, batch: Batch) -> dict[str, np.ndarray]:
        """A padded batch, packed; see `packing.lay_out`.

        Raises:
          UserError: an example is longer than the rows, or needs more of them, than the user has set.
        """
        found = sequences(batch)
        rows: dict[tuple[int, int], list[list[int]]] = {}
        for shape in self._candidates(found):
            lengths = (shape.inputs, shape.targets)
            if lengths not in rows:
                rows[lengths] = assign(found.input_lengths, found.target_lengths, *lengths)
            if len(rows[lengths]) <= shape.rows:
                return lay_out(found, rows[lengths], shape)
        needed = min(map(len, rows.values()))
        raise UserError(
            f"PACK_ROWS: expected at least the {needed} rows that a batch needs, got {self.shapes[-1].rows} at most"
        )

    def _candidates(self, found: Sequences) -> Iterator[Shape]:
        """The shapes whose rows are long enough, endless where the user has set none."""
        longest = found.longest
        if self.fixed_lengths:
            refuse_short_rows(self.shapes[-1], longest)
        last = self.shapes[-1]
        for shape in self.shapes:
            if _holds(shape, longest):
                yield shape
        if not _holds(last, longest):
            last = Shape(last.rows, *map(max, last[1:], self.limits, longest))
            yield last
        while not self.fixed_rows:
            last = last._replace(rows=_rounded(last.rows * _GROWTH, self.multiple))
            yield last


def refuse_short_rows(shape: Shape, longest: tuple[int, int]) -> None:
    """Raises `UserError` where an example is longer than the rows that the user has set."""
    for name, most, found in zip(("inputs", "targets"), shape[1:], longest, strict=True):
        if found > most:
            raise UserError(
                f"PACK_LENGTHS[{name!r}]: expected at least {found}, the tokens of the longest example so far, "
                f"got {most}"
            )


def fit(
    batches: Iterable[Batch],
    multiple: int,
    cost: Cost,
    lengths: Mapping[str, int] | None = None,
    rows: Sequence[int] | None = None,
) -> Ladder:
    """The ladder for batches like these.

    Args:
      batches: padded to the longest lengths that may come.
      multiple: see `Ladder`.
      cost: see `Cost`.
      lengths: of a row, "inputs" and "targets", where the user has set them.
      rows: the numbers of rows, where the user has set them.

    Raises:
      UserError: rows that are shorter than an example, or no multiple of `multiple`, or too few.
    """
    kept = list(batches)
    limits = (
        kept[0]["encoder_input_tokens"].shape[1],
        kept[0]["decoder_target_tokens"].shape[1],
    )
    sample = [sequences(batch) for batch in kept]
    if rows is not None and (wrong := [number for number in rows if number % multiple]):
        raise UserError(
            f"PACK_ROWS: expected multiples of {multiple} (devices of the data axis x microbatches), got {wrong[0]}"
        )
    if lengths is None:
        chosen = choose_lengths(sample, limits, multiple, cost)
        longer = tuple(
            max(one, min(limit, 2 * one)) for one, limit in zip(chosen, limits, strict=True)
        )
    else:
        chosen = longer = (lengths["inputs"], lengths["targets"])
        for one in sample:
            refuse_short_rows(Shape(0, *chosen), one.longest)
    if rows is None:
        needed = [len(assign(one.input_lengths, one.target_lengths, *chosen)) for one in sample]
        *fewer, most = _numbers(needed, multiple)
        shapes = [*(Shape(number, *chosen) for number in fewer), Shape(most, *longer)]
    else:
        shapes = [Shape(number, *chosen) for number in sorted(rows)]
        if lengths is None:
            shapes.append(Shape(shapes[-1].rows, *longer))
    digest = hashlib.sha256()
    for batch in kept:
        digest.update(np.ascontiguousarray(batch["encoder_input_tokens"]).tobytes())
    found = Ladder(
        tuple(dict.fromkeys(shapes)),
        multiple,
        limits,
        lengths is not None,
        rows is not None,
        digest.hexdigest(),
    )
    if rows is not None:
        for batch in kept:
            found.pack(batch)
    return found


def choose_lengths(
    sample: Sequence[Sequences], limits: tuple[int, int], multiple: int, cost: Cost
) -> tuple[int, int]:
    """The (S, T) of the rows that cost the least; both leave headroom over the longest example of the sample.

    Args:
      sample: of some batches.
      limits: the longest input and target that may come.
      multiple: of the number of rows.
      cost: see `Cost`.
    """
    longest = [max(both) for both in zip(*(one.longest for one in sample), strict=True)]
    least = [
        _rounded(min(limit, most * _HEADROOM), _ALIGNMENT)
        for limit, most in zip(limits, longest, strict=True)
    ]
    totals = [(int(one.input_lengths.sum()), int(one.target_lengths.sum())) for one in sample]
    ratio = sum(targets for _, targets in totals) / max(1, sum(inputs for inputs, _ in totals))
    candidates = set()
    for stretch in _STRETCHES:
        for margin in _MARGINS:
            inputs, targets = (_rounded(stretch * one, _ALIGNMENT) for one in least)
            of_inputs = _rounded(inputs * ratio * margin, _ALIGNMENT)
            of_targets = _rounded(targets * margin / ratio, _ALIGNMENT) if ratio else inputs
            candidates.add((inputs, max(least[1], of_inputs)))
            if of_targets <= _STRETCHES[-1] * least[0]:
                candidates.add((max(least[0], of_targets), targets))
    best, best_cost = (least[0], least[1]), math.inf
    for inputs, targets in sorted(candidates, key=lambda pair: (sum(pair), pair)):
        each = cost(inputs, targets)
        fewest = (max(of_inputs / inputs, of_targets / targets) for of_inputs, of_targets in totals)
        if sum(_rounded(rows, multiple) for rows in fewest) * each >= best_cost * _WORTH:
            continue
        needed = [
            len(assign(one.input_lengths, one.target_lengths, inputs, targets)) for one in sample
        ]
        numbers = _numbers(needed, multiple)
        taken = (next((n for n in numbers if n >= rows), numbers[-1]) for rows in needed)
        total = sum(taken) * each
        if total < best_cost * _WORTH:
            best, best_cost = (inputs, targets), total
    return best


def _numbers(needed: Sequence[int], multiple: int) -> list[int]:
    """The numbers of rows, given what the sample's batches need."""
    mean = sum(needed) / len(needed)
    # From whole numbers, so that no order of summation decides.
    variance = (len(needed) * sum(n * n for n in needed) - sum(needed) ** 2) / len(needed) ** 2
    deviation = max(math.sqrt(variance), 0.01 * mean)
    return [
        _rounded(mean + factor * deviation, multiple) for factor in (*_DEVIATIONS, _LAST_DEVIATION)
    ]


def _rounded(number: float, multiple: int) -> int:
    """Up to a multiple, at least one."""
    return max(1, math.ceil(number / multiple)) * multiple


def _holds(shape: Shape, longest: tuple[int, int]) -> bool:
    return shape.inputs >= longest[0] and shape.targets >= longest[1]
