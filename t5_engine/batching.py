"""How the scorer's pairs become batches: duplicates go, nothing is padded but attention, few shapes are compiled.

A *group* is one distinct input with its distinct targets. A *batch* holds the inputs of several groups one after the
other, without padding between them, and their targets likewise; only attention, a small part of the arithmetic, runs on
sequences padded to one length (`layers.Ragged`). A `Shape` says for how much a batch has room. Each shape in use is
compiled once, which costs seconds; rooms that stay empty and attention's padding cost arithmetic: `Planner` weighs the
one against the other.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from flipped_core.errors import UserError
from t5_engine.config import T5Config

Pair = tuple[Sequence[int], Sequence[int]]

TOGETHER = 4_000  # groups that are dealt out to batches at a time
_SMALLEST = 64  # tokens: the budget of the smallest batch
_RATIO_STEP = 2**0.25


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """The room in one batch (on each device).

    Attributes:
      input_tokens: for the tokens of all inputs together.
      inputs: for so many inputs.
      input_length: of so many tokens each.
      target_tokens: for the tokens of all targets together.
      bundles: for so many bundles of targets.
      bundle_length: of so many tokens each.
    """

    input_tokens: int
    inputs: int
    input_length: int
    target_tokens: int
    bundles: int
    bundle_length: int

    @property
    def room(self) -> np.ndarray:
        """For what a group takes: tokens of its input, one input and bundle, tokens of its targets."""
        return np.array([self.input_tokens, min(self.inputs, self.bundles), self.target_tokens])

    def cost(self, config: T5Config, attention_weight: float) -> float:
        """The arithmetic of a batch, full or not.

        Args:
          config: the model's.
          attention_weight: how many times as long an operation of attention takes as one of the products with
            weights, where attention pads each sequence to the shape's lengths; 0 where it does not, and so hardly
            depends on the shape.
        """
        projection, mlp = config.emb_dim * config.joined_kv, 3 * config.emb_dim * config.mlp_dim
        # Per input token: the encoder's layers, and cross-attention's keys and values in the decoder's.
        encoder = config.num_encoder_layers * (4 * projection + mlp)
        encoder += config.num_decoder_layers * 2 * projection
        decoder = config.num_decoder_layers * (6 * projection + mlp)
        decoder += config.emb_dim * config.vocab_size
        attended = config.num_encoder_layers * self.inputs * self.input_length**2
        attended += (
            config.num_decoder_layers
            * self.bundles
            * self.bundle_length
            * (self.bundle_length + self.input_length)
        )
        attention = attention_weight * 2 * config.joined_kv * attended
        return 2.0 * (self.input_tokens * encoder + self.target_tokens * decoder + attention)


@dataclasses.dataclass(frozen=True)
class Group:
    """One distinct input, its distinct targets (none of them empty), and the slot of each target's score."""

    input_ids: np.ndarray
    target_ids: tuple[np.ndarray, ...]
    slots: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """What it takes of a shape's `room`."""
        return len(self.input_ids), 1, sum(map(len, self.target_ids))


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Targets of one input that are decoded side by side: the input's number in the batch, ids and slots."""

    input: int
    target_ids: tuple[np.ndarray, ...]
    slots: tuple[int, ...]


