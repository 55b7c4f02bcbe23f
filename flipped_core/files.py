"""Atomic file writes, and JSON whose bytes depend on the value only."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from flipped_core import interrupts
from flipped_core.errors import UserError
from flipped_core.owners import Owner, token_is_alive
from flipped_core.paths import explain, is_bucket, to_path

Json = dict[str, Any]
_TEMPORARY = ".tmp"
_FOLDER = "flipped."
_TOKEN = re.compile(r"\.([0-9a-f]{8}-[0-9]+-[0-9]+)\.[^.]+\.tmp")


def write_atomically(path: epath.PathLike, text: str | bytes) -> None:
    """Writes a file so that a reader, or a job that comes after a kill, sees all of it or nothing.

    Args:
      path: a local path, whose folder is made where it is missing, or one in a bucket.
      text: the content; written as UTF-8 where it is no bytes.

    Raises:
      UserError: the disk is full, or the folder or bucket cannot be written; an older file is still there then.
    """
    content = text.encode() if isinstance(text, str) else text
    if is_bucket(path):  # an object appears whole, when its upload is complete
        try:
            to_path(path).write_bytes(content)
        except Exception as error:
            raise UserError(f"cannot write {os.fspath(path)}: {explain(error)}") from error
        return
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporary(path.parent, path.name)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent,
            prefix=f".{path.name[:80]}.{Owner.current().token}.",
            suffix=_TEMPORARY,
        )
        with os.fdopen(handle, "wb") as file:
            file.write(content)
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


def remove_temporary(folder: pathlib.Path, name: str = "*", *, dead_only: bool = True) -> None:
    """Removes temporary files of `write_atomically` that a killed process left.

    Args:
      folder: where to look.
      name: of the file that was being written; "*" for any.
      dead_only: leave alone those of processes that run, or of which this machine does not know; False where the
        caller holds the folder.
    """
    for path in folder.glob(f".{glob.escape(name[:80]) if name != '*' else '*'}.*{_TEMPORARY}"):
        token = _TOKEN.search(path.name)
        if token is not None and (not dead_only or token_is_alive(token[1]) is False):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """A folder of this process among the system's temporary files, until the end of the block.

    Those of killed processes are removed first; a signal that ends this one removes its own.
    """
    folder = make_temporary_folder()
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    with interrupts.at_once(clean_up=remove):
        try:
            yield folder
        finally:
            remove()


def make_temporary_folder() -> pathlib.Path:
    """As `temporary_folder`, for the caller to remove; a later call removes it where this process has been killed."""
    place = pathlib.Path(tempfile.gettempdir())
    for left in place.glob(f"{_FOLDER}*"):
        if token_is_alive(left.name.removeprefix(_FOLDER).partition(".")[0]) is False:
            shutil.rmtree(left, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{Owner.current().token}."))


def cannot_write(path: epath.PathLike, error: OSError) -> UserError:
    """The line for a full disk and its like."""
    why = error.strerror or str(error)
    return UserError(
        f"cannot write {os.fspath(path)}: {why}; what was written before is complete and kept"
    )


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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
