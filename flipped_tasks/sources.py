"""Where the rows come from: a prepared dataset, files that a user has, or the closed world that is built in.

Rows travel as JSON bytes with their row number. JSON keeps nesting and null exactly, one type of tensor serves all
datasets, and SeqIO can cache it. Nothing here imports TensorFlow, which rendering, lint and evaluation do without;
`row_source` gives the rows to SeqIO.
"""

from __future__ import annotations

import functools
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from flipped_core.errors import UserError, unknown
from flipped_tasks.datasets import DatasetSpec, Rows, get_dataset
from flipped_tasks.draws import generator
from flipped_tasks.files import SUFFIXES, read_files, split_files
from flipped_tasks.prepared import reading

MAX_EXAMPLES = 500_000  # a larger training set is sampled down to this, once (model cards)
SAMPLING_SEED = 0


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
    """As `load_rows`, each row as its JSON bytes."""
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
    return list(read_files(_find_files(spec.name, split, data_dir), spec.columns))


def split_names(dataset: str, data_dir: str | None = None) -> tuple[str, ...]:
    """The splits at hand. Raises `UserError` where the dataset has no folder in `data_dir`."""
    spec = get_dataset(dataset)
    if spec.rows is not None:
        return spec.rows.splits()
    if data_dir is None:
        from flipped_tasks import embedded

        if spec.name not in embedded.SPLIT_SIZES:
            raise UserError(
                f"no rows of {spec.name}: the made-up world has none; give a folder of rows (--data_dir)"
            )
        return tuple(embedded.SPLIT_SIZES[spec.name])
    if (stored := find_prepared(dataset, data_dir)) is not None:
        return stored.splits()
    folder = _folder(spec.name, data_dir)
    if not (files := split_files(folder)):
        raise UserError(f"no {', '.join(SUFFIXES)} file in {folder}")
    return tuple(sorted(files))


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


def _find_files(dataset: str, split: str, data_dir: str) -> list[pathlib.Path]:
    folder = _folder(dataset, data_dir)
    files = split_files(folder)
    if split not in files:
        raise unknown(
            f"split of {dataset!r} in {str(folder)!r}", split, split_names(dataset, data_dir)
        )
    return files[split]


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
