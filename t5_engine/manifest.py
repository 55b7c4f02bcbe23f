"""A folder that appears whole or not at all, with the checksums of its files beside them.

What `flipped ckpt` writes is such a folder. The checkpoints of training have checksums of their own in each step's
folder (`t5_engine.checksums`).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from flipped_core import failures, interrupts
from flipped_core.errors import StorageError, UserError
from flipped_core.owners import Owner, token_is_alive

FILE = "manifest.json"
FORMAT = 1
_PARTIAL = ".partial"


@contextlib.contextmanager
def new_folder(out: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A fresh folder to fill, which gets its manifest and its name when all went well, else vanishes.

    Raises:
      UserError: there is something at `out` already, or the place cannot be written.
    """
    out = pathlib.Path(out).absolute()
    if out.exists() or out.is_symlink():
        raise UserError(
            f"{out} exists already; name a folder that does not, nothing is overwritten"
        )
    _remove_left(out)
    beside = out.with_name(f".{out.name}.{Owner.current().token}{_PARTIAL}")
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    remove = functools.partial(shutil.rmtree, beside, ignore_errors=True)
    kept = f"nothing was written to {out}"
    with interrupts.at_once(lambda: kept, remove):
        try:
            yield beside
            write(beside)
            beside.rename(out)
        except UserError:
            raise
        except Exception as error:
            problem = failures.storage(error) or (str(error) if isinstance(error, OSError) else "")
            if not problem:
                raise
            raise StorageError(
                f"{out}: cannot be written: {problem}; nothing is left of it"
            ) from error
        finally:
            remove()


def _remove_left(out: pathlib.Path) -> None:
    """Removes what killed processes left of the same folder."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*{_PARTIAL}"):
        token = left.name.removeprefix(f".{out.name}.").removesuffix(_PARTIAL)
        if token_is_alive(token) is False:
            shutil.rmtree(left, ignore_errors=True)


def write(folder: pathlib.Path) -> None:
    """Writes `manifest.json`: for each file of the folder its length in bytes and its SHA-256."""
    files = {name: _describe(folder / name) for name in _names(folder)}
    content = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / FILE).write_text(content + "\n", encoding="utf-8")


def problems(folder: str | pathlib.Path) -> list[str]:
    """What differs from the manifest, one line for each file: missing, changed, or not in it.

    Raises:
      UserError: the folder has no manifest, or one that cannot be read.
    """
    folder = pathlib.Path(folder)
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        listed: dict[str, Any] = content["files"]
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE}: not a manifest: {error}") from None
    found = _names(folder)
    told = [f"{name}: missing" for name in listed if name not in set(found)]
    for name in found:
        if name not in listed:
            told.append(f"{name}: not in the manifest")
        elif (folder / name).stat().st_size != listed[name]["bytes"]:
            told.append(
                f"{name}: {(folder / name).stat().st_size} bytes, expected {listed[name]['bytes']}"
            )
        elif _describe(folder / name) != listed[name]:
            told.append(f"{name}: other bytes than were written")
    return told


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file or a folder to a place where there is nothing yet."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)


def _names(folder: pathlib.Path) -> list[str]:
    """The files below a folder, the manifest left out."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != FILE)


def _describe(file: pathlib.Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
