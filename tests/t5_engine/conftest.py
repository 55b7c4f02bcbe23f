"""A model that compiles in a second, its parameters, and batches of random words."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from t5_engine.config import T5Config
from t5_engine.model import init_params

# These tests compile many small programs and run each once or twice: compile fast rather than well. Read when
# the first program is compiled, so it must be set before.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault("XLA_FLAGS", FAST_COMPILATION)

VOCAB = 48


@pytest.fixture(scope="session")
def config() -> T5Config:
    return T5Config(
        vocab_size=VOCAB,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=2,
        num_decoder_layers=3,
        dropout_rate=0.0,
    )


@pytest.fixture(scope="session")
def params(config: T5Config) -> dict[str, Any]:
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(7))


MakeBatch = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    return random_batch


def random_batch(
    seed: int, rows: int = 4, inputs: int = 9, targets: int = 6, wrong: bool = False
) -> dict[str, np.ndarray]:
    """Rows of random words with random lengths, padded as the data side pads them."""
    rng = np.random.default_rng(seed)

    def words(length: int) -> np.ndarray:
        ids = rng.integers(2, VOCAB, (rows, length)).astype(np.int32)
        lengths = rng.integers(1, length + 1, rows)
        return np.where(np.arange(length)[None] < lengths[:, None], ids, 0).astype(np.int32)

    target_ids = words(targets)
    batch = {
        "encoder_input_tokens": words(inputs),
        "decoder_input_tokens": np.pad(target_ids[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": target_ids,
        "decoder_loss_weights": (target_ids > 0).astype(np.float32),
    }
    if wrong:
        batch["wrong_encoder_input_tokens"] = words(inputs)
        batch["wrong_weights"] = (np.arange(rows) % 3 != 1).astype(np.float32)
    return batch
