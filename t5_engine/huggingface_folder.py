"""Folders as `transformers` reads and writes them: configuration and safetensors.

Only safetensors are read: `pytorch_model.bin` is a pickle, which can run whatever its author put into it.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from flipped_core.errors import UserError, unknown
from t5_engine import huggingface
from t5_engine.weights import (
    Path,
    Weights,
    layers_of,
    leaves,
    refuse_other_names,
    refuse_other_shape,
)

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30
DTYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16)}
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class HuggingFaceWeights(Weights):
    """The parameters of a folder that holds a T5 v1.1 as safetensors, in one file or several."""

    layout = "hf"

    def __init__(self, path: str | pathlib.Path) -> None:
        """Reads the configuration and the names of the tensors, no tensors.

        Raises:
          UserError: the folder holds no safetensors (a pickle is refused), or another model.
        """
        folder = pathlib.Path(path).absolute()
        if not is_folder(folder):
            raise UserError(f"no Hugging Face folder at {path}: expected {CONFIG} there")
        self.path = str(folder)
        self.step = 0
        file = folder / CONFIG
        self.config = huggingface.config_from_fields(_read_json(file), str(file))
        self._tensors = _Tensors(folder)
        expected = huggingface.names(self.config)
        known = {*huggingface.COPIES, *huggingface.UNUSED} - set(expected)
        found = [name for name in self._tensors if name not in known]
        refuse_other_names(str(folder), expected, found)
        self._copies = [name for name in huggingface.COPIES if name in self._tensors]

    def leaf(self, path: Path) -> np.ndarray:
        leaf = huggingface.join(self.config, path, self._tensors)
        if path == ("token_embedder", "embedding"):
            for name in self._copies:
                if not np.array_equal(self._tensors[name].astype(np.float32), leaf, equal_nan=True):
                    raise UserError(
                        f"{self.path}: {name} differs from shared.weight: T5.1.1 has one table for the words "
                        "of the encoder's and the decoder's input"
                    )
        return leaf


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of all shards by name; each is read anew when it is asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._file_of: dict[str, pathlib.Path] = {}
        self._open: tuple[pathlib.Path, Any] | None = None
        for file in _shards(folder):
            for name in self._opened(file).keys():
                self._file_of[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._opened(self._file_of[name]).get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def _opened(self, file: pathlib.Path) -> Any:
        if self._open is None or self._open[0] != file:
            try:
                self._open = file, safetensors.safe_open(file, framework="numpy")
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{file}: not a whole safetensors file: {error}") from None
        return self._open[1]


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether a folder looks like one that `transformers` reads."""
    return (pathlib.Path(path) / CONFIG).is_file()


def write(
    weights: Weights,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes what `T5ForConditionalGeneration.from_pretrained` reads; of the tokenizer this package knows nothing.

    One leaf is in memory at a time.

    Args:
      weights: what to write.
      folder: exists and is empty.
      dtype: of the tensors, "float32" or "bfloat16".
      shard_bytes: a file of tensors is no longer, unless one tensor alone is.

    Raises:
      UserError: an unknown `dtype`, or whatever the weights raise.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    fields = huggingface.config_fields(weights.config)
    description = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "dtype": dtype,
        **fields,
    }
    _write_json(folder / CONFIG, description)
    tokens = ("decoder_start_token_id", "pad_token_id", "eos_token_id")
    _write_json(folder / "generation_config.json", {name: fields[name] for name in tokens})
    _write_tensors(weights, folder, dtype, shard_bytes)


def _write_tensors(weights: Weights, folder: pathlib.Path, dtype: str, shard_bytes: int) -> None:
    """The tensors in the order of our leaves, in as many files as `shard_bytes` asks for."""
    code, kind = DTYPES[dtype]
    shards = _plan(weights, np.dtype(kind).itemsize, shard_bytes)
    files = [
        WHOLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    place = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    tensors = _tensors(weights, kind)
    for file, shard in zip(files, shards, strict=True):
        with open(folder / file, "wb") as out:
            out.write(_header(shard, code, np.dtype(kind).itemsize))
            for expected in shard:
                name, data = next(tensors)
                assert name == expected
                out.write(data)
    if len(shards) > 1:
        size = sum(math.prod(shape) for shard in shards for shape in shard.values())
        total = {"total_size": size * np.dtype(kind).itemsize}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": place})


def _plan(weights: Weights, itemsize: int, shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Their names and shapes for each file, in the order in which they are written."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for path, leaf in leaves(weights.config).items():
        shape = leaf.shape if layers_of(weights.config, path) is None else leaf.shape[1:]
        size = math.prod(shape) * itemsize
        theirs = shape[::-1] if huggingface.is_transposed(path) else shape
        for name in huggingface.names_of(weights.config, path):
            if filled and filled + size > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = theirs
            filled += size
    return shards


def _tensors(weights: Weights, kind: Any) -> Iterator[tuple[str, memoryview]]:
    """(name, bytes) of each tensor."""
    for path, expected in leaves(weights.config).items():
        leaf = weights.leaf(path)
        refuse_other_shape("/".join(path), expected.shape, leaf.shape)
        for name, array in huggingface.split(weights.config, path, leaf):
            whole = np.ascontiguousarray(array, dtype=kind)
            yield name, whole.reshape(-1).view(np.uint8).data


def _header(shard: Mapping[str, Sequence[int]], code: str, itemsize: int) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shard.items():
        end = start + math.prod(shape) * itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a folder.

    Raises:
      UserError: there are none, or the index names one that is not there.
    """
    if (folder / INDEX).is_file():
        index = _read_json(folder / INDEX).get("weight_map")
        names = sorted(set(index.values())) if isinstance(index, dict) else []
        for name in names:
            if not isinstance(name, str) or pathlib.PurePath(name).name != name:
                raise UserError(
                    f"{folder / INDEX}: expected names of files beside it, got {name!r}"
                )
            if not (folder / name).is_file():
                raise UserError(f"{folder}: {name} is missing, which {INDEX} names")
        if names:
            return [folder / name for name in names]
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is opened: only safetensors are "
            f"read; where you trust it, let transformers rewrite it with save_pretrained"
        )
    raise UserError(f"{folder}: expected {WHOLE} or {INDEX}, found neither")


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _write_json(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
