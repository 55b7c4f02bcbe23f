"""Damage to files: bits flipped, files cut, swapped, deleted, and metadata mutated; one generator draws all."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\u0000",
    [],
    {},
    [[]],
]
TEXTS = [
    b"", b"null", b"[]", b"{}", b"1e999", b'{"a":', b"\x00" * 64, b"\xff\xfe\x00{", b"{}{}",
    b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000, b'{"format": 1, "files": {}}',
]  # fmt: skip


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pick(draw: random.Random, files: list[pathlib.Path]) -> pathlib.Path:
    """Each file alike in half of the draws, each byte alike in the other half."""
    if draw.random() < 0.5:
        return draw.choice(files)
    return draw.choices(files, [path.stat().st_size + 1 for path in files])[0]


def flip(draw: random.Random, folder: pathlib.Path) -> str:
    """One bit of a file that has one."""
    path = pick(draw, [path for path in files_below(folder) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"flip bit {bit} of byte {at} of {path}"


def truncate(draw: random.Random, folder: pathlib.Path) -> str:
    path = pick(draw, [path for path in files_below(folder) if path.stat().st_size])
    length = draw.choice([0, path.stat().st_size - 1, draw.randrange(path.stat().st_size)])
    path.write_bytes(path.read_bytes()[:length])
    return f"truncate {path} to {length} bytes"


def swap(draw: random.Random, folder: pathlib.Path) -> str:
    """Two files, often of one length; or two pieces of one file."""
    files = files_below(folder)
    one = pick(draw, files)
    content = one.read_bytes()
    if len(content) >= 16 and draw.random() < 0.4:
        size = draw.randint(1, len(content) // 4)
        a = draw.randrange(0, len(content) // 2 - size + 1)
        b = draw.randrange(len(content) // 2, len(content) - size + 1)
        pieces = content[:a], content[a : a + size], content[a + size : b], content[b : b + size]
        one.write_bytes(pieces[0] + pieces[3] + pieces[2] + pieces[1] + content[b + size :])
        return f"swap bytes {a} and {b}, {size} each, of {one}"
    alike = [path for path in files if path != one and path.stat().st_size == len(content)]
    other = draw.choice(alike or [path for path in files if path != one])
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"swap {one} and {other}"


def delete(draw: random.Random, folder: pathlib.Path) -> str:
    """A file, or a folder."""
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    if folders and draw.random() < 0.2:
        path = draw.choice(folders)
        shutil.rmtree(path)
    else:
        path = pick(draw, files_below(folder))
        path.unlink()
    return f"delete {path}"


KINDS = {"flip": flip, "truncate": truncate, "swap": swap, "delete": delete}


def mutated(draw: random.Random, content: bytes) -> bytes:
    """Other bytes for a metadata file: of another kind, with bytes changed, or with a JSON value changed."""
    way = draw.random()
    if way < 0.15:
        return draw.choice(TEXTS)
    if way < 0.5 or not content:
        return _bytes_mutated(draw, content)
    try:
        return json.dumps(_value_mutated(draw, json.loads(content))).encode()
    except ValueError:
        return _bytes_mutated(draw, content)


def _bytes_mutated(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content) + 1)
    some = draw.randbytes(draw.randint(1, 8))
    return draw.choice(
        [
            content[:at],
            content[:at] + some + content[at:],
            content[:at] + content[at + len(some) :],
            content[:at] + some + content[at + len(some) :],
            content[:at] + b"\0" * len(some) + content[at + len(some) :],
            content + content[at:],
        ]
    )


def _value_mutated(draw: random.Random, value: Any) -> Any:
    """`value` with one value in it replaced, removed or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        way = draw.random()
        if way < 0.1:
            return {key: one for key, one in value.items() if key != name}
        if way < 0.2:
            return {(f"{key}x" if key == name else key): one for key, one in value.items()}
        return {**value, name: _value_mutated(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], _value_mutated(draw, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and draw.random() < 0.4:
        return draw.choice([value + 1, -value, str(value), value * 10**6, float(value)])
    return draw.choice(VALUES)
