"""A SeqIO mixture of our tasks, drawn by the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks import stream


class RowMixture(seqio.Mixture):
    """A SeqIO mixture of `RowTask`s, drawn by `stream.mix`; it spares each example a call that changes nothing."""

    def __init__(self, name: str, tasks: Sequence[tuple[str, float]]):
        """Args: tasks: (name of a registered task, rate above 0)."""
        for task, rate in tasks:
            if not rate > 0:
                raise UserError(
                    f"mixture {name!r}, task {task!r}: rate: expected above 0, got {rate}"
                )
        super().__init__(name, list(tasks), sample_fn=stream.mix)

    def get_task_dataset(
        self, task: seqio.Task, output_feature_keys: set[str], *args: Any, **settings: Any
    ) -> tf.data.Dataset:
        """As seqio.Mixture's, which maps every example to pick features, also where there is nothing to pick."""
        place = stream.current_place()
        if place is None or task.name not in place.tasks:
            return super().get_task_dataset(task, output_feature_keys, *args, **settings)
        names = ("sequence_length", "split", "use_cached", "shuffle", "seed", "shard_info", "num_epochs",
                 "trim_output_features", "try_in_mem_cache")  # fmt: skip
        dataset = task.get_dataset(**dict(zip(names, args, strict=False)), **settings)
        assert set(dataset.element_spec) == output_feature_keys, dataset.element_spec
        return dataset
