"""Named arrays in a folder or in a bucket, read one at a time through TensorStore.

TensorStore reads `gs://` by itself, so that no other library for buckets is needed, and it never runs what it
reads. Two ways of storing occur: a folder `<name>/` for each zarr array, and one OCDBT database of all of them.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorstore

from flipped_core.errors import UserError

# Names from the outside in, such as ("encoder", "layers", "attention", "query", "kernel").
Path = tuple[str, ...]

BUCKET = "gs://"
ORBAX_TREE = "_METADATA"  # Orbax's description of the tree that stands in a folder
# Nothing is read twice, so that a cache would only hold memory. By default TensorStore asks a bucket that does not
# answer 32 times, which takes longer than anyone waits for a message.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "gcs_request_retries": {"max_retries": 5, "initial_delay": "0.5s", "max_delay": "8s"},
}
# What TensorStore raises for files that are not as a writer left them.
_UNREADABLE = (ValueError, OSError, TypeError, KeyError, OverflowError)
_IN_BUCKET = re.compile(r"gs://([^/]+)/?(.*)", re.DOTALL)


class Folder:
    """The files of a folder, and the arrays that stand in it.

    Attributes:
      path: a local path, or `gs://<bucket>/<path>`.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = str(path).rstrip("/")
        self._context = tensorstore.Context(_CONTEXT)
        self._files: Any = None

    def below(self, name: str) -> Folder:
        """The folder `name` in this one."""
        return Folder(f"{self.path}/{name}")

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is no such file.

        Raises:
          UserError: the place cannot be read at all, such as a bucket without the rights to it.
        """
        if not self.path.startswith(BUCKET) and not (pathlib.Path(self.path) / name).is_file():
            return None
        try:
            if self._files is None:
                files = tensorstore.KvStore.open(_place(self.path), context=self._context)
                self._files = files.result()
            found = self._files.read(name).result()
        except _UNREADABLE as error:
            raise UserError(f"{self.path}/{name}: cannot be read: {_first_line(error)}") from None
        return found.value if found.state == "value" else None

    def array(
        self, name: str, *, ocdbt: bool = False, zarr3: bool = False, fill_missing: bool = False
    ) -> StoredArray:
        """The array of that name.

        Args:
          name: the folder's name, or its key in the database.
          ocdbt: whether the arrays stand in a database.
          zarr3: whether it is of zarr's third format rather than its second.
          fill_missing: whether a chunk that is not there stands for zeros, as a writer may leave it out; else it is an
            error when the array is read.

        Raises:
          UserError: there is none, or its description cannot be read, or no machine's memory holds it.
        """
        if ocdbt:
            place: dict[str, Any] = {"driver": "ocdbt", "base": _place(self.path)}
            place["path"] = f"{name}/"
        else:
            place = _place(f"{self.path}/{name}")
        spec = {
            "driver": "zarr3" if zarr3 else "zarr",
            "kvstore": place,
            "fill_missing_data_reads": fill_missing,
        }
        try:
            store = tensorstore.open(spec, open=True, context=self._context).result()
        except _UNREADABLE as error:
            raise UserError(
                f"{self.path}: array {name!r} cannot be read: {_first_line(error)}"
            ) from None
        _refuse_too_large(f"{self.path}/{name}", store)
        return StoredArray(f"{self.path}/{name}", store)


class StoredArray:
    """An array that is read from its place when it is asked for.

    Attributes:
      name: where it stands, for messages.
      shape: its lengths.
    """

    def __init__(self, name: str, store: Any) -> None:
        self.name = name
        self.shape: tuple[int, ...] = tuple(store.shape)
        self._store = store

    def read(self) -> np.ndarray:
        """The whole array, of the type in which it is stored."""
        try:
            return np.asarray(self._store.read().result())
        except _UNREADABLE as error:
            raise UserError(f"{self.name}: cannot be read: {_first_line(error)}") from None


class HeldArray:
    """An array that stood inside another file and is in memory already; used like a `StoredArray`."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name = name
        self.shape = value.shape
        self._value = value

    def read(self) -> np.ndarray:
        """The whole array."""
        return self._value


Stored = StoredArray | HeldArray
Opener = Callable[..., Stored]  # with `fill_missing` as in `Folder.array`


def orbax_arrays(folder: Folder) -> dict[Path, Opener] | None:
    """The arrays of a tree that Orbax stored, by their path; None where the folder holds no such tree.

    Raises:
      UserError: Orbax's description of the tree cannot be read.
    """
    if (content := folder.read(ORBAX_TREE)) is None:
        return None
    try:
        description = json.loads(content)
        entries = []
        for entry in description["tree_metadata"].values():
            path = tuple(str(key["key"]) for key in entry["key_metadata"])
            value = entry["value_metadata"]
            if value.get("value_type") != "None" and not value.get("skip_deserialize"):
                entries.append(path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder.path}/{ORBAX_TREE}: not a description of a tree: {type(error).__name__}: {error}"
        ) from None
    for path in entries:
        name_in_spec({"path": ".".join(path)}, f"{folder.path}/{ORBAX_TREE}")
    ocdbt = folder.read("manifest.ocdbt") is not None
    zarr3 = bool(description.get("use_zarr3"))
    # Names that hold no dots, as ours and T5X's, are joined with dots.
    return {
        path: functools.partial(folder.array, ".".join(path), ocdbt=ocdbt, zarr3=zarr3)
        for path in entries
    }


def name_in_spec(spec: Mapping[str, Any], where: str) -> str:
    """The name of the array that a TensorStore specification in a checkpoint speaks of.

    Nothing else of the specification is used: it comes with the checkpoint, and could name any other place.

    Args:
      spec: with "kvstore" and "path" in it (since TensorStore 0.1.14) or beside it (before).
      where: the file that holds it, for messages.

    Raises:
      UserError: it names nothing below the checkpoint's own folder.
    """
    store = spec.get("kvstore")
    path = (store.get("path") if isinstance(store, Mapping) else None) or spec.get("path")
    name = path.strip("/") if isinstance(path, str) and not path.startswith("/") else ""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(f"{where}: expected the name of an array beside it, got {path!r}")
    return name


def _refuse_too_large(name: str, store: Any) -> None:
    """Refuses an array that does not fit into this machine's memory, before memory is asked for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for what, shape in (
        ("it", store.shape),
        ("a chunk", store.chunk_layout.read_chunk.shape or ()),
    ):
        size = math.prod(shape) * store.dtype.numpy_dtype.itemsize
        if size > memory:
            raise UserError(
                f"{name}: {what} has shape {list(shape)}, {size:,} bytes, which is more than this machine's memory"
            )


def _place(path: str) -> dict[str, Any]:
    if path.startswith(BUCKET):
        match = _IN_BUCKET.fullmatch(path)
        if match is None:
            raise UserError(f"path: expected gs://<bucket>/<folder>, got {path!r}")
        return {"driver": "gcs", "bucket": match[1], "path": f"{match[2]}/"}
    return {"driver": "file", "path": f"{pathlib.Path(path).absolute()}/"}


def _first_line(error: Exception) -> str:
    """TensorStore's message without its source positions and specification."""
    return str(error).partition("[")[0].strip().rstrip(".:")
