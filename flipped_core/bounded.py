"""Reads other people's files without spending more memory than they are worth.

A gzip file of a megabyte can hold a gigabyte, a JSON text of a kilobyte can nest deeper than Python's stack, and a
line need not end. Everything here refuses such a file in one line, before the memory is spent.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

from flipped_core.errors import UserError

MAX_TEXT = 64 << 20  # bytes of a JSON or YAML file that is read whole
MAX_DEPTH = 100  # of lists and objects in each other
FREE_BYTES = 32 << 20  # may come out of a compressed file whatever its size
MAX_RATIO = 100  # beyond that, bytes out for each byte in; text compresses 3 to 30 times


def read_bytes(path: pathlib.Path, most: int = MAX_TEXT) -> bytes:
    """A whole file. Raises `UserError` where it cannot be read or holds more than `most` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > most:
        raise UserError(f"{path}: expected at most {most:,} bytes, got more")
    return data


def read_text(path: pathlib.Path, most: int = MAX_TEXT) -> str:
    """A whole file in UTF-8, without its byte order mark. Raises `UserError` as `read_bytes`, and for other bytes."""
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {not_utf8(data, error)}") from None


def not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """What to say of bytes that are not UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "expected UTF-8, got UTF-16 or UTF-32; save the file as UTF-8"
    return (
        f"expected UTF-8, got another byte ({data[error.start] if data else 0:#x}) at {error.start}"
    )


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON value.

    Raises:
      UserError: it is not JSON, nests deeper than `MAX_DEPTH`, or has a whole number of more than 4,300 digits.
    """
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {not_utf8(bytes(error.object), error)}") from None
    except RecursionError:
        raise UserError(f"{where}: expected JSON at most {MAX_DEPTH} deep, got more") from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if _deeper(value, MAX_DEPTH):
        raise UserError(f"{where}: expected JSON at most {MAX_DEPTH} deep, got more")
    return value


def _deeper(value: Any, most: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_deeper(part, most - 1) for part in parts)


def check_ratio(path: pathlib.Path, out: int, size: int) -> None:
    """Refuses `out` bytes that came out of a compressed file of `size` bytes, where that is out of proportion."""
    if out > FREE_BYTES and out > MAX_RATIO * size:
        raise UserError(
            f"{path}: expected at most {MAX_RATIO} times its {size:,} bytes to come out of it, got more"
        )


def gunzip(path: pathlib.Path, most: int = MAX_TEXT) -> bytes:
    """The contents of a gzip file.

    Raises:
      UserError: it is damaged, holds more than `most` bytes, or more than is in proportion; see `check_ratio`.
    """
    data = bytearray()
    try:
        size = path.stat().st_size
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 20):
                data += block
                check_ratio(path, len(data), size)
                if len(data) > most:
                    raise UserError(
                        f"{path}: expected at most {most:,} bytes to come out of it, got more"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return bytes(data)


def read_lines(file: IO[bytes], name: str, most: int) -> Iterator[bytes]:
    """The lines of a file with their `\\n`, which alone ends one. Raises `UserError` for one of over `most` bytes."""
    number = 0
    while line := file.readline(most + 2):
        number += 1
        if len(line) > most + 1:
            raise UserError(f"{name}, line {number}: expected at most {most:,} bytes, got more")
        yield line


def read_gzip_lines(path: pathlib.Path, most: int) -> Iterator[bytes]:
    """As `read_lines`, of a gzip file. Raises `UserError` also for what is out of proportion; see `check_ratio`."""
    size = path.stat().st_size
    out = 0
    with gzip.open(path, "rb") as file:
        for line in read_lines(file, str(path), most):  # type: ignore[arg-type]
            out += len(line)
            check_ratio(path, out, size)
            yield line
