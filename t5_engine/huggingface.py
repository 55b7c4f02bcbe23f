"""The names under which Hugging Face's `T5ForConditionalGeneration` keeps the same parameters.

Only names and transpositions, in numpy: PyTorch keeps a linear layer's weight as [out, in], we as [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flipped_errors import UserError
from t5_engine.config import T5Config
from t5_engine.model import STACKED, STACKS, Params, abstract_params, stack, unstack

# (our path, their path, whether the two are each other's transpose), for the whole model and for each layer.
Name = tuple[tuple[str, ...], str, bool]

_PROJECTIONS = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
_WHOLE: tuple[Name, ...] = (
    (("token_embedder", "embedding"), "shared.weight", False),
    (("encoder", "encoder_norm", "scale"), "encoder.final_layer_norm.weight", False),
    (("decoder", "decoder_norm", "scale"), "decoder.final_layer_norm.weight", False),
    (("decoder", "logits_dense", "kernel"), "lm_head.weight", True),
)
_SUBLAYERS = {
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


def _names(config: T5Config) -> Iterator[Name]:
    yield from _WHOLE
    for side, layers in (
        ("encoder", config.num_encoder_layers),
        ("decoder", config.num_decoder_layers),
    ):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield (side, "relpos_bias", "rel_embedding"), table, True
        for layer in range(layers):
            ours = (side, f"{STACKED}_{layer}")
            for position, (norm, block, their_block) in enumerate(_SUBLAYERS[side]):
                theirs = f"{side}.block.{layer}.layer.{position}"
                yield (*ours, norm, "scale"), f"{theirs}.layer_norm.weight", False
                kernels = (
                    (("wi_0", "wi_0"), ("wi_1", "wi_1"), ("wo", "wo"))
                    if block == "mlp"
                    else _PROJECTIONS
                )
                for our_kernel, their_kernel in kernels:
                    yield (
                        (*ours, block, our_kernel, "kernel"),
                        f"{theirs}.{their_block}.{their_kernel}.weight",
                        True,
                    )


def to_state_dict(config: T5Config, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names, float32, each array with its own memory."""
    unstacked = unstack(params)
    result = {}
    for path, name, transposed in _names(config):
        leaf: Any = unstacked
        for part in path:
            leaf = leaf[part]
        array = np.asarray(leaf)
        result[name] = np.array(array.T if transposed else array, order="C")
    # A model without tied weights has these copies as parameters of their own.
    for stack_name in STACKS:
        result[f"{stack_name}.embed_tokens.weight"] = result["shared.weight"].copy()
    return result


def from_state_dict(config: T5Config, tensors: Mapping[str, np.ndarray]) -> Params:
    """The inverse of `to_state_dict`; copies of the embedding under other names are ignored.

    Raises:
      UserError: a parameter is missing or has another shape than the config says.
    """
    expected = unstack(_placeholders(config))
    result: Params = {}
    for path, name, transposed in _names(config):
        if name not in tensors:
            raise UserError(f"parameter {name!r}: expected in the state dictionary, not there")
        array = np.asarray(tensors[name], np.float32)
        array = np.array(array.T if transposed else array, order="C")
        shape: Any = expected
        place = result
        for part in path[:-1]:
            shape, place = shape[part], place.setdefault(part, {})
        shape = shape[path[-1]].shape
        if array.shape != shape:
            want, got = (shape[::-1], array.shape[::-1]) if transposed else (shape, array.shape)
            raise UserError(f"parameter {name!r}: expected shape {list(want)}, got {list(got)}")
        place[path[-1]] = array
    return stack(result)


def _placeholders(config: T5Config) -> Params:
    """Arrays of the parameters' shapes that take no memory."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config)
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
