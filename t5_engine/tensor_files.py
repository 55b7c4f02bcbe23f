"""The tensors of a Hugging Face folder: of safetensors where there are any, else of `pytorch_model.bin`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import safetensors
from etils import epath

from flipped_core.errors import UserError
from t5_engine.torch_files import TorchFile

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
WHOLE = (SAFETENSORS, TORCH)  # the preferred one first
INDEX_SUFFIX = ".index.json"
_MAX_JSON = 2**26  # bytes
# From the name of a file to where it lies; None where there is none.
Fetch = Callable[[str], pathlib.Path | None]


class TensorFile(Protocol):
    """One file of tensors: their names, shapes, and each of them."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> np.ndarray: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of all files by name; each is read anew when it is asked for."""

    def __init__(self, files: list[pathlib.Path]) -> None:
        """Reads the names.

        Raises:
          UserError: a file is not whole, or a tensor is in two of them.
        """
        self._file_of: dict[str, TensorFile] = {}
        for path in files:
            file: TensorFile = _SafeFile(path) if path.suffix == ".safetensors" else TorchFile(path)
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


def find(folder: str, fetch: Fetch) -> list[pathlib.Path]:
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


def _listed(index: pathlib.Path) -> list[str]:
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
    index: pathlib.Path,
    fetch: Fetch,
) -> pathlib.Path:
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
