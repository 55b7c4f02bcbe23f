"""Hugging Face folders: what is written is read back bit for bit, and what must not be read is refused."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flipped_core.errors import UserError
from t5_engine import config as sizes
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
    """Changes fields of `config.json`; None takes one out, but for a rate."""
    file = folder / "config.json"
    fields = {**json.loads(file.read_text()), **changes}
    gone = [name for name in changes if changes[name] is None and not name.endswith("rate")]
    file.write_text(json.dumps({name: fields[name] for name in fields if name not in gone}))


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
    assert set(tensors) == set(again)
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
    assert set(index["weight_map"]) == {*huggingface.names(config), *huggingface.COPIES}
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


def test_a_folder_without_tensors_is_refused(folder: pathlib.Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="expected model.safetensors or pytorch_model.bin, .* none"):
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
        ({"d_ff": 25}, r"expected shape \[25, 16\], got \[24, 16\]"),
        (
            {"num_layers": 3},
            "'encoder.block.2.layer.0.SelfAttention.k.weight' is missing, and 8 more",
        ),
        # What no machine holds is refused before anything is computed from it.
        (
            {"num_layers": 10**9},
            "num_layers: expected a whole number from 1 to 1024, got 1000000000",
        ),
        (
            {"num_decoder_layers": 10**6},
            "num_decoder_layers: expected a whole number from 1 to 1024",
        ),
        ({"d_model": 10**12}, "d_model: expected a whole number from 1 to 1048576, got 10"),
        (
            {"vocab_size": 2**24},
            r"'lm_head.weight': expected shape \[16777216, 16\], got \[48, 16\]",
        ),
        ({"d_kv": 64.0}, "d_kv: expected a whole number from 1 to 65536, got 64.0"),
        ({"num_heads": True}, "num_heads: expected a whole number from 1 to 65536, got True"),
        (
            {"d_ff": "2048" * 99},
            "d_ff: expected a whole number from 1 to 4194304, got '2048[0-9]{,60}$",
        ),
        ({"dropout_rate": None}, "dropout_rate: expected a number from 0.0 to 0.99, got None"),
        (
            {"layer_norm_epsilon": math.nan},
            "layer_norm_epsilon: expected a number from .*, got nan",
        ),
        ({"relative_attention_max_distance": 16}, "expected more than half of .*, got 16 and 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(folder: pathlib.Path, changes: Any, message: str):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        HuggingFaceWeights(folder)


# What distinguishes the published configurations of other models (google/t5-small, google/mt5-small, google/byt5-small,
# google/ul2, google/umt5-small, google/t5gemma-2b-2b-ul2) from T5 v1.1's.
OTHER_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "T5 v1.0": (
        {"feed_forward_proj": None, "tie_word_embeddings": None, "d_ff": 2048, "n_positions": 512},
        "feed_forward_proj: expected 'gated-gelu', as T5 v1.1 has it, got 'relu'",
    ),
    "T5 v1.0 as transformers 5 writes it": (
        {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False},
        "feed_forward_proj: expected 'gated-gelu', as T5 v1.1 has it, got 'relu'",
    ),
    "T5 v1.0, gated and tied": (
        {"tie_word_embeddings": True},
        "tie_word_embeddings: expected False, as T5 v1.1 has it, got True",
    ),
    "mT5": (
        {
            "model_type": "mt5",
            "architectures": ["MT5ForConditionalGeneration"],
            "vocab_size": 250112,
        },
        "model_type: expected 't5', as T5 v1.1 has it, got 'mt5'",
    ),
    "uMT5": ({"model_type": "umt5"}, "model_type: expected 't5', .* got 'umt5'"),
    "ByT5": (
        {"tokenizer_class": "ByT5Tokenizer", "vocab_size": 384, "num_decoder_layers": 4},
        "tokenizer_class: expected 'T5Tokenizer', as T5 v1.1 has it, got 'ByT5Tokenizer'",
    ),
    "UL2": (
        {"feed_forward_proj": "gated-silu", "dense_act_fn": "silu", "is_gated_act": True},
        "feed_forward_proj: expected 'gated-gelu', as T5 v1.1 has it, got 'gated-silu'",
    ),
    "another activation": ({"dense_act_fn": "silu"}, "dense_act_fn: expected 'gelu_new'"),
    "T5Gemma": (
        {"model_type": "t5gemma", "encoder": {"hidden_size": 2304}, "decoder": {}},
        "model_type: expected 't5', as T5 v1.1 has it, got 't5gemma'",
    ),
}


@pytest.mark.parametrize("model", OTHER_MODELS)
def test_other_models_are_refused_by_the_field_that_differs(folder: pathlib.Path, model: str):
    changes, message = OTHER_MODELS[model]
    (folder / "model.safetensors").write_bytes(b"never looked at")
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        HuggingFaceWeights(folder)


# The fields of published configurations beside the sizes: bigscience/T0_3B, google/flan-t5-small, google/t5-v1_1-small.
PUBLISHED = {
    "T0": {
        "_name_or_path": "./",
        "architectures": ["T5ForConditionalGeneration"],
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "gradient_checkpointing": False,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.10.0.dev0",
        "use_cache": True,
        "vocab_size": 32128,
    },
    "FLAN-T5": {
        "architectures": ["T5ForConditionalGeneration"],
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
        "tie_word_embeddings": False,
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": 32128,
    },
    "T5 v1.1": {
        "architectures": ["T5ForConditionalGeneration"],
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "model_type": "t5",
        "tie_word_embeddings": False,
        "vocab_size": 32128,
    },
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_configurations_open(model: str):
    fields = {
        "d_ff": 5120, "d_kv": 64, "d_model": 2048, "num_decoder_layers": 24, "num_heads": 32, "num_layers": 24
    }  # fmt: skip
    found = huggingface.config_from_fields({**PUBLISHED[model], **fields}, "config.json")
    assert found == sizes.SIZES["xl"]


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
