"""The lengths and checksums of a checkpoint's files, written before the checkpoint is committed.

Why a file beside the arrays and not a checksum in the storage format: Orbax 0.12 sets the codecs of its zarr arrays
itself (zarr3 gets a `crc32c` of the chunk index only), zstd frames carry no checksum of their own, and OCDBT has one
of its tree's nodes only. A checksum inside a chunk could not tell that two files have been swapped either.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import read_json
from flipped_core.paths import files_below, read_blocks

FILE = "checksums.json"
_MOST_THREADS = 8
_CRC32 = re.compile(r"[0-9a-f]{8}")


class _Recorded(NamedTuple):
    """What `checksums.json` says of a file."""

    bytes: int
    crc32: str


def write(folder: epath.PathLike) -> None:
    """Writes `checksums.json`: for each file below `folder`'s own folders its length in bytes and its CRC-32."""
    folder = epath.Path(folder)
    files = _files(folder)
    crc32s = _in_threads(_crc32, [folder / name for name in files])
    found = {
        name: {"bytes": length, "crc32": crc32}
        for (name, length), crc32 in zip(files.items(), crc32s, strict=True)
    }
    (folder / FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def differences(
    folder: epath.PathLike,
    *,
    read: Collection[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[str]:
    """What of a checkpoint is missing or not as it was written, a line for each file; never raises.

    Args:
      folder: the checkpoint's.
      read: the folders in it whose files to read, such as "params"; None reads all. Of the others the lengths must do,
        which takes no time.
      share: (i, n) looks at each n-th file only, from the i-th on, as one of n processes does.
    """
    folder = epath.Path(folder)
    try:
        recorded = _read(folder / FILE)
        found = _files(folder)
    except UserError as error:
        return [_printable(str(error))]
    except OSError as error:
        return [f"it cannot be listed: {_why(error)}"]

    first, step = share
    names = sorted(recorded)[first::step]
    extra = sorted(found.keys() - recorded.keys())[first::step]
    lines = [f"{name} is not in {FILE}" for name in extra]

    def compare(name: str) -> str | None:
        contents = read is None or name.partition("/")[0] in read
        return _difference(folder / name, name, found.get(name), recorded[name], contents)

    lines += [line for line in _in_threads(compare, names) if line is not None]
    return [_printable(line) for line in lines]


def _difference(
    path: epath.Path, name: str, length: int | None, recorded: _Recorded, contents: bool
) -> str | None:
    if length is None:
        return f"{name} is missing"
    try:
        if length != recorded.bytes:
            return f"{name}: expected {recorded.bytes} bytes, got {length}"
        if contents and (crc32 := _crc32(path)) != recorded.crc32:
            return f"{name}: expected CRC-32 {recorded.crc32}, got {crc32}"
    except OSError as error:
        return f"{name} cannot be read: {_why(error)}"
    return None


def _read(file: epath.Path) -> Mapping[str, _Recorded]:
    """The content of a `checksums.json`; `UserError` where it is missing or anything else."""
    if not file.exists():
        raise UserError(f"it has no {FILE}")
    try:
        content = read_json(file)
    except UserError as error:
        cause = error.__cause__
        raise UserError(f"{FILE} cannot be read: {_why(cause) if cause else error}") from None
    for name, entry in content.items():
        if not _is_entry(entry):
            shown = f"{name[:80]!r}: {str(entry)[:80]!r}"
            raise UserError(f"{FILE} cannot be read: expected bytes and crc32, got {shown}")
    return {name: _Recorded(entry["bytes"], entry["crc32"]) for name, entry in content.items()}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    length, crc32 = entry.get("bytes"), entry.get("crc32")
    return type(length) is int and isinstance(crc32, str) and bool(_CRC32.fullmatch(crc32))


def _printable(text: str) -> str:
    """One line, whatever a damaged file has put into a name."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _why(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _files(folder: epath.Path) -> dict[str, int]:
    """name below the checkpoint → length of each file in its folders; files beside them are of the commit itself.

    Hidden files are left out: systems put theirs anywhere (.DS_Store, .nfs…), and no format here has any.
    """
    return {
        name: length
        for name, length in files_below(folder).items()
        if "/" in name and not name.rpartition("/")[2].startswith(".")
    }


def _in_threads(function: Any, values: Iterable[Any]) -> list[Any]:
    """`function` of each value; zlib and reading release the interpreter's lock."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, values))


def _crc32(path: epath.Path) -> str:
    value = 0
    for block in read_blocks(path):
        value = zlib.crc32(block, value)
    return f"{value:08x}"
