"""The names under which Hugging Face's `T5ForConditionalGeneration` keeps the same parameters.

Only names and transpositions, in numpy: PyTorch keeps a linear layer's weight as [out, in], we as [in, out].
`t5_engine.huggingface_folder` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from flipped_core.errors import UserError
from t5_engine.config import T5Config
from t5_engine.model import STACKED, STACKS, Params
from t5_engine.weights import Path, as_float32, layers_of, leaves

_WHOLE = {
    ("token_embedder", "embedding"): "shared.weight",
    ("encoder", "encoder_norm", "scale"): "encoder.final_layer_norm.weight",
    ("decoder", "decoder_norm", "scale"): "decoder.final_layer_norm.weight",
    ("decoder", "logits_dense", "kernel"): "lm_head.weight",
} | {
    (side, "relpos_bias", "rel_embedding"): (
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    )
    for side in STACKS
}
# (norm, block, their name of the block) of each part of a layer.
_PARTS = {
    "encoder": (
        ("pre_attention_layer_norm", "attention", "SelfAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
}
_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}  # "wi_0", "wi_1", "wo": the same
# The embedding under two more names; a folder may have them or not.
COPIES = tuple(f"{side}.embed_tokens.weight" for side in STACKS)
# Early conversions of T5 hold a table that no model reads.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def names_of(config: T5Config, path: Path) -> list[str]:
    """Their names of one of our leaves: one for each layer, or a single one."""
    if path in _WHOLE:
        return [_WHOLE[path]]
    side = path[0]
    name = _name_in_layer(side, path[2:])
    return [f"{side}.block.{i}.layer.{name}" for i in range(layers_of(config, path) or 0)]


def is_transposed(path: Path) -> bool:
    """Whether theirs is the transpose of ours (per layer)."""
    return path[-1] in ("kernel", "rel_embedding")


def names(config: T5Config) -> list[str]:
    """All their names, without the copies of the embedding."""
    return [name for path in leaves(config) for name in names_of(config, path)]


def split(config: T5Config, path: Path, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(their name, their array) of all that one of our leaves holds; views, no copies."""
    stacked = leaf if STACKED in path else leaf[None]
    for name, array in zip(names_of(config, path), stacked, strict=True):
        yield name, array.T if is_transposed(path) else array


def join(config: T5Config, path: Path, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of `split`: one of our leaves, float32, from their arrays.

    Raises:
      UserError: a parameter is missing or has another shape than the config says.
    """
    shape = leaves(config)[path].shape
    own = shape[1:] if STACKED in path else shape
    theirs = own[::-1] if is_transposed(path) else own
    leaf = np.empty((len(names_of(config, path)), *own), np.float32)
    for place, name in zip(leaf, names_of(config, path), strict=True):
        if name not in tensors:
            raise UserError(f"parameter {name!r}: expected in the state dictionary, not there")
        array = as_float32(np.asarray(tensors[name]), theirs, name)
        place[...] = array.T if is_transposed(path) else array
    return leaf if STACKED in path else leaf[0]


def to_state_dict(config: T5Config, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names, float32, each array with its own memory."""
    result = {}
    for path, leaf in flax.traverse_util.flatten_dict(dict(params)).items():
        for name, array in split(config, path, np.asarray(leaf)):
            result[name] = np.array(array, order="C")
    # A model without tied weights has these copies as parameters of their own.
    for name in COPIES:
        result[name] = result["shared.weight"].copy()
    return result


def from_state_dict(config: T5Config, tensors: Mapping[str, np.ndarray]) -> Params:
    """The inverse of `to_state_dict`; copies of the embedding under other names are ignored.

    Raises:
      UserError: a parameter is missing or has another shape than the config says.
    """
    return flax.traverse_util.unflatten_dict(
        {path: join(config, path, tensors) for path in leaves(config)}
    )


def config_fields(config: T5Config) -> dict[str, Any]:
    """What `transformers.T5Config` must be told to be the same model."""
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "dropout_rate": config.dropout_rate,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def config_from_fields(fields: Mapping[str, Any], where: str) -> T5Config:
    """The inverse of `config_fields`, from a folder's `config.json`.

    Args:
      fields: of the JSON object; a field that is missing has `transformers`' default.
      where: the file, for messages.

    Raises:
      UserError: the model is no T5 v1.1; names the field, what was expected and what was got.
    """
    # transformers 5 writes tie_word_embeddings true for every T5, and keeps here what the folder said before.
    tied = fields.get("tie_word_embeddings", True) and fields.get("scale_decoder_outputs", True)
    expected = {
        "model_type": ("t5", fields.get("model_type")),
        "feed_forward_proj": ("gated-gelu", fields.get("feed_forward_proj", "relu")),
        "tie_word_embeddings": (False, bool(tied)),
    }
    for name, (wanted, got) in expected.items():
        if wanted != got:
            raise UserError(f"{where}: {name}: expected {wanted!r}, as T5 v1.1 has it, got {got!r}")
    layers = fields.get("num_layers", 6)
    return T5Config(
        vocab_size=fields.get("vocab_size", 32128),
        emb_dim=fields.get("d_model", 512),
        num_heads=fields.get("num_heads", 8),
        head_dim=fields.get("d_kv", 64),
        mlp_dim=fields.get("d_ff", 2048),
        num_encoder_layers=layers,
        num_decoder_layers=fields.get("num_decoder_layers") or layers,
        dropout_rate=fields.get("dropout_rate", 0.1),
        relative_attention_num_buckets=fields.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=fields.get("relative_attention_max_distance", 128),
        layer_norm_epsilon=fields.get("layer_norm_epsilon", 1e-6),
    )


def _name_in_layer(side: str, path: Path) -> str:
    """Their name, from the part's number on, of a parameter within a layer."""
    for position, (norm, block, their_block) in enumerate(_PARTS[side]):
        if path == (norm, "scale"):
            return f"{position}.layer_norm.weight"
        if path[0] == block:
            return f"{position}.{their_block}.{_KERNELS.get(path[1], path[1])}.weight"
    raise KeyError(path)
