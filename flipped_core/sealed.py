"""JSON files with a checksum of their own content: a damaged or edited one is never taken for what was written.

The checksum is CRC-32 of the file's canonical text (`files.to_json`) without it, in the field `crc32`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection
from typing import Any

from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import Json, to_json, write_atomically
from flipped_core.paths import explain

CHECKSUM = "crc32"
DAMAGED = "not what was written there"


def checksum(data: bytes) -> str:
    """CRC-32 as 8 hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def write_sealed(path: epath.Path, value: Json) -> Json:
    """Writes an object with its checksum (see `files.write_atomically`) and returns what was written."""
    sealed = seal(value)
    write_atomically(path, to_json(sealed))
    return sealed


def read_sealed(path: epath.Path, sealed_since: int, older: Collection[str]) -> Json:
    """The object that `write_sealed` wrote, without its checksum.

    Args:
      path: the file.
      sealed_since: the first value of the object's `format` whose files have a checksum.
      older: the names in older files. One without a checksum must have just these, and an older `format` or none; its
        content cannot be verified.

    Raises:
      UserError: the file cannot be read, is no JSON object, or holds something else than was written; names the file.
    """
    value = read_json_file(path)
    expected = value.pop(CHECKSUM, None)
    if expected is None:
        version = value.get("format", 0)
        if set(value) == set(older) and type(version) is int and version < sealed_since:
            return value
        raise UserError(f"{path}: {DAMAGED}: it has no checksum, {CHECKSUM!r}")
    try:
        found = checksum(to_json(value).encode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {DAMAGED}: {error}") from error
    if expected != found:
        raise UserError(f"{path}: {DAMAGED}: its content does not match its checksum")
    return value


def seal(value: Json) -> Json:
    """An object with its checksum, as `write_sealed` writes it."""
    return {**value, CHECKSUM: checksum(to_json(value).encode("utf-8"))}


def read_optionally_sealed(path: epath.Path) -> Json:
    """As `read_sealed`, of a file whose older versions have no checksum; the caller refuses unknown names."""
    value = read_json_file(path)
    if CHECKSUM in value and value.pop(CHECKSUM) != seal(value)[CHECKSUM]:
        raise UserError(f"{path}: {DAMAGED}: its content does not match its checksum")
    return value


def is_intact(path: epath.Path) -> bool:
    """Whether a file is there and has the checksum of its content."""
    try:
        value = read_json_file(path)
    except UserError:
        return False
    return value.pop(CHECKSUM, None) == seal(value)[CHECKSUM]


def read_json_file(path: epath.Path) -> Json:
    """The object in a file of strict JSON (`parse_json`); raises as `read_sealed`, without looking for a checksum."""
    try:
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: {DAMAGED}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(data: bytes, *, nan_is_null: bool = False) -> Any:
    """Strict JSON: UTF-8, whole characters, no NaN or infinity, no name twice in an object, no depth without end.

    Args:
      data: the text.
      nan_is_null: NaN and infinity, as `json.dumps` writes them, are None instead of an error.

    Raises:
      ValueError: it is not.
    """

    def constant(name: str) -> None:
        if not nan_is_null:
            raise ValueError(f"{name} is not JSON")

    def number(text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        constant(f"the number {text[:40]}")
        return None

    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=constant,
            parse_float=number,
            object_pairs_hook=_once,
        )
        if b"\\u" in data:  # half of a character, which no file of ours can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:60]!r} occurs twice in one object")
    return found
