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


def shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Their shape of each of their names, without the copies of the embedding."""
    found = {}
    for path, leaf in leaves(config).items():
        own = leaf.shape[1:] if STACKED in path else leaf.shape
        theirs = own[::-1] if is_transposed(path) else own
        found.update(dict.fromkeys(names_of(config, path), theirs))
    return found


def names(config: T5Config) -> list[str]:
    """All their names, without the copies of the embedding."""
    return list(shapes(config))


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
    for name in names_of(config, path):
        if name not in tensors:
            raise UserError(f"parameter {name!r}: expected in the state dictionary, not there")
    leaf = np.empty((len(names_of(config, path)), *own), np.float32)
    for place, name in zip(leaf, names_of(config, path), strict=True):
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


# Their name of each size, ours, the value that `transformers` takes where the field is missing, and the largest that
# is taken: far above any published T5's, and so small that nothing is computed from what no machine holds.
_SIZES = (
    ("vocab_size", "vocab_size", 32128, 2**24),
    ("d_model", "emb_dim", 512, 2**20),
    ("num_heads", "num_heads", 8, 2**16),
    ("d_kv", "head_dim", 64, 2**16),
    ("d_ff", "mlp_dim", 2048, 2**22),
    ("num_layers", "num_encoder_layers", 6, 2**10),
    ("num_decoder_layers", "num_decoder_layers", None, 2**10),
    ("relative_attention_num_buckets", "relative_attention_num_buckets", 32, 2**16),
    ("relative_attention_max_distance", "relative_attention_max_distance", 128, 2**24),
)
# (least, default, most) of the other numbers.
_RATES = {"dropout_rate": (0.0, 0.1, 0.99), "layer_norm_epsilon": (1e-30, 1e-6, 1.0)}
# Tokenizers that read T5's SentencePiece model. ByT5's configuration differs from T5 v1.1's in nothing but this.
_TOKENIZERS = (None, "T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast")


def config_from_fields(fields: Mapping[str, Any], where: str) -> T5Config:
    """The inverse of `config_fields`, from a folder's `config.json`.

    Args:
      fields: of the JSON object; a field that is missing has `transformers`' default.
      where: the file, for messages.

    Raises:
      UserError: the model is no T5 v1.1, or of a size that is none; names the field, what was expected and what
        was got.
    """
    _refuse_other_models(fields, where)
    numbers: dict[str, Any] = {}
    for theirs, ours, default, most in _SIZES:
        value = fields.get(theirs, default)
        if theirs == "num_decoder_layers" and value is None:
            value = numbers["num_encoder_layers"]
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(
                f"{where}: {theirs}: expected a whole number from 1 to {most}, got {_short(value)}"
            )
        numbers[ours] = value
    for name, (least, usual, greatest) in _RATES.items():
        value = fields.get(name, usual)
        if type(value) not in (int, float) or not least <= value <= greatest:
            raise UserError(
                f"{where}: {name}: expected a number from {least} to {greatest}, got {_short(value)}"
            )
        numbers[name] = float(value)
    try:
        return T5Config(**numbers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _short(value: Any) -> str:
    """A value for messages, as JSON shows it, which may be long."""
    return f"{value!r:.60}"


def _refuse_other_models(fields: Mapping[str, Any], where: str) -> None:
    """Refuses T5 v1.0, mT5, ByT5, UL2, T5Gemma and all else, by the field in which they differ."""
    # transformers 5 writes tie_word_embeddings true for every T5, and keeps here what the folder said before.
    tied = fields.get("tie_word_embeddings", True) and fields.get("scale_decoder_outputs", True)
    tokenizer = fields.get("tokenizer_class")
    expected = {
        "model_type": ("t5", fields.get("model_type")),
        "feed_forward_proj": ("gated-gelu", fields.get("feed_forward_proj", "relu")),
        "dense_act_fn": ("gelu_new", fields.get("dense_act_fn", "gelu_new")),
        "is_gated_act": (True, fields.get("is_gated_act", True)),
        "tie_word_embeddings": (False, bool(tied)),
        "tokenizer_class": (tokenizer if tokenizer in _TOKENIZERS else "T5Tokenizer", tokenizer),
        "decoder_start_token_id": (0, fields.get("decoder_start_token_id", 0)),
    }
    for name, (wanted, got) in expected.items():
        if wanted != got:
            raise UserError(
                f"{where}: {name}: expected {wanted!r}, as T5 v1.1 has it, got {_short(got)}"
            )


def _name_in_layer(side: str, path: Path) -> str:
    """Their name, from the part's number on, of a parameter within a layer."""
    for position, (norm, block, their_block) in enumerate(_PARTS[side]):
        if path == (norm, "scale"):
            return f"{position}.layer_norm.weight"
        if path[0] == block:
            return f"{position}.{their_block}.{_KERNELS.get(path[1], path[1])}.weight"
    raise KeyError(path)
