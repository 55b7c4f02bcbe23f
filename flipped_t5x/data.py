"""T5X's `get_dataset_fn` for this project's mixtures: the stream of our engine, from the step that is next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_t5x import checkpoints
from flipped_t5x.converter import with_wrong_length
from flipped_tasks import stream
from flipped_tasks.seqio_tasks import RowTask
from mixtures import modules, own, registration


def mixture(
    name: str,
    data_dir: str | None,
    vocab_path: str,
    rates: str = "recipe",
    input_eos: bool = True,
    task_modules: Sequence[str] = (),
    exclude_templates: dict[str, Sequence[str]] | None = None,
) -> str:
    """Registers a mixture or task with SeqIO and returns its name; arguments as of the engine's run files.

    Raises:
      UserError: no such mixture, folder, vocabulary or module.
    """
    modules.load(task_modules)
    own.exclude_templates(exclude_templates or {})
    return registration.register_named(name, data_dir, vocab_path, rates, input_eos)


def get_dataset(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Callable[..., seqio.FeatureConverter],
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    model_dir: str,
    steps: int | None = None,
    microbatches: int | None = None,
) -> tf.data.Dataset:
    """T5X's `GetDatasetCallable`: the batches that our engine trains on, for the same seed.

    A run that goes on from a checkpoint in `model_dir` meets the batches that it would have met. Packed, no one can
    say how many examples a step took: the stream then begins anew with a seed of its own.

    Args:
      cfg: T5X's `DatasetConfig`.
      shard_id, num_shards: which part of each batch.
      feature_converter_cls: the model's.
      num_epochs, continue_from_last_checkpoint: T5X's; training reads without end, and always goes on.
      model_dir: the run's folder.
      steps, microbatches: the run's, looked at here because T5X comes to them late.

    Raises:
      UserError: no seed, or a batch size that shards or microbatches do not divide, or no number of steps.
    """
    del num_epochs, continue_from_last_checkpoint
    _refuse_other_numbers(cfg.batch_size, steps, microbatches)
    if cfg.seed is None:
        raise UserError("seed: expected a number, got None: the stream is a function of it")
    start = max(checkpoints.steps(model_dir), default=0)
    lengths = with_wrong_length(cfg.task_feature_lengths)
    source = stream.Stream(
        cfg.mixture_or_task_name,
        lengths,
        seed=cfg.seed + start if cfg.pack else cfg.seed,
        split=cfg.split,
        shuffle=cfg.shuffle,
        rows=RowTask.cached_rows if cfg.use_cached else None,
    )
    slots = stream.Slots(cfg.batch_size, shard_id, num_shards)
    converter = feature_converter_cls(
        pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
    )
    names = tuple(converter.TASK_FEATURES)

    def examples() -> Iterator[dict[str, np.ndarray]]:
        for step in itertools.count(0 if cfg.pack else start):
            for example in source.examples(slots.of(step)):
                yield {name: np.array(getattr(example, name), np.int32) for name in names}

    tokens = tf.TensorSpec([None], tf.int32)
    dataset = tf.data.Dataset.from_generator(
        examples, output_signature=dict.fromkeys(names, tokens)
    )
    converted = converter(dataset, {name: lengths[name] for name in names})
    return converted.batch(cfg.batch_size // num_shards, drop_remainder=True).prefetch(2)


def _refuse_other_numbers(batch_size: object, steps: object, microbatches: object) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("steps", steps),
        ("microbatches", microbatches),
    ):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if microbatches is not None and batch_size % microbatches:  # type: ignore[operator]
        raise UserError(
            f"microbatches: expected a divisor of the batch size {batch_size}, got {microbatches}"
        )
