"""Atomic file writes, and JSON whose bytes depend on the value only."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any

from etils import epath

from flipped_core.errors import UserError
from flipped_core.paths import explain, is_bucket, to_path

Json = dict[str, Any]


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a file so that a reader, or a job that comes after a kill, sees all of it or nothing.

    Args:
      path: a local path, whose folder is made where it is missing, or one in a bucket.
      text: the content; UTF-8.

    Raises:
      UserError: the disk is full, or the folder or bucket cannot be written; an older file is still there then.
    """
    if is_bucket(path):  # an object appears whole, when its upload is complete
        try:
            to_path(path).write_bytes(text.encode())
        except Exception as error:
            raise UserError(f"cannot write {os.fspath(path)}: {explain(error)}") from error
        return
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp"
        )
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: pathlib.Path, error: OSError) -> UserError:
    """The line for a full disk and its like."""
    why = error.strerror or str(error)
    return UserError(f"cannot write {path}: {why}; what was written before is complete and kept")


def to_json(value: Any, indent: int | None = 1) -> str:
    """`value` as JSON text that depends on nothing but `value`; NaN is refused, as JSON has none."""
    return (
        json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read_json(path: epath.PathLike) -> Json:
    """The object in a JSON file, local or in a bucket.

    Raises:
      UserError: it cannot be read, is not JSON, or is no object; names the file.
    """
    try:
        value = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
