"""The model's config: sizes, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine.config import SIZES, T5Config, size
from t5_engine.model import T5, abstract_params, init_params

# Parameters in millions of the public T5 v1.1 models (untied logits), from their published configurations.
PARAMETERS = {"small": 77, "base": 248, "large": 783, "xl": 2850, "xxl": 11135}


@pytest.mark.parametrize("name", PARAMETERS)
def test_public_sizes_have_their_number_of_parameters(name):
    leaves = jax.tree.leaves(abstract_params(SIZES[name]))
    assert round(sum(np.prod(leaf.shape) for leaf in leaves) / 1e6) == PARAMETERS[name]


def test_float16_is_refused_with_the_reason():
    with pytest.raises(UserError, match="overflow.*bfloat16"):
        T5Config(dtype="float16")


def test_unknown_dtype_names_the_nearest():
    with pytest.raises(UserError, match="DTYPE: expected .*, got 'bfloat61'; nearest: 'bfloat16'"):
        T5Config(dtype="bfloat61")


@pytest.mark.parametrize(
    "field, value", [("emb_dim", 0), ("num_heads", 2.5), ("dropout_rate", 1.0)]
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"(?i){field}: expected"):
        T5Config(**{field: value})


def test_unknown_size_and_unknown_field_name_the_nearest():
    with pytest.raises(UserError, match="nearest: 'xxl'"):
        size("xxll")
    with pytest.raises(UserError, match="nearest: 'emb_dim'"):
        size("small", emb_dims=3)


def test_config_survives_its_dictionary(config):
    assert T5Config.from_dict(config.to_dict()) == config


def test_cudnn_attention_is_refused_where_it_cannot_run():
    with pytest.raises(
        UserError, match="attention 'cudnn': expected dtype 'bfloat16', got 'float32'"
    ):
        size("tiny", attention="cudnn")
    config = size("tiny", attention="cudnn", dtype="bfloat16")
    params = init_params(config.replace(attention="plain"), jax.random.key(0))
    words = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(UserError, match="runs on NVIDIA GPUs, and the device here is 'cpu'"):
        T5(config).apply({"params": params}, words, words)