Go = tuple[tuple[Bundle, ...], ...]  # of each device, what is decoded at a time


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs that are encoded together, and their targets, which are decoded in one or several goes.

    Attributes:
      shape: its room.
      inputs: on each device, the inputs.
      goes: what is decoded, one after the other.
    """

    shape: Shape
    inputs: tuple[tuple[np.ndarray, ...], ...]
    goes: tuple[Go, ...]


def group_pairs(pairs: Iterable[Pair]) -> tuple[list[Group], np.ndarray, int]:
    """The distinct pairs by input; for each pair the slot of its score (int64 [pairs]); the number of slots.

    Pairs with an empty target are in no group; they have the last slot.

    Raises:
      UserError: an input is empty.
    """
    by_input: dict[bytes, dict[bytes, int]] = {}
    slots: list[int] = []
    count = 0
    for number, (input_ids, target_ids) in enumerate(pairs):
        if not len(input_ids):
            raise UserError(f"pair {number}: expected an input of at least one token, got none")
        if not len(target_ids):
            slots.append(-1)
            continue
        targets = by_input.setdefault(np.asarray(input_ids, np.int32).tobytes(), {})
        key = np.asarray(target_ids, np.int32).tobytes()
        if key not in targets:
            targets[key] = count
            count += 1
        slots.append(targets[key])
    groups = [
        Group(
            np.frombuffer(input_key, np.int32),
            tuple(np.frombuffer(key, np.int32) for key in targets),
            tuple(targets.values()),
        )
        for input_key, targets in by_input.items()
    ]
    slot_of_pair = np.array(slots, np.int64)
    return groups, np.where(slot_of_pair < 0, count, slot_of_pair), count + 1


def round_up(length: float, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds the length; beyond the last, a multiple of it."""
    position = bisect.bisect_left(buckets, length)
    if position < len(buckets):
        return buckets[position]
    return math.ceil(length / buckets[-1]) * buckets[-1]


def deal(sizes: np.ndarray, room: np.ndarray) -> list[list[int]]:
    """Deals items out to as few batches as it can, all filled alike.

    Args:
      sizes: [items, n], what each item takes of n things.
      room: [n], what a batch has of each; more than any item takes.

    Returns:
      The items of each batch.
    """
    loads = np.asarray(sizes, float).reshape(-1, len(room)) / room
    used = np.zeros((math.ceil(loads.sum(0).max(initial=0)), len(room)))
    batches: list[list[int]] = [[] for _ in used]
    # The greatest first, each to where it leaves most room.
    for item in np.argsort(-loads.max(1, initial=0), kind="stable"):
        fullest = (used + loads[item]).max(1)
        batch = int(fullest.argmin())
        if fullest[batch] > 1 + 1e-9:
            batch = len(batches)
            batches.append([])
            used = np.concatenate([used, np.zeros((1, len(room)))])
        batches[batch].append(int(item))
        used[batch] += loads[item]
    return batches


@dataclasses.dataclass(frozen=True)
class _Bin:
    """Groups that could share a shape, as sums: what the planner reckons with before it deals them out."""

    input_length: int
    bundle_length: int
    total: tuple[int, ...]  # of all groups' sizes
    most: tuple[int, ...]  # of one group
    members: tuple[int, ...]

    def __or__(self, other: _Bin) -> _Bin:
        return _Bin(
            max(self.input_length, other.input_length),
            max(self.bundle_length, other.bundle_length),
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(map(max, self.most, other.most)),
            self.members + other.members,
        )

    def fits(self, shape: Shape) -> bool:
        return (
            self.input_length <= shape.input_length
            and self.bundle_length <= shape.bundle_length
            and all(self.most <= shape.room)
        )


