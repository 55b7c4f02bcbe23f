"""Hugging Face folders: what is written is read back bit for bit, and what must not be read is refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flipped_core.errors import UserError
from t5_engine import huggingface, huggingface_folder
from t5_engine.config import T5Config
from t5_engine.huggingface_folder import HuggingFaceWeights
from t5_engine.weights import to_params
from tests.t5_engine.stored import InMemory, assert_same


@pytest.fixture
def folder(tmp_path: pathlib.Path, config: T5Config, params: Any) -> pathlib.Path:
    """What we write for the small model of these tests."""
    out = tmp_path / "written"
    out.mkdir()
    huggingface_folder.write(InMemory(config, params), out)
    return out


def their_folder(
    place: pathlib.Path, config: T5Config, tensors: dict[str, np.ndarray]
) -> pathlib.Path:
    """A folder made by the safetensors library, as other programs make them."""
    place.mkdir()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    fields = {"model_type": "t5", **huggingface.config_fields(config)}
    (place / "config.json").write_text(json.dumps(fields))
    return place


def change_config(folder: pathlib.Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_export_is_read_back_bit_for_bit(folder: pathlib.Path, config: T5Config, params: Any):
    weights = HuggingFaceWeights(folder)
    assert weights.config == config
    assert_same(to_params(weights), params)


def test_import_then_export_gives_the_same_tensors(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    """Of a folder that the safetensors library wrote, with the copies of the embedding that some have."""
    tensors = huggingface.to_state_dict(config, params)
    theirs = their_folder(tmp_path / "theirs", config, tensors)
    out = tmp_path / "out"
    out.mkdir()
    huggingface_folder.write(HuggingFaceWeights(theirs), out)
    again = load_file(out / "model.safetensors")
    assert set(tensors) - set(again) == set(huggingface.COPIES)
    assert_same(again, {name: tensors[name] for name in again})


def test_files_of_tensors_are_bounded_and_indexed(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    limit = 4000
    huggingface_folder.write(InMemory(config, params), tmp_path, shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    total = 0
    for i, file in enumerate(files):
        assert file.name == f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        with safe_open(file, framework="numpy") as content:
            tensors = [content.get_tensor(name) for name in content.keys()]
            assert {index["weight_map"][name] for name in content.keys()} == {file.name}
        size = sum(tensor.nbytes for tensor in tensors)
        assert size <= limit or len(tensors) == 1
        total += size
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(huggingface.names(config))
    assert_same(to_params(HuggingFaceWeights(tmp_path)), params)
    files[1].unlink()
    with pytest.raises(
        UserError, match=f"{files[1].name} is missing, which model.safetensors.index"
    ):
        HuggingFaceWeights(tmp_path)


def test_bfloat16_is_written_rounded_and_read_exactly(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    first, second = tmp_path / "first", tmp_path / "second"
    for out, weights in ((first, InMemory(config, params)), (second, None)):
        out.mkdir()
        weights = weights or HuggingFaceWeights(first)
        huggingface_folder.write(weights, out, dtype="bfloat16")
    stored = load_file(first / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    kernel = np.asarray(params["decoder"]["logits_dense"]["kernel"])
    np.testing.assert_array_equal(stored["lm_head.weight"], kernel.T.astype(ml_dtypes.bfloat16))
    files = [(out / "model.safetensors").read_bytes() for out in (first, second)]
    assert files[0] == files[1]
    with pytest.raises(UserError, match="unknown dtype 'float16'"):
        huggingface_folder.write(InMemory(config, params), tmp_path, dtype="float16")


def test_a_pickle_is_refused_with_the_reason(folder: pathlib.Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match="expected model.safetensors or .*index.json, found neither"
    ):
        HuggingFaceWeights(folder)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(
        UserError, match=r"pytorch_model-00001-of-00002.bin, a pickle, which can run"
    ):
        HuggingFaceWeights(folder)


def test_missing_extra_and_other_parameters_are_named(
    tmp_path: pathlib.Path, config: T5Config, params: Any
):
    tensors = huggingface.to_state_dict(config, params)
    norm = "encoder.block.1.layer.0.layer_norm.weight"
    cases = {
        f"'{norm}' is missing$": {k: v for k, v in tensors.items() if k != norm},
        "'classifier.bias' is none of T5.1.1's of this size$": {
            **tensors,
            "classifier.bias": np.ones(2),
        },
        rf"'{norm}': expected shape \[16\], got \[2\]": {**tensors, norm: np.ones(2, np.float32)},
        f"'{norm}': expected floating-point numbers, got int32": {
            **tensors,
            norm: np.ones(16, np.int32),
        },
        "encoder.embed_tokens.weight differs from shared.weight": {
            **tensors,
            "encoder.embed_tokens.weight": tensors["shared.weight"] + 1,
        },
    }
    for i, (message, changed) in enumerate(cases.items()):
        theirs = their_folder(tmp_path / str(i), config, changed)
        with pytest.raises(UserError, match=message):
            to_params(HuggingFaceWeights(theirs))
    # A table that early conversions of T5 hold, and that no model reads.
    unused = {huggingface.UNUSED[0]: np.ones((32, 2), np.float32)}
    assert_same(
        to_params(HuggingFaceWeights(their_folder(tmp_path / "u", config, {**tensors, **unused}))),
        params,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected False"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj: expected 'gated-gelu'.* got 'relu'"),
        ({"model_type": "umt5"}, "model_type: expected 't5'.* got 'umt5'"),
        ({"d_ff": 25}, r"expected shape \[25, 16\], got \[24, 16\]"),
        (
            {"num_layers": 3},
            "'encoder.block.2.layer.0.SelfAttention.k.weight' is missing, and 8 more",
        ),
    ],
)
def test_other_models_are_refused(folder: pathlib.Path, changes: Any, message: str):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        to_params(HuggingFaceWeights(folder))


def test_what_transformers_5_writes_of_untied_models_is_read(folder: pathlib.Path, params: Any):
    """It says tie_word_embeddings true of every T5, and keeps in another field that this one is not tied."""
    change_config(folder, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert_same(to_params(HuggingFaceWeights(folder)), params)


def test_damaged_files_are_told(folder: pathlib.Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        HuggingFaceWeights(folder)
    index = {"weight_map": {"shared.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"expected names of files beside it, got '\.\./elsewhere"):
        HuggingFaceWeights(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object, got list"):
        HuggingFaceWeights(folder)
    with pytest.raises(UserError, match="expected config.json there"):
        HuggingFaceWeights(folder.parent)
