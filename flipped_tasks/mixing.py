"""A SeqIO mixture of our tasks, in the order of the training stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks.order import choices


class RowMixture(seqio.Mixture):
    """A SeqIO mixture of `RowTask`s whose draws are a function of the seed; see `order.choices`."""

    def __init__(self, name: str, tasks: Sequence[tuple[str, float]]):
        """Args: tasks: (name of a registered task, rate above 0)."""
        for task, rate in tasks:
            if not rate > 0:
                raise UserError(
                    f"mixture {name!r}, task {task!r}: rate: expected above 0, got {rate}"
                )
        super().__init__(name, list(tasks), sample_fn=mix)


def mix(
    datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None
) -> tf.data.Dataset:
    """SeqIO's `sample_fn`: draws the dataset of each example."""
    drawn_from = int.from_bytes(np.random.bytes(4), "big") if seed is None else seed

    def blocks() -> Iterator[np.ndarray]:
        for block in itertools.count():
            yield choices(tuple(map(float, rates)), drawn_from, block)

    draws = tf.data.Dataset.from_generator(
        blocks, output_signature=tf.TensorSpec([None], tf.int64)
    ).unbatch()
    return tf.data.Dataset.choose_from_datasets(datasets, draws, stop_on_empty_dataset=False)
