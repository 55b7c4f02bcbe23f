"""Rows from a JSON-lines file, with the line named where one cannot be read."""

from __future__ import annotations

import pathlib
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from flipped_core import bounded
from flipped_core.errors import UserError, nearest


def read_rows(
    path: str, columns: Mapping[str, Any] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line index from 0, row) of a `.jsonl` or `.jsonl.gz` file, or of stdin for `-`.

    Empty lines are passed over but counted.

    Args:
      path: the file.
      columns: column → type, for the values of the rows; see `flipped_tasks.row_values.fit_columns`.

    Raises:
      UserError: the file cannot be opened or read, or a line is no JSON object, or holds what no row may.
    """
    from flipped_tasks.row_values import fit_columns, parse_row

    name = "stdin" if path == "-" else path
    lines = enumerate(_lines(path))
    while True:
        try:
            index, line = next(lines)
        except StopIteration:
            return
        except (OSError, EOFError, zlib.error) as error:  # a damaged archive, a folder, a lost disk
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{name}: cannot be read: {why}") from None
        if line.strip():
            where = f"{name}, line {index + 1}"
            row = parse_row(line, where)
            fit_columns(row, columns or {}, where)
            yield index, row


def _lines(path: str) -> Iterator[bytes]:
    from flipped_tasks.files import open_lines
    from flipped_tasks.row_values import MAX_ROW_BYTES

    if path == "-":
        if sys.stdin is None:
            raise UserError("stdin: cannot be read: it is closed")
        yield from bounded.read_lines(sys.stdin.buffer, "stdin", MAX_ROW_BYTES)
        return
    file = pathlib.Path(path).expanduser()
    if not file.exists():
        folder = file.parent
        names = [str(folder / p.name) for p in folder.iterdir()] if folder.is_dir() else []
        near = (
            f"; nearest: {', '.join(map(repr, found))}" if (found := nearest(path, names)) else ""
        )
        raise UserError(f"expected a file of JSON lines, there is none at {path!r}{near}")
    yield from open_lines(file)


def parse_argument(text: str, where: str) -> dict[str, Any]:
    """A row as JSON from the command line. Raises `UserError` as `read_rows`."""
    from flipped_tasks.row_values import parse_row

    return parse_row(text.encode("utf-8", "surrogatepass"), where)
