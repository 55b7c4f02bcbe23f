"""The order of a training stream, as a function of the seed, that can be entered at any place.

Three things decide what the global example g of a mixture is, and each can be computed without those before it:

1. which task it comes from: blocks of `BLOCK` draws, block b from (seed, b);
2. its position p in that task's endless stream: the number of earlier draws of the task;
3. which row stands at p: a permutation of the split from (seed, dataset), reshuffled in windows of at most
   `WINDOW` positions from (seed, dataset, window).

So a restart counts draws, which takes milliseconds per million, and skips rows only within one window, before
anything is rendered. A host of several finds the positions of its own slots in the same way.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks.draws import generator

BLOCK = 65_536
WINDOW = 4_096
_FOREVER = 1 << 40


@functools.lru_cache(maxsize=8)
def choices(rates: tuple[float, ...], seed: int, block: int) -> np.ndarray:
    """The tasks of the global examples block·BLOCK … +BLOCK−1: int64 [BLOCK], indices into `rates`.

    Args:
      rates: relative rate of each task; only their ratios matter.
      seed: the stream's seed.
      block: which block.
    """
    if len(rates) == 1:
        return np.zeros(BLOCK, np.int64)
    edges = np.cumsum(rates) / np.sum(rates)
    drawn = np.searchsorted(edges, generator(seed, "mix", block).random(BLOCK), side="right")
    return np.minimum(drawn, len(rates) - 1)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and by whom a mixture is read.

    Attributes:
      tasks: the names of the mixture's tasks, in the order in which SeqIO mixes them.
      rates: the rate of each.
      seed: the stream's seed.
      start: the first global example.
      batch_size: examples of a global batch.
      host_index, host_count: host h of H reads slots h·B/H … (h+1)·B/H−1 of every global batch.
    """

    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    seed: int
    start: int = 0
    batch_size: int = 1
    host_index: int = 0
    host_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.host_count:
            raise UserError(
                f"batch_size: expected a positive multiple of the {self.host_count} host(s), got {self.batch_size}"
            )
        if not 0 <= self.host_index < self.host_count:
            raise UserError(
                f"host_index: expected 0 to {self.host_count - 1}, got {self.host_index}"
            )
        if self.start < 0:
            raise UserError(
                f"start: expected a step of at least 0, got {self.start // self.batch_size}"
            )

    def position(self, task: str) -> int:
        """The task's position at `start`: how often it was drawn before."""
        return int(self._positions[self.tasks.index(task)])

    @functools.cached_property
    def _positions(self) -> np.ndarray:
        """The number of draws before `start`, of each task."""
        counts = np.zeros(len(self.tasks), np.int64)
        last, rest = divmod(self.start, BLOCK)
        for block in range(last + 1):
            drawn = choices(self.rates, self.seed, block)
            counts += np.bincount(drawn[:rest] if block == last else drawn, minlength=len(counts))
        return counts

    def _ours(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For the examples of a block from `start` on: their tasks, and whether this host reads them."""
        drawn = choices(self.rates, self.seed, block)
        example = np.arange(block * BLOCK, (block + 1) * BLOCK)
        drawn, example = drawn[example >= self.start], example[example >= self.start]
        share = self.batch_size // self.host_count
        return drawn, (example % self.batch_size) // share == self.host_index

    def draws(self) -> tf.data.Dataset:
        """This host's draws from `start` on: scalar int64, indices into `tasks`. Endless."""

        def of_block(block: np.int64) -> np.ndarray:
            drawn, ours = self._ours(int(block))
            return drawn[ours]

        return self._blocks(of_block, tf.int64)

    def mask(self, task: str) -> tf.data.Dataset:
        """For the task's positions from `position(task)` on: whether this host reads them, scalar bool. Endless."""
        index = self.tasks.index(task)

        def of_block(block: np.int64) -> np.ndarray:
            drawn, ours = self._ours(int(block))
            return ours[drawn == index]

        return self._blocks(of_block, tf.bool)

    def _blocks(
        self, of_block: Callable[[np.int64], np.ndarray], dtype: tf.DType
    ) -> tf.data.Dataset:
        def read(block: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(
                tf.numpy_function(of_block, [block], dtype, stateful=False), [None]
            )

        return tf.data.Dataset.range(self.start // BLOCK, _FOREVER).map(read).unbatch()


def mix(
    datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None
) -> tf.data.Dataset:
    """SeqIO's `sample_fn`: draws the dataset of each example, from wherever the current `Place` says."""
    place = _PLACE.get()
    if place is None:
        if seed is None:
            seed = int.from_bytes(np.random.bytes(4), "big")
        place = Place(tuple(map(str, range(len(rates)))), tuple(map(float, rates)), seed)
    return tf.data.Dataset.choose_from_datasets(
        datasets, place.draws(), stop_on_empty_dataset=False
    )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How SeqIO reads one task right now.

    Attributes:
      dataset: what the order is drawn for, so that all methods meet the examples in the same order.
      split: the split.
      seed: of the order and of what is drawn for each example.
      shuffle: whether windows are reshuffled.
      size: examples of an epoch, on this shard.
      start: the first position to give.
      mask: for positions from `start` on, whether to give them; None gives all.
      rotated: the source can start inside an epoch.
      padded: examples may come with padding behind their ids, which the reader of `Place` takes away.
    """

    dataset: str
    split: str
    seed: int
    shuffle: bool
    size: int
    start: int = 0
    mask: tf.data.Dataset | None = None
    rotated: bool = True
    padded: bool = False

    @property
    def window(self) -> int:
        return min(self.size, WINDOW)

    @property
    def first(self) -> int:
        """The position where the first window starts."""
        return self.start // self.window * self.window


_PLACE: contextvars.ContextVar[Place | None] = contextvars.ContextVar("place", default=None)
_READING: contextvars.ContextVar[Reading | None] = contextvars.ContextVar("reading", default=None)


@contextlib.contextmanager
def at(place: Place) -> Iterator[None]:
    """Tasks and mixtures of `place` that are opened inside start there."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


@contextlib.contextmanager
def reading(how: Reading) -> Iterator[None]:
    """What the preprocessors of a task see while SeqIO builds its pipeline."""
    token = _READING.set(how)
    try:
        yield
    finally:
        _READING.reset(token)


def current_place() -> Place | None:
    """Where the mixture that is being opened starts; None outside `at`."""
    return _PLACE.get()


def current_reading() -> Reading:
    """How the task that is being opened is read."""
    how = _READING.get()
    assert how is not None, "a preprocessor of this module outside RowTask.get_dataset"
    return how


def source_start() -> int:
    """The position at which a source starts its first pass; 0 for the beginning."""
    how = _READING.get()
    return how.first if how is not None and how.rotated else 0


def arrange(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Reshuffles a repeated stream in windows and numbers its elements: adds 'position', scalar int64."""
    how = current_reading()
    start = how.first if how.rotated else 0

    def order(window: np.int64, size: np.int32) -> np.ndarray:
        return generator(how.seed, how.dataset, "window", int(window)).permutation(int(size))

    def number(window: tf.Tensor, rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = tf.shape(rows["number"])[0]
        if how.shuffle:
            places = tf.numpy_function(order, [window, size], tf.int64, stateful=False)
            rows = {key: tf.gather(value, places) for key, value in rows.items()}
        return {**rows, "position": window * how.window + tf.range(tf.cast(size, tf.int64))}

    windows = tf.data.Dataset.range(start // how.window, _FOREVER)
    return tf.data.Dataset.zip((windows, ds.batch(how.window))).map(number).unbatch()


def enter(ds: tf.data.Dataset) -> tf.data.Dataset:
    """Skips to the reading's start and keeps this host's part. The first element must be that of the window."""
    how = current_reading()
    before = how.start - (how.first if how.rotated else 0)
    if before:
        ds = ds.skip(before)
    if how.mask is not None:
        ds = (
            tf.data.Dataset.zip((ds, how.mask)).filter(lambda _, ours: ours).map(lambda row, _: row)
        )
    return ds
