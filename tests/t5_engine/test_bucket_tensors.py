"""Tensors of Hugging Face folders in a bucket: read where they are, and refused in one line where they are broken."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from flipped_core.errors import UserError
from t5_engine import huggingface, huggingface_folder, tensor_files
from t5_engine.config import T5Config
from t5_engine.huggingface_folder import HuggingFaceWeights
from t5_engine.weights import to_params
from tests.gcs_emulator import Emulator
from tests.t5_engine.stored import InMemory, assert_same

FILE = epath.Path("gs://bucket/hf/model.safetensors")
TENSORS = {
    "shared.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "bfloat": np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


def header(entry: Any, size: int = 4, **more: Any) -> bytes:
    """A file of `size` bytes of tensors whose header has the one entry "a"."""
    text = json.dumps({"a": entry, **more}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def test_tensors_are_read_in_blocks_and_not_copied(
    gcs: Emulator, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tensor_files, "_READ", 16)  # several requests for a tensor
    gcs.write("hf/model.safetensors", safetensors.numpy.save(TENSORS, {"format": "np"}))
    found = tensor_files.Tensors([FILE])
    assert set(found) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert found.shape(name) == expected.shape and found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_opens_whatever_its_files(
    gcs: Emulator,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    config: T5Config,
    params: Any,
) -> None:
    """Several safetensors files; and `pytorch_model.bin`, whose copy is gone with the weights."""
    import torch

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "hf").mkdir()
    huggingface_folder.write(InMemory(config, params), tmp_path / "hf", shard_bytes=2000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    assert len(files) > 4
    for name, content in files.items():
        gcs.write(f"hf/{name}", content)
    assert_same(to_params(HuggingFaceWeights("gs://bucket/hf")), params)
    assert list(temporary.iterdir()) == []

    state = {
        name: torch.tensor(np.asarray(tensor))
        for name, tensor in huggingface.to_state_dict(config, params).items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    gcs.write("torch/config.json", files["config.json"])
    gcs.write("torch/pytorch_model.bin", (tmp_path / "pytorch_model.bin").read_bytes())
    weights = HuggingFaceWeights("gs://bucket/torch")
    assert_same(to_params(weights), params)
    assert len(list(temporary.iterdir())) == 1
    del weights
    assert list(temporary.iterdir()) == []


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"\x05",
        b"\x05\x06",
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{x",
        (4000).to_bytes(8, "little") + b"[" * 4000,
        header([1]),
        header({**F32, "dtype": "C64"}),
        header({**F32, "shape": [-1]}),
        header({**F32, "shape": [2]}),
        header({**F32, "shape": 1}),
        header({**F32, "data_offsets": [4, 8]}),
        header({**F32, "data_offsets": [4, 0]}),
        header({**F32, "data_offsets": [0]}),
        header(F32, size=3),
    ],
    ids=range(15),
)
def test_a_broken_file_is_one_line(gcs: Emulator, content: bytes) -> None:
    gcs.write("hf/model.safetensors", content)
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors") as caught:
        tensor_files.Tensors([FILE])
    assert "\n" not in str(caught.value)
