"""Paths of users' files: local, or in a Cloud Storage bucket (`gs://BUCKET/NAME`).

All packages open users' paths through `to_path`, which gives an `etils.epath.Path`. An object store differs from a
disk in ways that matter here: an object appears whole or not at all, folders do not exist, and nothing can be
renamed atomically but a single object. So a folder of several files counts only once its marker exists, and is
deleted marker first.

Buckets are reached through fsspec and gcsfs (the extra `gcs`), never through TensorFlow, which the engine may lack.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import logging
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from etils import epath

from flipped_core.errors import UserError

BUCKET_PREFIX = "gs://"
HUB_PREFIX = "hf://"
GCS_EXTRA = "gcs"
# Seconds after which a bucket that does not answer is reported.
BUCKET_TIMEOUT = 20.0

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_BUCKET_NAME = re.compile(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")
_Result = TypeVar("_Result")

# etils asks TensorFlow for gs:// where it is installed; here fsspec answers in every environment alike.
os.environ.setdefault("EPATH_USE_TF", "0")


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET_PREFIX)


def has_scheme(path: epath.PathLike) -> bool:
    """Whether a path begins with a scheme, such as `gs://`, written with one slash too, as `pathlib` leaves it."""
    text = os.fspath(path)
    return "://" in text or bool(_SCHEME.match(text))


def is_hub(path: epath.PathLike) -> bool:
    """Whether a path names a repository of Hugging Face's hub."""
    return os.fspath(path).startswith(HUB_PREFIX)


def to_path(value: epath.PathLike, field: str = "path") -> epath.Path:
    """The absolute path that a user means, with `~` expanded.

    Args:
      value: a local path or `gs://BUCKET/NAME`.
      field: the setting or option, for messages.

    Raises:
      UserError: another scheme, a malformed bucket name, or the packages for buckets are missing.
    """
    text = os.fspath(value)
    if not has_scheme(text):
        return epath.Path(text).expanduser().absolute()
    bucket, _, name = text.removeprefix(BUCKET_PREFIX).partition("/")
    if not is_bucket(text):
        raise UserError(
            f"{field}: expected a local path or {BUCKET_PREFIX}BUCKET/NAME, got {text!r}"
        )
    if not _BUCKET_NAME.fullmatch(bucket) or "//" in name or ".." in name.split("/"):
        raise UserError(f"{field}: expected {BUCKET_PREFIX}BUCKET/NAME, got {text!r}")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{field}: {text!r} needs the package gcsfs: pip install 'flipped-learning[{GCS_EXTRA}]'"
        )
    _configure_fsspec()
    return epath.Path(text.rstrip("/"))


def to_local_path(value: epath.PathLike, field: str = "path") -> pathlib.Path:
    """Like `to_path`, for what cannot be in a bucket."""
    path = to_path(value, field)
    if is_bucket(path):
        raise UserError(f"{field}: expected a local path, got {os.fspath(path)!r}")
    return pathlib.Path(path)


def check_bucket(path: epath.PathLike, field: str, *, write: bool) -> None:
    """Makes sure that a bucket exists and that it can be read, and written where `write`; nothing is left there.

    Local paths pass. Call it before anything slow, so that a wrong or forbidden bucket is reported within seconds.

    Raises:
      UserError: it cannot be, or does not answer within `BUCKET_TIMEOUT` seconds.
    """
    if not is_bucket(path):
        return
    folder = to_path(path, field)
    text = os.fspath(folder)
    bucket = BUCKET_PREFIX + text.removeprefix(BUCKET_PREFIX).partition("/")[0]
    try:
        _within(BUCKET_TIMEOUT, lambda: _probe(text, write=write))
    except TimeoutError:
        raise UserError(f"{field}: {bucket} did not answer within {BUCKET_TIMEOUT:.0f} s") from None
    except FileNotFoundError:
        raise UserError(f"{field}: there is no bucket {bucket}, or you may not see it") from None
    except Exception as error:
        access = "be written" if write else "be read"
        raise UserError(
            f"{field}: expected a bucket that can {access}, got {text}: {explain(error)}"
        ) from None