@dataclasses.dataclass(frozen=True)
class Planner:
    """Decides which shapes to use and what goes where.

    Attributes:
      input_buckets: rising lengths to which inputs are padded for attention; beyond the last, multiples of it.
      target_buckets: likewise for the targets of an input, one after the other.
      tokens: in a full batch on each device, of inputs and targets together, about.
      most_inputs: in a batch on each device; None for as many as there is room for.
      batch_cost: of computing a batch of a shape.
      shape_cost: of compiling a shape, in the same unit.
      devices: that share the batches, each with its own groups.
    """

    input_buckets: Sequence[int]
    target_buckets: Sequence[int]
    tokens: int
    most_inputs: int | None
    batch_cost: Callable[[Shape], float]
    shape_cost: float
    devices: int = 1

    def plan(self, groups: Sequence[Group], compiled: Collection[Shape] = ()) -> list[Batch]:
        """Batches that hold every group once, the costliest first: if the memory does not suffice, it shows at once.

        Args:
          groups: what to batch.
          compiled: shapes that cost nothing more.
        """
        limit = min(self.tokens // 2, self.target_buckets[-1])
        wide = [group for group in groups if len(group.slots) > 1 and group.size[2] > limit]
        narrow = [group for group in groups if len(group.slots) == 1 or group.size[2] <= limit]
        batches = [*self._narrow(narrow, compiled), *self._wide(wide, compiled)]
        return sorted(batches, key=lambda batch: -self.batch_cost(batch.shape))

    def _narrow(self, groups: Sequence[Group], compiled: Collection[Shape]) -> Iterator[Batch]:
        """Batches of groups each of which is one bundle."""
        by_shape: dict[Shape, _Bin] = {}
        for one in self._bins(groups, compiled):
            _, shape = self._cheapest(one, compiled)
            # What shares a shape shares its last, half-empty batch too.
            by_shape[shape] = by_shape[shape] | one if shape in by_shape else one
        for shape, one in by_shape.items():
            for start in range(0, len(one.members), TOGETHER):
                some = [groups[i] for i in one.members[start : start + TOGETHER]]
                dealt = deal(np.array([group.size for group in some]), shape.room)
                for several in _chunks([[some[i] for i in batch] for batch in dealt], self.devices):
                    inputs = tuple(tuple(group.input_ids for group in batch) for batch in several)
                    go = tuple(
                        tuple(
                            Bundle(number, group.target_ids, group.slots)
                            for number, group in enumerate(batch)
                        )
                        for batch in several
                    )
                    yield Batch(shape, inputs, (go,))

    def _bins(self, groups: Sequence[Group], compiled: Collection[Shape]) -> list[_Bin]:
        """Which groups share a shape.

        Starts from the buckets and merges, the greatest saving first, as long as this saves anything.
        """
        starts: dict[tuple[int, int], list[int]] = {}
        sizes = [group.size for group in groups]
        for member, (inputs, _, targets) in enumerate(sizes):
            lengths = round_up(inputs, self.input_buckets), round_up(targets, self.target_buckets)
            starts.setdefault(lengths, []).append(member)
        bins = {}
        for number, (lengths, members) in enumerate(starts.items()):
            own = np.array([sizes[i] for i in members])
            total, most = tuple(own.sum(0).tolist()), tuple(own.max(0).tolist())
            bins[number] = _Bin(*lengths, total, most, tuple(members))
        cheapest = functools.cache(lambda one: self._cheapest(one, compiled)[0])
        heap: list[tuple[float, int, int]] = []

        def offer(first: int, second: int) -> None:
            apart = cheapest(bins[first]) + cheapest(bins[second])
            saving = apart - cheapest(bins[first] | bins[second])
            if saving > 0:
                heapq.heappush(heap, (-saving, first, second))

        for second in bins:
            for first in range(second):
                offer(first, second)
        number = len(bins)
        while heap:
            _, first, second = heapq.heappop(heap)
            if first in bins and second in bins:
                bins[number] = bins.pop(first) | bins.pop(second)
                for other in list(bins)[:-1]:
                    offer(other, number)
                number += 1
        return list(bins.values())

    def _cheapest(self, one: _Bin, compiled: Collection[Shape]) -> tuple[float, Shape]:
        """The shape that suits the bin best, after its cost."""
        options = self._reusable(one, compiled)
        step = math.floor(math.log(one.total[2] / one.total[0], _RATIO_STEP))
        tokens = self.tokens
        while tokens >= _SMALLEST:
            for exponent in range(step - 1, step + 4):
                inputs = tokens / (1 + _RATIO_STEP**exponent)
                shape = self._shape(one, inputs, tokens - inputs)
                if one.fits(shape):
                    options.add(shape)
            tokens //= 2
            # Smaller batches only where one that is less than full holds all.
            if one.total[0] + one.total[2] > tokens * self.devices:
                break
        options = options or {self._just(one)}
        return min((self._cost(one, shape, compiled), shape) for shape in options)

    def _reusable(self, one: _Bin, compiled: Collection[Shape]) -> set[Shape]:
        """The compiled shapes in which such groups have room, within the limits of this planner."""
        tokens = 1.25 * self.tokens  # the roundings of `_shape` included
        return {
            shape
            for shape in compiled
            if one.fits(shape)
            and shape.room[1] <= (self.most_inputs or math.inf)
            and shape.input_tokens + shape.target_tokens <= tokens
        }

    def _cost(self, one: _Bin, shape: Shape, compiled: Collection[Shape]) -> float:
        batches = math.ceil(max(np.array(one.total) / shape.room) / self.devices)
        return batches * self.batch_cost(shape) + self.shape_cost * (shape not in compiled)

    def _shape(self, one: _Bin, input_tokens: float, target_tokens: float) -> Shape:
        """Room for about so many tokens of groups like those of a bin."""
        if self.most_inputs is not None:
            input_tokens = min(input_tokens, self.most_inputs * one.input_length)
            target_tokens = min(target_tokens, self.most_inputs * one.bundle_length)
        inputs = _coarse(max(one.input_length, input_tokens))
        count = _count(inputs, one.input_length, one.total[0] / one.total[1])
        count = min(count, self.most_inputs or count)
        targets = _coarse(max(one.bundle_length, target_tokens))
        return Shape(inputs, count, one.input_length, targets, count, one.bundle_length)

    def _just(self, one: _Bin) -> Shape:
        """Room for the largest group of a bin, where that is more than a batch has otherwise."""
        inputs, targets = _coarse(one.most[0]), _coarse(one.most[2])
        return Shape(inputs, 1, one.input_length, targets, 1, one.bundle_length)

    def _wide(self, groups: Sequence[Group], compiled: Collection[Shape]) -> Iterator[Batch]:
        """Batches of groups that have more targets than fit into a bundle: encoded once, decoded in several goes.

        Every device gets the inputs; the bundles are shared among the devices.
        """
        if not groups:
            return
        sizes = np.array([(len(group.input_ids), 1) for group in groups])
        longest = max(len(ids) for group in groups for ids in group.target_ids)
        length = round_up(longest, self.target_buckets)
        bundles = [_bundles(group, length) for group in groups]
        tokens = sum(group.size[2] for group in groups)
        one = _Bin(
            round_up(sizes.max(0)[0], self.input_buckets),
            length,
            (int(sizes.sum(0)[0]), sum(map(len, bundles)), tokens),
            (int(sizes.max(0)[0]), 1, length),
            (),
        )
        inputs = min(self.tokens // 2, one.total[0])
        shape = self._shape(one, inputs, self.tokens - inputs)
        count = _count(shape.target_tokens, length, tokens / one.total[1])
        shape = dataclasses.replace(shape, bundles=min(count, self.most_inputs or count))
        options = {shape, *self._reusable(one, compiled)}
        _, shape = min((self._cost(one, shape, compiled), shape) for shape in options)
        for batch in deal(sizes, np.array([shape.input_tokens, shape.inputs])):
            here = [
                dataclasses.replace(bundle, input=number)
                for number, group in enumerate(batch)
                for bundle in bundles[group]
            ]
            takes = np.array([(sum(map(len, bundle.target_ids)), 1) for bundle in here])
            dealt = deal(takes, np.array([shape.target_tokens, shape.bundles]))
            goes = [tuple(here[i] for i in go) for go in dealt]
            row = tuple(groups[group].input_ids for group in batch)
            yield Batch(
                shape, (row,) * self.devices, tuple(map(tuple, _chunks(goes, self.devices)))
            )


def _bundles(group: Group, length: int) -> list[Bundle]:
    """The targets of a group in bundles of at most so many tokens."""
    takes = np.array([(len(ids),) for ids in group.target_ids])
    return [
        Bundle(0, tuple(group.target_ids[i] for i in few), tuple(group.slots[i] for i in few))
        for few in deal(takes, np.array([length]))
    ]


def _coarse(tokens: float) -> int:
    """Rounded up to one of few numbers: multiples of 1/8 of the power of two below, and of 8."""
    step = max(8, 2 ** math.floor(math.log2(max(tokens, 1))) // 8)
    return math.ceil(tokens / step) * step


def _count(tokens: int, length: int, mean: float) -> int:
    """How many sequences of at most `length` and about `mean` fill so many tokens; one of few numbers."""
    tenths = max(1, math.floor(9 * mean / length))
    return math.ceil(tokens / length * 10 / tenths)


def _chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
