"""One of two processes that train a tiny model: python -m tests.t5_engine.bucket_program MODEL_DIR PORT NUMBER."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from flipped_cli import errors
from t5_engine import trainer
from t5_engine.run_settings import TrainConfig
from tests.t5_engine.conftest import random_batch
from tests.t5_engine.killed_program import CONFIG

STEPS, ROWS, PROCESSES = 12, 4, 2


def main(words: Sequence[str]) -> None:
    """Trains, or resumes."""
    model_dir, port, number = words
    config = TrainConfig(
        model_dir=model_dir,
        steps=STEPS,
        learning_rate=3e-3,
        optimizer="adam",
        checkpoint_period=2,
        keep_checkpoints=2,
        log_period=1,
        coordinator_address=f"127.0.0.1:{port}",
        process_count=PROCESSES,
        process_id=int(number),
    )
    config.join()

    def batches(done: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(done, STEPS):
            yield random_batch(step, rows=ROWS)  # all of them: each process packs the whole batch

    trainer.train(config, CONFIG, batches)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
