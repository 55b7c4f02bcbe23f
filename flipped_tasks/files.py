"""Reads files of rows: JSON Lines, Parquet, and CSV, whose cells are typed as the dataset's columns are."""

from __future__ import annotations

import csv
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from flipped_core import bounded
from flipped_core.errors import UserError
from flipped_tasks.row_values import MAX_ROW_BYTES, clean_row, fit_columns, parse_cell, read_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
_BOOLEANS = {"True": True, "False": False}  # as pandas writes them
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})")
_PARQUET_ROWS = 64  # converted at a time


def split_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """split → its files, in their order: one, or `<split>-00000-of-00002.parquet` and so on.

    Hidden files are passed over.

    Raises:
      UserError: a split has two files, or not all of its parts are there.
    """
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        name = next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), None)
        if name and not name.startswith(".") and path.is_file():
            part = _SHARD.fullmatch(name)
            found.setdefault(part[1] if part else name, []).append(path)
    for split, paths in found.items():
        check_split(folder, split, paths)
    return found


def check_split(folder: pathlib.Path, split: str, paths: Sequence[pathlib.Path]) -> None:
    """Refuses two files for one split, and parts `-00000-of-00002` of which one is missing or there twice."""
    parts = [_SHARD.fullmatch(_stem(path)) for path in paths]
    if len(paths) == 1 and parts[0] is None:
        return
    names = ", ".join(path.name for path in paths)
    if not all(parts):
        raise UserError(f"{folder}: expected one file for split {split!r}, got {names}")
    numbers = sorted((int(part[2]), int(part[3])) for part in parts if part)
    if numbers != [(n, len(paths)) for n in range(len(paths))]:
        raise UserError(
            f"{folder}: expected each of the {numbers[0][1]} parts of split {split!r} once, got {names}"
        )


def _stem(path: pathlib.Path) -> str:
    return next(path.name.removesuffix(end) for end in SUFFIXES if path.name.endswith(end))


def read_files(paths: Sequence[pathlib.Path], columns: Mapping[str, Any]) -> Iterator[bytes]:
    """The rows of all files, one after another; see `read_file`."""
    for path in paths:
        yield from read_file(path, columns)


def read_file(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[bytes]:
    """The rows of a file whose name ends with one of `SUFFIXES`, each as its JSON bytes.

    Args:
      path: the file.
      columns: column → type, see `row_values.fit_columns`; CSV takes its types from here.

    Raises:
      UserError: it cannot be read, is out of proportion to its size, or a line is no row; names the file and the line.
    """
    if path.suffix == ".csv":
        return map(orjson.dumps, read_csv(path, columns))
    return (
        _read_parquet(path, columns)
        if path.suffix == ".parquet"
        else _read_json_lines(path, columns)
    )


def _read_json_lines(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[bytes]:
    number = rows = 0
    try:
        for number, line in enumerate(open_lines(path), start=1):
            if line.strip():
                rows += 1
                yield read_line(line, columns, f"{path}, line {number}", f"{path}, row {rows}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} after line {number}: {error}") from error


def open_lines(path: pathlib.Path) -> Iterator[bytes]:
    """The lines of a file, `.gz` or not, as `bounded.read_lines` gives them.

    Raises `OSError`, `EOFError` or `zlib.error` where it cannot be read.
    """
    if path.suffix == ".gz":
        yield from bounded.read_gzip_lines(path, MAX_ROW_BYTES)
        return
    with open(path, "rb") as file:
        yield from bounded.read_lines(file, str(path), MAX_ROW_BYTES)


def _read_parquet(path: pathlib.Path, columns: Mapping[str, Any]) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    size = out = number = 0
    try:
        size = path.stat().st_size
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_parquet(path, file, size)
            for batch in file.iter_batches(batch_size=4096):
                for start in range(0, batch.num_rows, _PARQUET_ROWS):
                    for row in batch.slice(start, _PARQUET_ROWS).to_pylist():
                        number += 1
                        where = f"{path}, row {number}"
                        row = clean_row(row, where)
                        fit_columns(row, columns, where)
                        line = orjson.dumps(row)
                        out += len(line)
                        bounded.check_ratio(path, out, size)
                        yield line
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path} after row {number}: {error}") from error


def _check_parquet(path: pathlib.Path, file: Any, size: int) -> None:
    """Refuses columns of one name, and what would be out of proportion in memory before its rows are counted."""
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: expected each column once, got {twice!r} twice")
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        bounded.check_ratio(path, metadata.row_group(group).total_byte_size, size)


def read_csv(
    path: pathlib.Path, columns: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows, column → value.

    A cell is what `columns` says: text, a whole number (`1.0` too; empty is null), or a list or nested column written
    as JSON. Of the type 'any', as the label column of a dataset that names no columns, it is null where it is empty, a
    whole number where it looks like one, a boolean where it is True or False, and else text. A column that `columns`
    does not name is text.

    Args:
      path: the file, in UTF-8, with or without a byte order mark.
      columns: column → type, as `DatasetSpec.columns`.
      renamed: name in the header → name of the column, where they differ.

    Raises:
      UserError: the file cannot be read, names a column twice, or a cell is not of its column's type; names the line.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    names = renamed or {}
    try:
        with open(path, "rb") as file:
            lines = bounded.read_lines(file, str(path), MAX_ROW_BYTES)
            reader = csv.DictReader(_decoded(lines, path), strict=True)
            _check_header(reader.fieldnames or (), path)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                found = {names.get(name, name): cell for name, cell in row.items()}
                found = clean_row(_typed(found, columns, where), where)
                fit_columns(found, columns, where)
                yield found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: not CSV: {error}") from error


def _decoded(lines: Iterator[bytes], path: pathlib.Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: {bounded.not_utf8(line, error)}") from None


def _check_header(names: Sequence[str], path: pathlib.Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: expected each column once in the header, got {name!r} twice")


def _typed(row: dict[Any, Any], columns: Mapping[str, Any], where: str) -> dict[str, Any]:
    if None in row or None in row.values():
        cells = list(row.values())
        expected = len(cells) - (None in row)
        got = expected - cells.count(None) + len(row.get(None, ()))
        raise UserError(f"{where}: expected {expected} cells as in the header, got {got}")
    for name, kind in columns.items():
        if name not in row:
            continue
        if not isinstance(kind, str):
            row[name] = parse_cell(row[name], f"{where}: column {name!r}")
            continue
        try:
            row[name] = _READERS[kind](row[name])
        except ValueError:
            raise UserError(
                f"{where}: column {name!r}: expected a whole number, got {row[name][:60]!r}"
            ) from None
    return row


def _read_int(cell: str) -> int | None:
    text = cell.strip()
    if not text:
        return None
    if text in _BOOLEANS:
        return int(_BOOLEANS[text])
    if (number := _WHOLE_NUMBER.fullmatch(text)) is None:
        raise ValueError(cell)
    return int(number[1])


def _read_any(cell: str) -> int | str | None:
    text = cell.strip()
    if number := _WHOLE_NUMBER.fullmatch(text):
        return int(number[1])
    return _BOOLEANS.get(text, cell) if text else None


_READERS: Mapping[str, Callable[[str], Any]] = {"string": str, "int": _read_int, "any": _read_any}
