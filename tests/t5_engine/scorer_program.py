"""Scores pairs on several meshes of this process group's devices; the tests compare the results.

    python -m tests.t5_engine.scorer_program '{"meshes": [[devices, model], …], "processes": [port, count, index]}'

Prints the scores of each mesh as JSON, and the sum of absolute parameters, which says that the models are the same.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np

from t5_engine import launch, partitioning
from t5_engine.config import T5Config
from t5_engine.model import init_params
from t5_engine.scorer import Scorer
from tests.t5_engine.conftest import VOCAB
from tests.t5_engine.test_scorer import make_pairs

CONFIG = T5Config(
    vocab_size=VOCAB,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)


def parameters() -> dict[str, Any]:
    """The same on every process, as plain arrays."""
    make = jax.jit(lambda: init_params(CONFIG, jax.random.key(5)))
    return jax.tree.map(np.asarray, make())


def main(request: dict[str, Any]) -> None:
    if "processes" in request:
        port, count, index = request["processes"]
        launch.start(f"127.0.0.1:{port}", count, index, timeout=120)
    params, scores = parameters(), []
    for devices, model in request["meshes"]:
        mesh = partitioning.make_mesh(model, jax.devices()[:devices])
        scorer = Scorer(CONFIG, params, mesh=mesh, batch_tokens=200)
        scores.append(scorer.score(make_pairs()).tolist())
    print(json.dumps({"devices": jax.device_count(), "scores": scores}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
