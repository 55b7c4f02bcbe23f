"""A folder that appears whole or not at all, with the checksums of its files beside them.

What `flipped ckpt` writes is such a folder. The checkpoints of training have checksums of their own in each step's
folder (`t5_engine.checksums`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import functools
import glob
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from flipped_core import failures, files, interrupts, uploads
from flipped_core.errors import StorageError, UserError
from flipped_core.files import read_json
from flipped_core.owners import Owner, token_is_alive
from flipped_core.paths import (
    check_bucket,
    explain,
    files_below,
    is_bucket,
    is_hub,
    read_blocks,
    to_path,
)
from t5_engine import processes

FILE = "manifest.json"
FORMAT = 1
_PARTIAL = ".partial"
# What tells a reader that a folder is whole: of Hugging Face, T5X (Orbax, native) and ours; the manifest is the last.
_MARKERS = ("config.json", "_METADATA", "checkpoint", "commit_success.txt", FILE)


class _Described(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@contextlib.contextmanager
def new_folder(out: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A fresh local folder to fill, which gets its manifest and its name when all went well, else vanishes.

    For a bucket it is a temporary one, which is then copied there: what a reader looks for comes last.

    Raises:
      UserError: there is something at `out` already, or the place cannot be written.
    """
    place = to_path(out, "OUT")
    check_bucket(place, "OUT", write=True)
    if place.exists() or os.path.islink(place):
        raise UserError(
            f"{place} exists already; name a folder that does not, nothing is overwritten"
        )
    if is_bucket(place):
        with files.temporary_folder() as folder:
            yield folder
            write(folder)
            _upload(folder, place)
        return
    out = pathlib.Path(place)
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


def _upload(folder: pathlib.Path, place: epath.Path) -> None:
    """Copies all files, of which those that make a reader take the folder for whole come last."""
    names = sorted([*_names(folder), FILE], key=lambda name: (_last(name), name))
    for name in names:
        uploads.upload_file(folder / name, place / name)


def _last(name: str) -> int:
    base = name.rpartition("/")[2]
    return _MARKERS.index(base) + 1 if base in _MARKERS else 0


def write(folder: pathlib.Path) -> None:
    """Writes `manifest.json`: for each file of the folder its length in bytes and its SHA-256."""
    files = {name: _describe(folder / name)._asdict() for name in _names(folder)}
    content = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / FILE).write_text(content + "\n", encoding="utf-8")


def problems(folder: str | pathlib.Path) -> list[str]:
    """What differs from the manifest, one line for each file: missing, changed, or not in it.

    Raises:
      UserError: the folder has no manifest, or one that cannot be read.
    """
    root = to_path(folder)
    return _differences(root, _read(root / FILE), _names(root))


def refuse_damaged(folder: str | pathlib.Path, patterns: Sequence[str]) -> None:
    """Refuses a folder whose files are not as its manifest, or that of the folder around it, says.

    Does nothing where no manifest lists the folder, and in repositories of the hub. The processes of a run share the
    work.

    Args:
      folder: what will be read.
      patterns: of the names of the files that will be read, such as "*.safetensors".

    Raises:
      UserError: a file is missing, damaged or not in the manifest, or the manifest itself cannot be read.
    """
    if is_hub(folder):
        return
    try:
        lines = _damage(to_path(folder), patterns)
    except UserError as error:
        lines = [str(error)]
    said = (json.loads(text) for text in processes.from_all(json.dumps(lines)))
    lines = [line for part in said for line in part]
    if lines:
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise UserError(f"{folder} is not as it was written: {lines[0]}{more}")


def _damage(folder: epath.Path, patterns: Sequence[str]) -> list[str]:
    """What differs of this process's share of the files that match."""
    for root, prefix in ((folder, ""), (folder.parent, f"{folder.name}/")):
        if not (root / FILE).exists():
            continue
        listed = _read(root / FILE)

        def wanted(name: str, prefix: str = prefix) -> bool:
            rest = name.removeprefix(prefix)
            return name.startswith(prefix) and any(fnmatch.fnmatch(rest, p) for p in patterns)

        if prefix and not any(wanted(name) for name in listed):
            continue
        there = {name for name in _names(root, prefix) if wanted(name)}
        names = sorted(there | {name for name in listed if wanted(name)})
        # Systems put hidden files of their own anywhere; those of zarr are listed.
        names = [name for name in names if name in listed or "/." not in f"/{name}"]
        share = names[processes.index() :: processes.count()]
        expected = {name: listed[name] for name in share if name in listed}
        return _differences(root, expected, [name for name in share if name in there])
    return []


def _read(file: epath.Path) -> Mapping[str, _Described]:
    """The files that a manifest lists; `UserError` where it is no manifest."""
    content = read_json(file)
    if content.get("format") != FORMAT:
        got = str(content.get("format"))[:80]
        raise UserError(f"{file}: not a manifest: format {got}, expected {FORMAT}")
    listed = content.get("files")
    if not isinstance(listed, dict):
        raise UserError(f"{file}: not a manifest: files: expected a JSON object")
    for name, entry in listed.items():
        fields = entry if isinstance(entry, dict) else {}
        if type(fields.get("bytes")) is not int or not isinstance(fields.get("sha256"), str):
            raise UserError(f"{file}: not a manifest: expected bytes and sha256 of {name[:80]!r}")
    return {name: _Described(entry["bytes"], entry["sha256"]) for name, entry in listed.items()}


def _differences(
    root: epath.Path, listed: Mapping[str, _Described], found: Sequence[str]
) -> list[str]:
    told = [f"{_shown(name)}: missing" for name in listed if name not in set(found)]

    def compare(name: str) -> str | None:
        return _difference(root / name, listed[name]) if name in listed else "not in the manifest"

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        whys = pool.map(compare, found)
        return told + [
            f"{_shown(name)}: {why}" for name, why in zip(found, whys, strict=True) if why
        ]


def _difference(file: epath.Path, expected: _Described) -> str | None:
    try:
        if (size := file.stat().length) != expected.bytes:
            return f"{size} bytes, expected {expected.bytes}"
        if _describe(file) != expected:
            return "other bytes than were written"
    except OSError as error:
        return f"cannot be read: {explain(error)}"
    return None


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def copy(source: epath.PathLike, target: pathlib.Path) -> None:
    """Copies a file or a folder, local or in a bucket, to a local place where there is nothing yet."""
    source = to_path(source)
    if is_bucket(source):
        if not source.is_dir():
            uploads.download_file(source, target)
            return
        for name in files_below(source):
            uploads.download_file(source / name, target / name)
    elif source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)


def _names(folder: epath.PathLike, prefix: str = "") -> list[str]:
    """The files below a folder (or below the folder `prefix` in it), the manifest left out."""
    place = epath.Path(folder) / prefix
    try:
        names = [f"{prefix}{name}" for name in files_below(place)]
    except OSError as error:
        raise UserError(f"{place}: cannot be listed: {explain(error)}") from None
    return sorted(name for name in names if name != FILE)


def _describe(file: epath.PathLike) -> _Described:
    digest, size = hashlib.sha256(), 0
    for block in read_blocks(file):
        digest.update(block)
        size += len(block)
    return _Described(size, digest.hexdigest())
