"""The rows of a dataset as a source of SeqIO, in an order that is a function of the seed."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import unknown
from flipped_tasks.order import permutation
from flipped_tasks.sources import (
    MAX_EXAMPLES,
    Payloads,
    find_prepared,
    labelled_payloads,
    split_names,
)

_ROWS_PER_READ = 256


class RowSource(seqio.DataSource):
    """SeqIO's source of the rows of one dataset: {'row': JSON bytes, 'number': int64 row number}.

    Shuffling is a permutation of the whole split, drawn from the seed. Rows are loaded when they are first needed.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[str], Payloads],
        splits: Callable[[], Sequence[str]],
        rows_per_shard: int | None = None,
    ):
        """Arguments:
        name: what the order is drawn for.
        load: split → its rows.
        splits: the splits at hand.
        rows_per_shard: cuts a split into shards, for workers that cache it together; None makes it one.
        """
        self._set_up(name, load, splits, rows_per_shard)
        super().__init__(splits=(), performs_internal_shuffling=True)

    def _set_up(
        self,
        name: str,
        load: Callable[[str], Payloads],
        splits: Callable[[], Sequence[str]],
        rows_per_shard: int | None = None,
    ) -> None:
        self.name = name
        self._rows_per_shard = rows_per_shard
        self._load = load
        self._find_splits = splits
        self._lock = threading.Lock()

    @functools.cached_property
    def _split_names(self) -> tuple[str, ...]:
        return tuple(self._find_splits())

    @property
    def splits(self) -> Sequence[str]:
        return self._split_names

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """The names of the shards. Of one, SeqIO deals the examples out to the hosts one by one."""
        if self._rows_per_shard is None:
            return [split]
        count = -(-self.num_input_examples(split) // self._rows_per_shard)
        return [f"{split}-{number}" for number in range(count)]

    def payloads(self, split: str) -> Payloads:
        """The rows of a split, loaded once."""
        if split not in self.splits:
            raise unknown(f"split of {self.name!r}", split, self.splits)
        with self._lock:
            return self._load(split)

    def num_input_examples(self, split: str) -> int:
        return len(self.payloads(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        """One pass over the split or its shard."""
        payloads = self.payloads(split)
        if self._rows_per_shard is not None and shard_info is not None:
            payloads = payloads.part(shard_info.index, shard_info.num_shards)
        size = len(payloads)
        order = np.arange(size)
        if shuffle:
            if seed is None:
                seed = int.from_bytes(np.random.bytes(4), "big")
            order = permutation(size, seed, self.name)

        def read(block: np.int64) -> tuple[np.ndarray, np.ndarray]:
            places = order[block * _ROWS_PER_READ : (block + 1) * _ROWS_PER_READ]
            rows = np.array([payloads.rows[place] for place in places], dtype=object)
            return rows, payloads.numbers[places]

        def read_block(block: tf.Tensor) -> dict[str, tf.Tensor]:
            rows, numbers = tf.numpy_function(read, [block], (tf.string, tf.int64), stateful=False)
            return {
                "row": tf.ensure_shape(rows, [None]),
                "number": tf.ensure_shape(numbers, [None]),
            }

        blocks = -(-size // _ROWS_PER_READ)
        return tf.data.Dataset.range(blocks).map(read_block).unbatch()


class PreparedSource(RowSource, seqio.TfdsDataSource):
    """The rows of a prepared dataset: a `seqio.TfdsDataSource` that gives row n at once, in the order of `RowSource`.

    `tfds_dataset` is SeqIO's own loader of the stored, typed features.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[str], Payloads],
        splits: Callable[[], Sequence[str]],
        folder: str,
    ):
        """Args: folder: where the dataset lies, its version included; the others as for `RowSource`."""
        self._set_up(name, load, splits)
        seqio.TfdsDataSource.__init__(self, tfds_data_dir=folder, read_only=True)

    @property
    def performs_internal_shuffling(self) -> bool:
        return True


def row_source(dataset: str, data_dir: str | None, limit: int | None = MAX_EXAMPLES) -> RowSource:
    """The source of a dataset's labelled rows.

    Args:
      limit: training splits with more rows are sampled down to this many.
    """

    def load(split: str) -> Payloads:
        most = limit if split.startswith("train") else None
        return labelled_payloads(dataset, split, data_dir, most)

    def splits() -> Sequence[str]:
        return split_names(dataset, data_dir)

    stored = find_prepared(dataset, data_dir)
    if stored is None:
        return RowSource(dataset, load, splits)
    return PreparedSource(dataset, load, splits, os.fspath(stored.folder))
