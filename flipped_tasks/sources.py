"""Where the rows come from: a prepared dataset, files that a user has, or the closed world that is built in.

Rows travel as JSON bytes with their row number. JSON keeps nesting and null exactly, one type of tensor serves all
datasets, and SeqIO can cache it.
"""

from __future__ import annotations

import functools
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import seqio
import tensorflow as tf

from flipped_errors import UserError, unknown
from flipped_tasks import stream
from flipped_tasks.datasets import DatasetSpec, Rows, get_dataset
from flipped_tasks.draws import generator
from flipped_tasks.files import SUFFIXES, read_file
from flipped_tasks.prepared import reading

MAX_EXAMPLES = 500_000  # a larger training set is sampled down to this, once (model cards)
SAMPLING_SEED = 0
_ROWS_PER_READ = 256


def load_rows(dataset: str, split: str, data_dir: str | None = None) -> list[dict[str, Any]]:
    """All rows of a split, in the hub's schema and order, unchecked.

    Args:
      dataset: promptsource's name, such as 'super_glue/rte'.
      split: such as 'validation' or 'dev_r1'.
      data_dir: a folder with `<dataset, / as __>/<split>.jsonl`, `.jsonl.gz`, `.parquet` or `.csv`, or with what
        `flipped data prepare` has stored there (labelled rows only); None for the embedded world.

    Raises:
      UserError: dataset, folder, split or file cannot be read; names the file and the line.
    """
    return [row for _, row in load_numbered(dataset, split, data_dir)]


def load_numbered(
    dataset: str, split: str, data_dir: str | None = None
) -> list[tuple[int, dict[str, Any]]]:
    """As `load_rows`, each row with its 0-based number in the split that it comes from."""
    if (stored := find_prepared(dataset, data_dir)) is not None:
        rows = stored.rows(split)
        return [(int(n), orjson.loads(row)) for n, row in zip(rows.numbers, rows, strict=True)]
    return [(n, orjson.loads(row)) for n, row in enumerate(load_payloads(dataset, split, data_dir))]


def find_prepared(dataset: str, data_dir: str | None) -> reading.Prepared | None:
    """The prepared form of a dataset in a folder; None where the folder has its files, or is None."""
    spec = get_dataset(dataset)
    if data_dir is None or spec.rows is not None:
        return None
    return reading.find(spec.name, data_dir)


def load_payloads(dataset: str, split: str, data_dir: str | None = None) -> list[bytes]:
    """As `load_rows`, each row as its JSON bytes. A line that is not JSON is found by whoever parses it."""
    spec = get_dataset(dataset)
    if spec.rows is not None:
        return spec.rows.payloads(split)
    if data_dir is None:
        from flipped_tasks import embedded  # the built-in world is needed only here

        if split not in split_names(dataset, None):
            raise unknown(
                f"split of the embedded dataset {spec.name!r}", split, split_names(dataset, None)
            )
        return [orjson.dumps(row) for row in embedded.generate(dataset, split)]
    if (stored := find_prepared(dataset, data_dir)) is not None:
        return list(stored.rows(split))
    return list(read_file(_find_file(spec.name, split, data_dir), spec.columns))


def split_names(dataset: str, data_dir: str | None = None) -> tuple[str, ...]:
    """The splits at hand. Raises `UserError` where the dataset has no folder in `data_dir`."""
    spec = get_dataset(dataset)
    if spec.rows is not None:
        return spec.rows.splits()
    if data_dir is None:
        from flipped_tasks import embedded

        if spec.name not in embedded.SPLIT_SIZES:
            raise unknown("embedded dataset", spec.name, embedded.SPLIT_SIZES)
        return tuple(embedded.SPLIT_SIZES[spec.name])
    if (stored := find_prepared(dataset, data_dir)) is not None:
        return stored.splits()
    folder = _folder(spec.name, data_dir)
    names = {
        path.name.removesuffix(suffix)
        for path in folder.iterdir()
        for suffix in SUFFIXES
        if path.name.endswith(suffix)
    }
    if not names:
        raise UserError(f"no {', '.join(SUFFIXES)} file in {folder}")
    return tuple(sorted(names))


