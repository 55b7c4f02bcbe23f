"""Batches of NumPy arrays for the engine, read through SeqIO."""

from __future__ import annotations

import atexit
import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError, unknown
from flipped_tasks import stream
from flipped_tasks.draws import generator
from flipped_tasks.seqio_tasks import RowTask

Buckets = Sequence[tuple[int, int]]


def batches(
    mixture: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    length_buckets: Buckets | None = None,
    length_window: int = 1,
    split: str = "train",
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of a registered mixture or task: a function of the seed.

    Args:
      mixture: a name in SeqIO's registries.
      lengths: at most so many tokens of 'inputs' (S) and 'targets' (T).
      batch_size: B, of all hosts together.
      seed: decides order, templates and wrong choices.
      start_step: the first batch; what comes is what an uninterrupted run gives from there.
      host_index, host_count: this host h of H gets rows h·B/H … (h+1)·B/H−1 of every global batch.
      length_buckets: (S, T) pairs; a batch is padded to the smallest that holds it, or else to `lengths`.
        None always pads to `lengths`. On one host only, for hosts must agree on shapes.
      length_window: the examples of so many batches are put together anew by bucket, so that a batch is padded
        less, and those batches come in an order drawn from the seed. 1 leaves the order as it is.
      split: the split of every task.

    Yields:
      int32 arrays [B/H, S], [B/H, T] or [B/H]: encoder_input_tokens, decoder_input_tokens,
      decoder_target_tokens, decoder_loss_weights; for FLIPPED wrong_encoder_input_tokens and wrong_weights too;
      example_ids, an object array of bytes.

    Raises:
      UserError: an unknown mixture, a batch size that the hosts do not divide, a bad length or bucket, or data
        without a single usable example.
    """
    provider = _provider(mixture)
    tasks = _tasks(provider, split)
    if length_window < 1 or (length_window > 1 and length_buckets is None):
        raise UserError(
            f"length_window: expected 1, or more together with length_buckets, got {length_window}"
        )
    if start_step < 0:
        raise UserError(f"start_step: expected at least 0, got {start_step}")
    for key in ("inputs", "targets"):
        if lengths.get(key, 0) < 1:
            raise UserError(f"lengths[{key!r}]: expected at least 1, got {lengths.get(key)!r}")
    place = stream.Place(
        tasks=tuple(task.name for task in tasks),
        rates=tuple(provider.get_rate(task) for task in tasks)
        if isinstance(provider, seqio.Mixture)
        else (1.0,),
        seed=seed,
        start=start_step // length_window * length_window * batch_size,
        batch_size=batch_size,
        host_index=host_index,
        host_count=host_count,
    )
    if length_buckets is not None and host_count > 1:
        raise UserError(
            "length_buckets: expected None with several hosts, which must agree on shapes"
        )
    buckets = _sorted_buckets(length_buckets or (), lengths)
    dataset = _open(provider, place, lengths, split, length_window).prefetch(2)
    window = _Window(batch_size, length_window, seed, start_step)
    return _Batches(dataset, tasks, buckets, window)


def _provider(name: str) -> seqio.Task | seqio.Mixture:
    names = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in names:
        raise unknown("mixture or task", name, names)
    return seqio.get_mixture_or_task(name)


def _tasks(provider: seqio.Task | seqio.Mixture, split: str) -> list[RowTask]:
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    found = [task for task in tasks if split in task.splits]
    if not found:
        raise unknown(f"split of {provider.name!r}", split, provider.splits)
    for task in found:
        if not isinstance(task, RowTask):
            raise UserError(
                f"task {task.name!r} cannot be read from any step: register it with register_task"
            )
    return found


def _open(
    provider: seqio.Task | seqio.Mixture,
    place: stream.Place,
    lengths: Mapping[str, int],
    split: str,
    length_window: int,
) -> tf.data.Dataset:
    features = provider.output_features
    limits = {key: lengths["targets" if key == "targets" else "inputs"] for key in features}
    settings: dict[str, Any] = {
        "sequence_length": limits,
        "split": split,
        "shuffle": True,
        "seed": place.seed,
        "num_epochs": None,
        "trim_output_features": False,  # the tasks make no longer ones; `_trim` takes padding away
    }
    if isinstance(provider, seqio.Mixture):
        settings["passthrough_features"] = ["example_id"]
    with stream.at(place):
        dataset = provider.get_dataset(**settings)
    size = place.batch_size // place.host_count * length_window
    return dataset.padded_batch(size, drop_remainder=True)


def _sorted_buckets(buckets: Buckets, lengths: Mapping[str, int]) -> list[tuple[int, int]]:
    for inputs, targets in buckets:
        if inputs < 1 or targets < 1:
            raise UserError(
                f"length_buckets: expected pairs of at least 1, got {(inputs, targets)}"
            )
    within = [
        pair for pair in buckets if pair[0] <= lengths["inputs"] and pair[1] <= lengths["targets"]
    ]
    return [
        *sorted(within, key=lambda pair: (sum(pair), pair)),
        (lengths["inputs"], lengths["targets"]),
    ]


@dataclasses.dataclass(frozen=True)
class _Window:
    """How the examples of `size` batches become batches: see `length_window` of `batches`."""

    batch_size: int
    size: int
    seed: int
    start_step: int

    def split(
        self, together: Mapping[str, np.ndarray], number: int, buckets: Sequence[tuple[int, int]]
    ) -> list[dict[str, np.ndarray]]:
        """The batches of window `number`, those before `start_step` left out."""
        if self.size == 1:
            return [_trim(dict(together))]
        keys = [
            _bucket(inputs, targets, buckets)
            for inputs, targets in zip(*_lengths(together), strict=True)
        ]
        order = np.argsort(keys, kind="stable").reshape(self.size, self.batch_size)
        order = order[generator(self.seed, "length_window", number).permutation(self.size)]
        done = max(0, self.start_step - number * self.size)
        return [
            _trim({name: array[rows] for name, array in together.items()}) for rows in order[done:]
        ]


class _Batches(Iterator[dict[str, np.ndarray]]):
    """The batches of a pipeline. Its threads call Python, so it must end before the interpreter does."""

    def __init__(
        self,
        dataset: tf.data.Dataset,
        tasks: Sequence[RowTask],
        buckets: Sequence[tuple[int, int]],
        window: _Window,
    ):
        self._batches: Any = dataset.as_numpy_iterator()
        self._tasks, self._buckets, self._window = tasks, buckets, window
        self._number = window.start_step // window.size
        self._ready: list[dict[str, np.ndarray]] = []
        _OPEN.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise StopIteration
        try:
            if not self._ready:
                together = next(self._batches)
                self._ready = self._window.split(together, self._number, self._buckets)
                self._number += 1
            return _convert(self._ready.pop(0), self._buckets)
        except tf.errors.OpError as error:
            for task in self._tasks:
                if task.failure is not None:
                    raise task.failure from error
            raise

    def close(self) -> None:
        """Ends the pipeline; there is no next batch then."""
        self._batches = None


_OPEN: weakref.WeakSet[_Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches_left in list(_OPEN):
        batches_left.close()


def _convert(
    batch: Mapping[str, np.ndarray], buckets: Sequence[tuple[int, int]]
) -> dict[str, np.ndarray]:
    """What `features.FlippedFeatureConverter` gives, for a batch at once; the tests compare the two."""
    inputs, targets, wrong = batch["inputs"], batch["targets"], batch.get("wrong_inputs")
    longest = max(inputs.shape[1], 0 if wrong is None else wrong.shape[1])
    length, target_length = buckets[_bucket(longest, targets.shape[1], buckets)]
    target_tokens = _pad(targets, target_length)
    decoder_inputs = np.zeros_like(target_tokens)
    decoder_inputs[:, 1:] = target_tokens[:, :-1]
    out = {
        "encoder_input_tokens": _pad(inputs, length),
        "decoder_input_tokens": decoder_inputs,
        "decoder_target_tokens": target_tokens,
        "decoder_loss_weights": (target_tokens != 0).astype(np.int32),
        "example_ids": batch["example_id"],
    }
    if wrong is not None:
        out["wrong_encoder_input_tokens"] = _pad(wrong, length)
        out["wrong_weights"] = (wrong != 0).any(axis=1).astype(np.int32)
    return out


def _bucket(inputs: int, targets: int, buckets: Sequence[tuple[int, int]]) -> int:
    """The index of the first bucket that holds these lengths, or of the last."""
    fitting = (n for n, pair in enumerate(buckets) if pair[0] >= inputs and pair[1] >= targets)
    return next(fitting, len(buckets) - 1)


def _lengths(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each example, the longer of its inputs in ids, and its target's length; int [B] each."""
    inputs = [batch[name] for name in ("inputs", "wrong_inputs") if name in batch]
    longest = np.max([(ids != 0).sum(axis=1) for ids in inputs], axis=0)
    return longest, (batch["targets"] != 0).sum(axis=1)


def _trim(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cuts columns that are padding only."""
    return {
        name: ids[:, : int((ids != 0).sum(axis=1).max(initial=0))] if ids.ndim == 2 else ids
        for name, ids in batch.items()
    }


def _pad(ids: np.ndarray, length: int) -> np.ndarray:
    """int32 [B, n] → [B, length], n ≤ length."""
    out = np.zeros((ids.shape[0], length), np.int32)
    out[:, : ids.shape[1]] = ids
    return out
