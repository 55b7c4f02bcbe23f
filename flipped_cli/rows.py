"""Rows from a JSON-lines file, with the line named where one cannot be read."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from flipped_core.errors import UserError, nearest


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line index from 0, row) of a `.jsonl` or `.jsonl.gz` file, or of stdin for `-`.

    Empty lines are passed over but counted.

    Raises:
      UserError: the file cannot be opened or read, or a line is no JSON object.
    """
    name = "stdin" if path == "-" else path
    with _open(path) as stream:
        lines = enumerate(stream)
        while True:
            try:
                index, line = next(lines)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # a damaged archive, a folder, a lost disk
                raise UserError(f"{name}: cannot be read: {error}") from None
            if line.strip():
                yield index, _row(line, f"{name}, line {index + 1}")


def _open(path: str) -> BinaryIO:
    if path == "-":
        try:
            return io.BytesIO(sys.stdin.buffer.read())
        except OSError as error:  # closed, as by a daemon
            raise UserError(f"stdin: cannot be read: {error.strerror or error}") from None
    file = pathlib.Path(path)
    if not file.exists():
        folder = file.parent
        names = [str(folder / p.name) for p in folder.iterdir()] if folder.is_dir() else []
        near = (
            f"; nearest: {', '.join(map(repr, found))}" if (found := nearest(path, names)) else ""
        )
        raise UserError(f"expected a file of JSON lines, there is none at {path!r}{near}")
    try:
        if path.endswith(".gz"):
            return gzip.open(file, "rb")  # type: ignore[return-value]
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row
