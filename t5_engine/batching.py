"""How the scorer's pairs become batches: duplicates go, like lengths go together, few shapes are compiled.

A *group* is one distinct input with its distinct targets. A *shape* is what groups are padded to; each shape in
use is compiled once, which costs seconds, and padding costs arithmetic: `plan` weighs the one against the other.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from t5_engine.config import T5Config

Pair = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The padded sizes of a group: tokens of the input, tokens of each target, number of targets."""

    inputs: int
    targets: int
    choices: int

    def holds(self, other: Shape) -> bool:
        """Whether a group of the other shape fits."""
        return self | other == self

    def __or__(self, other: Shape) -> Shape:
        """The smallest shape that holds both."""
        return Shape(
            max(self.inputs, other.inputs),
            max(self.targets, other.targets),
            max(self.choices, other.choices),
        )

    def flops(self, config: T5Config) -> float:
        """The arithmetic of one group's forward pass."""
        attention, mlp = config.emb_dim * config.joined_kv, 3 * config.emb_dim * config.mlp_dim
        # Per input token: the encoder's layers, and cross-attention's keys and values in the decoder's.
        encoder = config.num_encoder_layers * (
            4 * attention + mlp + 2 * self.inputs * config.joined_kv
        )
        shared = config.num_decoder_layers * 2 * attention
        lengths = 2 * (self.inputs + self.targets)
        decoder = config.num_decoder_layers * (6 * attention + mlp + lengths * config.joined_kv)
        logits = config.emb_dim * config.vocab_size
        return 2.0 * (
            self.inputs * (encoder + shared) + self.targets * self.choices * (decoder + logits)
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """One distinct input, its distinct targets, and the slot of each target's score."""

    input_ids: np.ndarray
    target_ids: tuple[np.ndarray, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The rising sizes to which groups are padded; beyond the last, multiples of it."""

    inputs: Sequence[int]
    targets: Sequence[int]
    choices: Sequence[int]

    def shape(self, group: Group) -> Shape:
        """The smallest shape of these buckets that holds the group."""
        return Shape(
            round_up(len(group.input_ids), self.inputs),
            round_up(max(map(len, group.target_ids)), self.targets),
            round_up(len(group.target_ids), self.choices),
        )


def round_up(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds the length; beyond the last, a multiple of it."""
    position = bisect.bisect_left(buckets, length)
    if position < len(buckets):
        return buckets[position]
    return -(-length // buckets[-1]) * buckets[-1]


def group_pairs(pairs: Sequence[Pair]) -> tuple[list[Group], np.ndarray]:
    """The distinct pairs by input, and for each pair the slot of its score (int64 [len(pairs)])."""
    by_input: dict[bytes, dict[bytes, int]] = {}
    slot_of_pair = np.zeros(len(pairs), np.int64)
    count = 0
    for i, (input_ids, target_ids) in enumerate(pairs):
        targets = by_input.setdefault(np.asarray(input_ids, np.int32).tobytes(), {})
        key = np.asarray(target_ids, np.int32).tobytes()
        if key not in targets:
            targets[key] = count
            count += 1
        slot_of_pair[i] = targets[key]
    groups = [
        Group(
            np.frombuffer(input_key, np.int32),
            tuple(np.frombuffer(key, np.int32) for key in targets),
            tuple(targets.values()),
        )
        for input_key, targets in by_input.items()
    ]
    return groups, slot_of_pair


def plan(
    groups: Sequence[Group],
    buckets: Buckets,
    *,
    rows: Callable[[Shape], int],
    row_cost: Callable[[Shape], float],
    shape_cost: float,
    compiled: Collection[Shape],
) -> list[tuple[Shape, list[Group]]]:
    """Batches of one shape each; only the last batch of a shape may be short.

    Starts from the buckets and merges shapes, the greatest saving first, as long as this saves anything.

    Args:
      groups: what to batch.
      buckets: the sizes to begin with.
      rows: how many groups a batch of a shape has.
      row_cost: the cost of a group of a shape; short batches cost as much as full ones.
      shape_cost: the cost of compiling a shape, in the same unit.
      compiled: shapes that cost nothing more.

    Returns:
      The batches, those of the costliest shape first: if the memory does not suffice, this shows at once.
    """
    bins: dict[Shape, list[Group]] = collections.defaultdict(list)
    for group in groups:
        bins[buckets.shape(group)].append(group)
    full_cost = functools.cache(lambda shape: rows(shape) * row_cost(shape))

    def cost(shape: Shape, count: int) -> float:
        return -(-count // rows(shape)) * full_cost(shape) + shape_cost * (shape not in compiled)

    heap: list[tuple[float, Shape, tuple[Shape, ...], tuple[int, ...]]] = []

    def offer(merged: Shape, parts: tuple[Shape, ...]) -> None:
        counts = tuple(len(bins[part]) for part in parts)
        saving = sum(map(cost, parts, counts)) - cost(merged, sum(counts))
        if saving > 0:
            heapq.heappush(heap, (-saving, merged, parts, counts))

    def offer_all(part: Shape, others: Iterable[Shape]) -> None:
        """Each merge of this bin: with another bin, or into a compiled shape that is not in use."""
        for other in others:
            offer(part | other, (part, other))
        for shape in compiled:
            if shape not in bins and shape.holds(part):
                offer(shape, (part,))

    shapes = list(bins)
    for i, shape in enumerate(shapes):
        offer_all(shape, shapes[:i])
    while heap:
        _, merged, parts, counts = heapq.heappop(heap)
        if any(part not in bins for part in parts):
            continue
        if tuple(len(bins[part]) for part in parts) != counts:
            continue  # a bin has grown since; its new merges were offered then
        if merged in bins and merged not in parts:
            continue  # a third bin, which each part may join by itself
        bins[merged] = [group for part in parts for group in bins.pop(part)]
        offer_all(merged, [other for other in bins if other != merged])
    return [
        (shape, bins[shape][start : start + rows(shape)])
        for shape in sorted(bins, key=lambda shape: (-row_cost(shape), shape))
        for start in range(0, len(bins[shape]), rows(shape))
    ]
