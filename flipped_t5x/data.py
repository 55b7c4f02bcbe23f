"""T5X's `get_dataset_fn` for this project's mixtures: the stream of our engine, from the step that is next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from flipped_core.errors import UserError
from flipped_t5x import checkpoints
from flipped_t5x.converter import with_wrong_length
from flipped_tasks import stream
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
    provider = seqio.get_mixture_or_task(cfg.mixture_or_task_name)
    is_mixture = isinstance(provider, seqio.Mixture)
    tasks = provider.tasks if is_mixture else [provider]
    place = stream.Place(
        tasks=tuple(task.name for task in tasks),
        rates=tuple(provider.get_rate(task) for task in tasks) if is_mixture else (1.0,),
        seed=cfg.seed + start if cfg.pack else cfg.seed,
        start=0 if cfg.pack else start * cfg.batch_size,
        batch_size=cfg.batch_size,
        host_index=shard_id,
        host_count=num_shards,
    )
    lengths = with_wrong_length(cfg.task_feature_lengths)
    features = provider.output_features
    settings: dict[str, Any] = {"passthrough_features": ["example_id"]} if is_mixture else {}
    with stream.at(place):
        examples = provider.get_dataset(
            sequence_length={name: lengths[name] for name in features},
            split=cfg.split,
            use_cached=cfg.use_cached,
            shuffle=cfg.shuffle,
            seed=place.seed,
            num_epochs=None,
            trim_output_features=False,  # the tasks make no longer ones
            **settings,
        )

    def trimmed(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Without the padding that examples have which were rendered together; no id is 0."""
        return {
            name: example[name][: tf.math.count_nonzero(example[name], dtype=tf.int32)]
            for name in features
        }

    converter = feature_converter_cls(
        pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
    )
    used = {name: lengths[name] for name in converter.TASK_FEATURES}
    converted = converter(examples.map(trimmed), used)
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
