"""Folders as `transformers` reads and writes them, on disk or on Hugging Face's hub: configuration and tensors.

`t5_engine.tensor_files` reads the tensors, of safetensors or of `pytorch_model.bin`; written are safetensors only.
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flipped_core import files, hub, uploads
from flipped_core.errors import UserError, unknown
from flipped_core.paths import is_bucket, to_path
from t5_engine import huggingface, tensor_files
from t5_engine.config import T5Config
from t5_engine.tensor_files import Tensors
from t5_engine.weights import (
    Path,
    Weights,
    layers_of,
    leaves,
    refuse_other_names,
    refuse_other_shape,
)

CONFIG = hub.CONFIG
WHOLE = tensor_files.SAFETENSORS
INDEX = WHOLE + tensor_files.INDEX_SUFFIX
EMBEDDING: Path = ("token_embedder", "embedding")
SHARD_BYTES = 4 * 2**30
DTYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16)}


class HuggingFaceWeights(Weights):
    """The parameters of a folder that holds a T5 v1.1, in one file or several.

    Attributes:
      files: those that hold the tensors; of a repository of the hub, in its client's cache.
      copies: the further names of the embedding that they have.
    """

    layout = "hf"

    def __init__(self, path: str | pathlib.Path) -> None:
        """Reads the configuration and the names and shapes of the tensors, no tensors.

        Args:
          path: a folder, or `hf://OWNER/NAME[@REVISION]`, of which the configuration is downloaded first and the
            tensors only where it is that of a T5 v1.1.

        Raises:
          UserError: the folder holds no tensors, another model, or tensors of other names or shapes than the
            configuration says; or whatever `flipped_core.hub` raises.
        """
        self.path, self.config = _read_config(path)
        self.step = 0
        self._copies_in: pathlib.Path | None = None
        if hub.is_reference(self.path):
            self.files = hub.download(self.path, tensor_files.find)
        else:
            self.files = tensor_files.find(self.path, self._found)
        self._tensors = Tensors(self.files)
        expected = huggingface.shapes(self.config)
        known = {*huggingface.COPIES, *huggingface.UNUSED} - set(expected)
        found = [name for name in self._tensors if name not in known]
        refuse_other_names(self.path, list(expected), found)
        for name, shape in expected.items():
            refuse_other_shape(name, shape, self._tensors.shape(name))
        self.copies = [name for name in huggingface.COPIES if name in self._tensors]
        for name in self.copies:
            refuse_other_shape(name, expected["shared.weight"], self._tensors.shape(name))

    def _found(self, name: str) -> tensor_files.File | None:
        """A file of the folder.

        Of a bucket, safetensors and JSON are read where they are; `pytorch_model.bin` is copied to a temporary folder,
        which is removed with this object.
        """
        file = to_path(self.path) / name
        if not file.is_file():
            return None
        if not is_bucket(file):
            return pathlib.Path(file)
        if not name.endswith(".bin"):
            return file
        if self._copies_in is None:
            self._copies_in = files.make_temporary_folder()
            weakref.finalize(self, shutil.rmtree, self._copies_in, ignore_errors=True)
        copy = self._copies_in / name
        if not copy.exists():
            uploads.download_file(file, copy)
        return copy

    def leaf(self, path: Path) -> np.ndarray:
        leaf = huggingface.join(self.config, path, self._tensors)
        if path == EMBEDDING:
            for name in self.copies:
                if not np.array_equal(self._tensors[name].astype(np.float32), leaf, equal_nan=True):
                    raise UserError(
                        f"{self.path}: {name} differs from shared.weight: T5.1.1 has one table for the words "
                        "of the encoder's and the decoder's input"
                    )
        return leaf


def read_config(path: str | pathlib.Path) -> T5Config:
    """The configuration of a folder or of a repository of the hub; nothing else is read or downloaded.

    Raises:
      UserError: there is none, or it is that of another model.
    """
    return _read_config(path)[1]


def _read_config(path: str | pathlib.Path) -> tuple[str, T5Config]:
    """(the folder, or the repository with its commit; the configuration)."""
    if hub.is_reference(path):
        where = hub.pin(path)
        file = hub.file(where, CONFIG)
        shown = f"{where}: {CONFIG}"
    else:
        folder = to_path(path)
        if not is_folder(folder):
            raise UserError(f"no Hugging Face folder at {path}: expected {CONFIG} there")
        where, file = str(folder), folder / CONFIG
        shown = str(file)
    return where, huggingface.config_from_fields(tensor_files.read_json(file), shown)


def is_folder(path: str | pathlib.Path) -> bool:
    """Whether a folder, or a repository of the hub, looks like one that `transformers` reads."""
    return hub.is_reference(path) or (to_path(path) / CONFIG).is_file()


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
        for name in _names(weights, path):
            if filled and filled + size > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = theirs
            filled += size
    return shards


def _names(weights: Weights, path: Path) -> list[str]:
    """Their names of one of our leaves, of the embedding with its copies.

    With `tie_word_embeddings=False`, which programs that call `tie_weights()` need, transformers 5 reads them too.
    """
    names = huggingface.names_of(weights.config, path)
    return [*names, *huggingface.COPIES] if path == EMBEDDING else names


def _tensors(weights: Weights, kind: Any) -> Iterator[tuple[str, memoryview]]:
    """(name, bytes) of each tensor."""
    for path, expected in leaves(weights.config).items():
        leaf = weights.leaf(path)
        refuse_other_shape("/".join(path), expected.shape, leaf.shape)
        for name, array in huggingface.split(weights.config, path, leaf):
            data = np.ascontiguousarray(array, dtype=kind).reshape(-1).view(np.uint8).data
            yield name, data
            for copy in huggingface.COPIES if path == EMBEDDING else ():
                yield copy, data


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


def _write_json(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
