"""What a checkpoint's files are: their sizes and checksums, written while the checkpoint is not yet committed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

FILE = "checksums.json"
_BLOCK = 1 << 24


def write(folder: epath.PathLike) -> None:
    """Writes `checksums.json`: for each file below `folder`'s own folders its length in bytes and its CRC-32."""
    folder = epath.Path(folder)
    found = {
        name: {"bytes": path.stat().length, "crc32": _crc32(path)} for name, path in _files(folder)
    }
    (folder / FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def differences(folder: epath.PathLike, *, contents: bool = True) -> list[str]:
    """What of a checkpoint is missing or not as it was written, a line each; none where it has no `checksums.json`.

    Args:
      folder: the checkpoint's.
      contents: whether to read the files; else their lengths must do, which takes no time.
    """
    folder = epath.Path(folder)
    if not (folder / FILE).exists():
        return []
    expected: dict[str, Any] = json.loads((folder / FILE).read_text())
    found = dict(_files(folder))
    lines = []
    for name, file in expected.items():
        if name not in found:
            lines.append(f"{name} is missing")
        elif (length := found[name].stat().length) != file["bytes"]:
            lines.append(f"{name}: expected {file['bytes']} bytes, got {length}")
        elif contents and (crc32 := _crc32(found[name])) != file["crc32"]:
            lines.append(f"{name}: expected CRC-32 {file['crc32']}, got {crc32}")
    return lines


def _files(folder: epath.Path) -> Iterator[tuple[str, epath.Path]]:
    """(name below the checkpoint, path) of each file in its folders; files beside them are of the commit itself."""

    def below(path: epath.Path, name: str) -> Iterator[tuple[str, epath.Path]]:
        for child in sorted(path.iterdir()):
            child_name = f"{name}/{child.name}"
            if child.is_dir():
                yield from below(child, child_name)
            else:
                yield child_name, child

    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from below(child, child.name)


def _crc32(path: epath.Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
