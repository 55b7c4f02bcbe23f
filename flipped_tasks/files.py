"""Reads files of rows: JSON Lines, Parquet, and CSV, whose cells are typed as the dataset's columns are."""

from __future__ import annotations

import csv
import gzip
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from flipped_core.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
_WHOLE_NUMBER = re.compile(r"[+-]?\d+")


def read_file(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[bytes]:
    """The rows of a file whose name ends with one of `SUFFIXES`, each as its JSON bytes.

    Args:
      path: the file.
      columns: column → type; CSV, which has no types of its own, takes them from here.

    Raises:
      UserError: it cannot be read, or a line is no row; names the file and the line.
    """
    if path.suffix == ".csv":
        return map(orjson.dumps, read_csv(path, columns))
    return _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)


def _read_json_lines(path: pathlib.Path) -> Iterator[bytes]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line := line.strip():
                    _check_json(line, path, number)
                    yield line
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path} after line {number}: {error}") from error


def _check_json(line: bytes, path: pathlib.Path, number: int) -> None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: expected an object, got {type(row).__name__}")


def _read_parquet(path: pathlib.Path) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    yield orjson.dumps(row, default=str)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_csv(
    path: pathlib.Path, columns: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows, column → value.

    A cell is what `columns` says: text, a whole number (empty is null), or a list or nested column written as JSON.
    Of the type 'any', as the label column of a dataset that names no columns, it is null where it is empty, a whole
    number where it looks like one, and else text. A column that `columns` does not name is text.

    Args:
      path: the file, in UTF-8.
      columns: column → type, as `DatasetSpec.columns`.
      renamed: name in the header → name of the column, where they differ.

    Raises:
      UserError: the file cannot be read, or a cell is not of its column's type; names the line.
    """
    csv.field_size_limit(1 << 30)
    readers = {name: _READERS.get(_kind(kind), orjson.loads) for name, kind in columns.items()}
    names = renamed or {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                found = {names.get(name, name): cell for name, cell in row.items()}
                yield _typed(found, readers, f"{path}, line {reader.line_num}")
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _kind(kind: Any) -> str:
    return kind if isinstance(kind, str) else "json"


def _typed(
    row: dict[Any, Any], readers: Mapping[str, Callable[[str], Any]], where: str
) -> dict[str, Any]:
    if None in row or None in row.values():
        raise UserError(f"{where}: expected {len(row) - (None in row)} cells as in the header")
    for name, read in readers.items():
        if name in row:
            try:
                row[name] = read(row[name])
            except ValueError:
                wanted = "a whole number" if read is _read_int else "JSON"
                raise UserError(
                    f"{where}: column {name!r}: expected {wanted}, got {row[name][:60]!r}"
                ) from None
    return row


def _read_int(cell: str) -> int | None:
    return int(cell) if cell.strip() else None


def _read_any(cell: str) -> int | str | None:
    text = cell.strip()
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else cell if text else None


_READERS: Mapping[str, Callable[[str], Any]] = {"string": str, "int": _read_int, "any": _read_any}