def files_below(folder: epath.PathLike) -> dict[str, int]:
    """The files below a folder, their names relative to it and in order, with their lengths in bytes.

    In a bucket this is one request for each thousand objects.

    Raises:
      OSError: it cannot be listed.
    """
    if is_bucket(folder):
        root = os.fspath(to_path(folder)).removeprefix(BUCKET_PREFIX)
        found = _bucket_files().find(root, detail=True)
        return {
            name.removeprefix(f"{root}/"): about["size"]
            for name, about in sorted(found.items())
            if name != root and not name.endswith("/")
        }
    local = pathlib.Path(folder)
    names = sorted(
        path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()
    )
    return {name: (local / name).stat().st_size for name in names}


def read_blocks(path: epath.PathLike, size: int = 1 << 24) -> Iterator[bytes]:
    """The content of a file in blocks; in a bucket, a request for each."""
    if is_bucket(path):
        files, name, start = _bucket_files(), os.fspath(path).removeprefix(BUCKET_PREFIX), 0
        length = files.info(name)["size"]
        while start < length:
            yield files.cat_file(name, start=start, end=min(start + size, length))
            start += size
        return
    with open(path, "rb") as file:
        while block := file.read(size):
            yield block


def read_range(path: epath.PathLike, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of an object, without those around them.

    Raises:
      OSError: it cannot be read.
    """
    return _bucket_files().cat_file(
        os.fspath(path).removeprefix(BUCKET_PREFIX), start=start, end=end
    )


def move_object(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives an object of a bucket another name in the same bucket; the target appears whole.

    `epath.Path.rename` refuses a target whose folder is empty, which in a bucket does not exist.

    Raises:
      OSError: it cannot be moved.
    """
    names = (os.fspath(path).removeprefix(BUCKET_PREFIX) for path in (source, target))
    _bucket_files().mv(*names)


def _bucket_files() -> Any:
    import fsspec

    _configure_fsspec()
    return fsspec.filesystem("gcs")


def explain(error: BaseException) -> str:
    """One line that says why a bucket or disk refused; no traceback, no page of HTML."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2])[:300] or type(error).__name__


def bucket_failure(error: BaseException) -> str | None:
    """One line for an error that a bucket's client raised, such as rights that were lost; None for any other."""
    frame = error.__traceback__
    while frame is not None:
        module = str(frame.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in ("gcsfs", "fsspec"):
            return f"a bucket cannot be read or written: {explain(error)}"
        frame = frame.tb_next
    return None


def _probe(text: str, *, write: bool) -> None:
    """Lists one name below the path's bucket; creates and deletes an object there."""
    import fsspec

    # One try: the retries of a normal session outlast what a user waits for a typing error.
    system = fsspec.filesystem("gcs", skip_instance_cache=True, **_FSSPEC)
    bucket = text.removeprefix(BUCKET_PREFIX).partition("/")[0]
    system.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    if write:
        name = f"{text}/.write-test-{uuid.uuid4().hex}"
        system.pipe_file(name, b"")
        with contextlib.suppress(OSError):  # a bucket may allow creation and refuse deletion
            system.rm_file(name)


def _within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """The result of `call`; `TimeoutError` where it takes longer. The thread is abandoned then."""
    executor = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return executor.submit(call).result(timeout=seconds)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


# Listings are never cached: another host may have written since.
_FSSPEC = {"use_listings_cache": False, "listings_expiry_time": 0}


def _configure_fsspec() -> None:
    from fsspec.config import conf

    # gcsfs logs each failed request with a traceback; what fails in the end raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    for protocol in ("gcs", "gs"):
        conf.setdefault(protocol, {}).update(_FSSPEC)
