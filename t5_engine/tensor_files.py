"""The tensors of a Hugging Face folder: of safetensors where there are any, else of `pytorch_model.bin`."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from flipped_core.errors import UserError
from flipped_core.paths import read_range
from t5_engine.torch_files import TorchFile

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
WHOLE = (SAFETENSORS, TORCH)  # the preferred one first
INDEX_SUFFIX = ".index.json"
_MAX_JSON = 2**26  # bytes
_MAX_HEADER = 10**8  # bytes, as the safetensors library has it
_READ = 1 << 26  # bytes of a request to a bucket
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
File: TypeAlias = "pathlib.Path | epath.Path"  # the latter in a bucket
_Found = TypeVar("_Found", bound="File")


class TensorFile(Protocol):
    """One file of tensors: their names, shapes, and each of them."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> np.ndarray: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of all files by name; each is read anew when it is asked for."""

    def __init__(self, files: Sequence[File]) -> None:
        """Reads the names.

        Raises:
          UserError: a file is not whole, or a tensor is in two of them.
        """
        self._file_of: dict[str, TensorFile] = {}
        for path in files:
            file = _opened(path)
            for name in file:
                if name in self._file_of:
                    raise UserError(f"{path.parent}: {name!r} is in {path.name} and another file")
                self._file_of[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, of which nothing else is read."""
        return self._file_of[name].shape(name)


def _opened(path: File) -> TensorFile:
    if not isinstance(path, pathlib.Path):
        return _BucketSafeFile(path)
    return _SafeFile(path) if path.suffix == ".safetensors" else TorchFile(path)


class _SafeFile:
    """A safetensors file, opened anew for each tensor: an open one keeps all its tensors' pages in memory."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        with self._opened() as file:
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        with self._opened() as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def _opened(self) -> Any:
        try:
            return safetensors.safe_open(self._path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{self._path}: not a whole safetensors file: {error}") from None


class _BucketSafeFile:
    """A safetensors file in a bucket: its header, then each tensor's bytes, are read where they are.

    https://github.com/huggingface/safetensors#format
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        size = path.stat().length
        head = read_range(path, 0, 8) if size >= 8 else b""
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 0 < length <= min(size - 8, _MAX_HEADER):
            raise self._broken(f"no header in {size} bytes")
        self._start, self._size = 8 + length, size - 8 - length
        try:
            header = json.loads(read_range(path, 8, self._start))
        except (ValueError, RecursionError) as error:
            raise self._broken(f"header: {error}") from None
        if not isinstance(header, dict):
            raise self._broken(f"header: expected a JSON object, got {type(header).__name__}")
        header.pop("__metadata__", None)
        self._tensors = {name: self._described(name, entry) for name, entry in header.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin, end = self._tensors[name]
        data = bytearray()
        for at in range(self._start + begin, self._start + end, _READ):
            data += read_range(self._path, at, min(at + _READ, self._start + end))
        if len(data) != end - begin:
            raise self._broken(f"{name!r}: expected {end - begin} bytes, got {len(data)}")
        return np.frombuffer(data, dtype).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def _described(self, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
        """(dtype, shape, first byte, end) of a tensor, whose place must be in the file and of its size."""
        fields = entry if isinstance(entry, dict) else {}
        dtype = _DTYPES.get(str(fields.get("dtype")))
        shape, place = fields.get("shape"), fields.get("data_offsets")
        if dtype is None or not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2:
            raise self._broken(f"{name[:80]!r}: {str(entry)[:80]!r}")
        begin, end = place
        if end > self._size or end - begin != math.prod(shape) * dtype.itemsize:
            raise self._broken(f"{name[:80]!r}: bytes {begin} to {end} of {self._size}")
        return dtype, tuple(shape), begin, end

    def _broken(self, why: str) -> UserError:
        return UserError(f"{self._path}: not a whole safetensors file: {why}")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def find(folder: str, fetch: Callable[[str], _Found | None]) -> list[_Found]:
    """The files of a folder that hold its tensors.

    Args:
      folder: for messages.
      fetch: from a file's name to where it lies; None where there is none.

    Raises:
      UserError: there are none, or an index names one that is not there.
    """
    for whole in WHOLE:
        if (index := fetch(whole + INDEX_SUFFIX)) is not None:
            return [_fetched(folder, name, index, fetch) for name in _listed(index)]
        if (file := fetch(whole)) is not None:
            return [file]
    raise UserError(
        f"{folder}: expected {' or '.join(WHOLE)}, or an index of several files, found none"
    )


def _listed(index: File) -> list[str]:
    """The names of the files that an index lists, in order."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: expected a weight_map from tensors to files")
    names = list(dict.fromkeys(map(str, places.values())))
    for name in names:
        if pathlib.PurePath(name).name != name or "\\" in name:
            raise UserError(f"{index}: expected names of files beside it, got {name!r}")
        if pathlib.PurePath(name).suffix not in (".safetensors", ".bin"):
            raise UserError(f"{index}: expected .safetensors or .bin files, got {name!r}")
    return sorted(names)


def _fetched(
    folder: str,
    name: str,
    index: File,
    fetch: Callable[[str], _Found | None],
) -> _Found:
    file = fetch(name)
    if file is None:
        raise UserError(f"{folder}: {name} is missing, which {index.name} names")
    return file


def read_json(file: epath.PathLike) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: it is none, is nested too deeply or is too long.
    """
    try:
        file = epath.Path(file)
        size = file.stat().length
        if size > _MAX_JSON:
            raise UserError(f"{file}: expected at most {_MAX_JSON} bytes of JSON, got {size}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value
