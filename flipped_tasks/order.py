"""The order of a training stream, as a function of the seed, at any position.

Three things decide what the global example g of a mixture is, and each can be computed without those before it:

1. which task it comes from: blocks of `BLOCK` draws, block b from (seed, b);
2. its position p in that task's endless stream: the number of earlier draws of the task;
3. which row stands at p: a permutation of the split from (seed, dataset), reshuffled in windows of at most
   `WINDOW` positions from (seed, dataset, window).

So a restart counts draws, which takes milliseconds per million, and renders nothing of what came before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from flipped_tasks.draws import generator

BLOCK = 65_536
WINDOW = 4_096


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


class MixtureOrder:
    """Which task each example of a mixture comes from, and its position in that task's own stream."""

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        """Args: rates: relative rate of each task; seed: the stream's."""
        self._rates, self._seed = tuple(map(float, rates)), seed
        self._before = [np.zeros(len(self._rates), np.int64)]  # draws of each task before a block
        self._positions = functools.lru_cache(maxsize=2)(self._positions_in)

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tasks of global examples and their positions there.

        Args:
          numbers: of the examples, from 0: int64 [n].

        Returns:
          int64 [n] each: indices into the rates, and how often the task was drawn before.
        """
        tasks, positions = np.empty_like(numbers), np.empty_like(numbers)
        blocks, places = np.divmod(numbers, BLOCK)
        for block in map(int, np.unique(blocks)):
            here = blocks == block
            tasks[here] = choices(self._rates, self._seed, block)[places[here]]
            positions[here] = self._positions(block)[places[here]]
        return tasks, positions

    def _positions_in(self, block: int) -> np.ndarray:
        """Of each example of a block: int64 [BLOCK]."""
        while len(self._before) <= block:
            drawn = choices(self._rates, self._seed, len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self._rates)))
        drawn = choices(self._rates, self._seed, block)
        positions = np.empty(BLOCK, np.int64)
        for task, before in enumerate(self._before[block]):
            mine = np.flatnonzero(drawn == task)
            positions[mine] = before + np.arange(len(mine))
        return positions


def permutation(size: int, seed: int, dataset: str) -> np.ndarray:
    """The order of the first pass over a split: int64 [size], places in the split."""
    return generator(seed, dataset).permutation(size)


@functools.lru_cache(maxsize=64)
def window_order(size: int, seed: int, dataset: str, window: int) -> np.ndarray:
    """How the `size` positions of a window are reshuffled: int64 [size]."""
    return generator(seed, dataset, "window", window).permutation(size)


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """The order in which an endless stream meets the rows of a split.

    Attributes:
      dataset: what it is drawn for: all methods meet the rows of a dataset in the same order.
      size: rows of the split.
      seed: the stream's.
      shuffle: False leaves each pass in the split's own order.
    """

    dataset: str
    size: int
    seed: int
    shuffle: bool = True

    @property
    def window(self) -> int:
        """Positions that are reshuffled together."""
        return min(self.size, WINDOW)

    @functools.cached_property
    def _first_pass(self) -> np.ndarray:
        return permutation(self.size, self.seed, self.dataset)

    def places(self, positions: np.ndarray) -> np.ndarray:
        """The rows that stand at positions: int64 [n] → int64 [n], places in the split."""
        if not self.shuffle:
            return positions % self.size
        windows, offsets = np.divmod(positions, self.window)
        shuffled = np.empty_like(positions)
        for window in map(int, np.unique(windows)):
            here = windows == window
            order = window_order(self.window, self.seed, self.dataset, window)
            shuffled[here] = window * self.window + order[offsets[here]]
        return self._first_pass[shuffled % self.size]
