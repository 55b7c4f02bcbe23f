"""A training that may be killed at any moment: the same command goes on. The tests compare what is left.

    python -m tests.t5_engine.killed_program FOLDER [seconds a batch]

FOLDER/ids.jsonl gets the step and the example ids of every batch that is read, once for each time that it is read. A
start first reads the `SAMPLE` batches by whose lengths it packs; only behind them it pauses at each.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flipped_cli import errors
from t5_engine import ladder, trainer
from t5_engine.config import T5Config
from t5_engine.run_settings import TrainConfig
from tests.t5_engine.conftest import VOCAB, random_batch

STEPS = 40
SAMPLE = ladder.SAMPLE
CONFIG = T5Config(
    vocab_size=VOCAB,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
)


def run(folder: pathlib.Path, pause: float = 0.0) -> Any:
    """Trains; a report falls between two checkpoints and the other way round."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        model_dir=str(folder),
        steps=STEPS,
        learning_rate=3e-3,
        optimizer="adam",
        checkpoint_period=3,
        keep_checkpoints=3,
        log_period=5,
    )

    read = 0

    def batches(done: int) -> Iterator[dict[str, np.ndarray]]:
        nonlocal read
        for step in range(done, STEPS):
            batch = random_batch(step, rows=4)
            ids = [f"set/train/{step * 4 + row}/a" for row in range(4)]
            with (folder / "ids.jsonl").open("a") as file:
                file.write(json.dumps([step, ids]) + "\n")
            read += 1
            if read > SAMPLE:
                time.sleep(pause)
            yield {**batch, "example_ids": np.array([name.encode() for name in ids], object)}

    return trainer.train(config, CONFIG, batches)


def main(words: Sequence[str]) -> None:
    """As a command of the project."""
    run(pathlib.Path(words[0]), float(words[1]) if len(words) > 1 else 0.0)


if __name__ == "__main__":
    errors.begin(lasting=True)
    errors.leave(errors.run(main, sys.argv[1:]))
