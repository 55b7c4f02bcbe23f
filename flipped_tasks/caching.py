"""SeqIO's offline caching: one cache of a dataset's rows serves every method, template, seed and length.

All that is drawn or tokenized comes after `CacheDatasetPlaceholder`, so what a task caches are its rows and their
numbers, whatever the method. The task `rows.<dataset>` does nothing but be cached; every `RowTask` of the dataset
finds its cache, beside one under its own name.
"""

from __future__ import annotations

import os

import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_tasks.datasets import get_dataset, slug
from flipped_tasks.row_source import RowSource, row_source

ROWS_PER_SHARD = 50_000  # so that several workers can cache a dataset
_COMPLETED = "COMPLETED"  # SeqIO's marker of a whole cache


def rows_task_name(dataset: str) -> str:
    """The name of the task whose cache all methods share: `rows.glue_mrpc`."""
    return f"rows.{slug(dataset).replace('.', '_')}"


class SharedCacheTask(seqio.Task):
    """A task that also reads the cache of the rows of its dataset.

    Attributes:
      order_key: the dataset's name.
    """

    order_key: str

    @property
    def cache_dir(self) -> str | None:
        """Where the task, or its dataset's rows, are cached; None where neither is."""
        found = super().cache_dir
        if found:
            return found
        for folder in seqio.get_global_cache_dirs():
            path = os.path.join(folder, rows_task_name(self.order_key))
            if tf.io.gfile.exists(os.path.join(path, _COMPLETED)):
                self._cache_dir = path
                return path
        return None


def register_rows_task(dataset: str, data_dir: str | None = None) -> seqio.Task:
    """Puts the task that is cached into seqio.TaskRegistry; it has the splits with labelled rows.

    Args:
      dataset: promptsource's name.
      data_dir: see `sources.load_rows`.

    Raises:
      UserError: the dataset is not known, or has no rows in `data_dir`.
    """
    spec = get_dataset(dataset)
    source = row_source(dataset, data_dir)

    def splits() -> list[str]:
        return [split for split in source.splits if _has_rows(source, split)]

    plain = seqio.PassThroughVocabulary(0)
    name = rows_task_name(spec.name)
    task = seqio.Task(
        name,
        source=RowSource(dataset, source.payloads, splits, ROWS_PER_SHARD),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={
            "row": seqio.Feature(plain, add_eos=False, dtype=tf.string, rank=0),
            "number": seqio.Feature(plain, add_eos=False, dtype=tf.int64, rank=0),
        },
        shuffle_buffer_size=None,
    )
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)
    return task


def _has_rows(source: RowSource, split: str) -> bool:
    try:
        return len(source.payloads(split)) > 0
    except UserError:
        return False