def _folder(dataset: str, data_dir: str) -> pathlib.Path:
    if "://" in data_dir:
        raise UserError(
            f"dataset {dataset!r} is not prepared in {data_dir}; expected after "
            f"`flipped data prepare {dataset} --from … --data_dir {data_dir}`"
        )
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data folder {str(root)!r} does not exist")
    folder = root / dataset.replace("/", "__")
    if not folder.is_dir():
        raise UserError(
            f"no rows of {dataset}: the data folder has no {folder.name}; `flipped data prepare {dataset} "
            "--from …` makes it"
        )
    return folder


def _find_file(dataset: str, split: str, data_dir: str) -> pathlib.Path:
    folder = _folder(dataset, data_dir)
    for suffix in SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise unknown(f"split of {dataset!r} in {str(folder)!r}", split, split_names(dataset, data_dir))


class Payloads:
    """The labelled rows of one split.

    Attributes:
      rows: JSON bytes, in the split's order.
      numbers: int64, each row's 0-based number in the split.
      dropped: reason → number of rows that were left out.
    """

    def __init__(self, rows: Sequence[bytes], numbers: np.ndarray, dropped: Counter[str]):
        self.rows, self.numbers, self.dropped = rows, numbers, dropped

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, index: int, count: int) -> Payloads:
        """The rows of part `index` of `count`, all of one size but for the last."""
        size = -(-len(self) // count)
        own = slice(index * size, (index + 1) * size)
        return Payloads(self.rows[own], self.numbers[own], self.dropped)


def labelled_payloads(
    dataset: str, split: str, data_dir: str | None, limit: int | None = MAX_EXAMPLES
) -> Payloads:
    """Checks every row against the catalog, drops and counts those without a label; once in a process.

    What is prepared was checked when it was stored: it is opened at once, and gives the same as its source.

    Args:
      limit: a split with more rows is sampled down to this many, with a fixed seed and in its own order.

    Raises:
      UserError: a row contradicts the catalog, or no row has a label.
    """
    return _labelled_payloads(dataset, split, data_dir, limit, get_dataset(dataset).rows)


@functools.lru_cache(maxsize=128)
def _labelled_payloads(
    dataset: str, split: str, data_dir: str | None, limit: int | None, rows_of: Rows | None
) -> Payloads:
    """As above; `rows_of` tells datasets of one's own apart that have had the same name."""
    spec = get_dataset(dataset)
    if (stored := find_prepared(dataset, data_dir)) is not None:
        kept, dropped = reading.labelled_rows(stored, split, limit, SAMPLING_SEED)
        return Payloads(kept, kept.numbers, dropped)
    rows = load_payloads(dataset, split, data_dir)
    numbers = np.arange(len(rows), dtype=np.int64)
    if limit is not None and len(rows) > limit:
        numbers = np.sort(generator(SAMPLING_SEED, dataset, split).permutation(len(rows))[:limit])
    return _check_rows(spec, split, [rows[number] for number in numbers], numbers)


def _check_rows(spec: DatasetSpec, split: str, rows: list[bytes], numbers: np.ndarray) -> Payloads:
    dropped: Counter[str] = Counter()
    keep = np.ones(len(rows), bool)
    for place, row in enumerate(rows):
        if (drop := spec.check_row(orjson.loads(row), int(numbers[place]) + 1)) is not None:
            dropped[drop.reason] += 1
            keep[place] = False
    kept = [row for row, good in zip(rows, keep, strict=True) if good]
    if not kept:
        why = (
            ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            or "the split is empty"
        )
        raise UserError(f"dataset {spec.name!r}, split {split!r}: no example is left ({why})")
    return Payloads(kept, numbers[keep], dropped)


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
        """One pass over the split or its shard; inside a `stream.Reading` it starts where that starts."""
        payloads = self.payloads(split)
        if self._rows_per_shard is not None and shard_info is not None:
            payloads = payloads.part(shard_info.index, shard_info.num_shards)
        size = len(payloads)
        order = np.arange(size)
        if shuffle:
            keys = (
                (seed, self.name)
                if seed is not None
                else (int.from_bytes(np.random.bytes(4), "big"),)
            )
            order = generator(*keys).permutation(size)
        order = np.roll(order, -(stream.source_start() % size))

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
