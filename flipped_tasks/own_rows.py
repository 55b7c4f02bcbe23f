"""Where the rows of a dataset of one's own come from: files, rows in memory, or a function that gives them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import orjson

from flipped_core.errors import UserError, unknown
from flipped_tasks.files import SUFFIXES, read_file

Row: TypeAlias = Mapping[str, Any]
# A folder with a file for each split; or split → a file, rows, or a function without arguments that gives rows.
Source: TypeAlias = (
    str
    | pathlib.Path
    | Mapping[str, str | pathlib.Path | Iterable[Row] | Callable[[], Iterable[Row]]]
)


class OwnRows:
    """Rows of a user's source, read when they are first needed: a `datasets.Rows`."""

    def __init__(self, dataset: str, source: Source, columns: Mapping[str, Any]):
        """Args: dataset: named in messages; columns: column → type, for CSV."""
        self._dataset, self._source, self._columns = dataset, source, columns

    def splits(self) -> tuple[str, ...]:
        """The splits of the source, sorted. Raises `UserError` where a folder holds none."""
        if isinstance(self._source, Mapping):
            return tuple(sorted(self._source))
        return tuple(sorted(self._files(pathlib.Path(self._source))))

    def payloads(self, split: str) -> list[bytes]:
        """All rows of a split, each as its JSON bytes.

        Raises:
          UserError: there is no such split or file, or what is read is no row.
        """
        if split not in self.splits():
            raise unknown(f"split of {self._dataset!r}", split, self.splits())
        found: Any = (
            self._source[split]
            if isinstance(self._source, Mapping)
            else self._files(pathlib.Path(self._source))[split]
        )
        if isinstance(found, str | pathlib.Path):
            return self._read(pathlib.Path(found).expanduser())
        rows = found() if callable(found) else found
        return [self._payload(row, number) for number, row in enumerate(rows, start=1)]

    def _files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise UserError(
                f"dataset {self._dataset!r}: source: expected a folder, got {str(folder)!r}"
            )
        files = {
            path.name.removesuffix(suffix): path
            for path in sorted(folder.iterdir())
            for suffix in SUFFIXES
            if path.name.endswith(suffix)
        }
        if not files:
            raise UserError(
                f"dataset {self._dataset!r}: source: no {', '.join(SUFFIXES)} file in {str(folder)!r}"
            )
        return files

    def _read(self, path: pathlib.Path) -> list[bytes]:
        if not path.is_file() or not path.name.endswith(SUFFIXES):
            raise UserError(
                f"dataset {self._dataset!r}: source: expected a {', '.join(SUFFIXES)} file, got {str(path)!r}"
            )
        return list(read_file(path, self._columns))

    def _payload(self, row: Any, number: int) -> bytes:
        where = f"dataset {self._dataset!r}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected a dict of columns, got {type(row).__name__}")
        try:
            return orjson.dumps(dict(row), option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise UserError(f"{where}: expected text, numbers, lists and dicts: {error}") from error
