"""Where the rows of a custom dataset come from: files, rows in memory, or a function that gives them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import orjson

from flipped_core.errors import UserError, is_utf8, shown, unknown
from flipped_tasks.files import SUFFIXES, read_file, read_files, split_files
from flipped_tasks.row_values import clean_row, fit_columns

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
        """Args: dataset: named in messages; columns: column → type, as `row_values.fit_columns` reads it.

        Raises:
          UserError: the source is of another kind, or a split's name cannot be part of an example's.
        """
        self._dataset, self._columns = dataset, columns
        self._source = source
        self._seen: dict[str, list[bytes]] = {}  # rows of iterators, which give them once
        if isinstance(source, Mapping):
            if not source:
                raise UserError(
                    f"dataset {dataset!r}: source: expected at least one split, got none"
                )
            for split in source:
                if not isinstance(split, str) or not split or "/" in split or not is_utf8(split):
                    raise UserError(
                        f"dataset {dataset!r}: source: expected names of splits, without '/', got {shown(split)}"
                    )
        elif not isinstance(source, str | pathlib.Path):
            raise UserError(
                f"dataset {dataset!r}: source: expected a folder or {{split: …}}, got {type(source).__name__}"
            )

    def splits(self) -> tuple[str, ...]:
        """The splits of the source, sorted. Raises `UserError` where a folder holds none."""
        if isinstance(self._source, Mapping):
            return tuple(sorted(self._source))
        return tuple(sorted(self._files(self._source)))

    def payloads(self, split: str) -> list[bytes]:
        """All rows of a split, each as its JSON bytes.

        Raises:
          UserError: there is no such split or file, or what is read is no row.
        """
        if split not in self.splits():
            raise unknown(f"split of {self._dataset!r}", split, self.splits())
        if not isinstance(self._source, Mapping):
            return list(read_files(self._files(self._source)[split], self._columns))
        found: Any = self._source[split]
        if isinstance(found, str | pathlib.Path):
            return self._read(pathlib.Path(found).expanduser())
        if not isinstance(found, Iterator):
            return self._payloads(split, found)
        if split not in self._seen:
            self._seen[split] = self._payloads(split, found)
        return list(self._seen[split])

    def _payloads(self, split: str, found: Any) -> list[bytes]:
        """The rows of a program; whatever it raises is the user's mistake, and is named."""
        where = f"dataset {self._dataset!r}, split {split!r}"
        payloads: list[bytes] = []
        try:
            for row in found() if callable(found) else found:
                payloads.append(self._payload(row, len(payloads) + 1))
        except UserError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - the user's own code
            raise UserError(
                f"{where}: source: after {len(payloads)} rows: {type(error).__name__}: {error}"
            ) from error
        return payloads

    def _files(self, place: str | pathlib.Path) -> dict[str, list[pathlib.Path]]:
        folder = pathlib.Path(place).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"dataset {self._dataset!r}: source: expected a folder, got {str(folder)!r}"
            )
        if not (files := split_files(folder)):
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
        plain = clean_row(row, where)
        fit_columns(plain, self._columns, where)
        return orjson.dumps(plain)
