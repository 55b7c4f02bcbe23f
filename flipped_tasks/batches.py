"""Batches of NumPy arrays for the engine, from the training stream."""

from __future__ import annotations

import array
import collections
import concurrent.futures
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flipped_core.errors import UserError
from flipped_tasks.draws import generator
from flipped_tasks.seqio_tasks import Example
from flipped_tasks.stream import Slots, Stream

Buckets = Sequence[tuple[int, int]]
_AHEAD = 2  # batches that are made while others are used


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
    if length_window < 1 or (length_window > 1 and length_buckets is None):
        raise UserError(
            f"length_window: expected 1, or more together with length_buckets, got {length_window}"
        )
    if start_step < 0:
        raise UserError(f"start_step: expected at least 0, got {start_step}")
    slots = Slots(batch_size, host_index, host_count)
    if length_buckets is not None and host_count > 1:
        raise UserError(
            "length_buckets: expected None with several hosts, which must agree on shapes"
        )
    stream = Stream(mixture, lengths, seed, split)
    buckets = _sorted_buckets(length_buckets or (), lengths)
    return _Ahead(_read(stream, slots, buckets, seed, start_step, length_window))


def _read(
    stream: Stream,
    slots: Slots,
    buckets: Sequence[tuple[int, int]],
    seed: int,
    start_step: int,
    length_window: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches, one after the other."""
    for window in itertools.count(start_step // length_window):
        steps = range(window * length_window, (window + 1) * length_window)
        examples = stream.examples(np.concatenate([slots.of(step) for step in steps]))
        ordered = _by_length(examples, buckets, seed, window, len(steps))
        for step, batch in zip(steps, ordered, strict=True):
            if step >= start_step:
                yield pad(batch, buckets, stream.has_wrong_inputs)


def _by_length(
    examples: Sequence[Example],
    buckets: Sequence[tuple[int, int]],
    seed: int,
    window: int,
    count: int,
) -> list[Sequence[Example]]:
    """The examples of a window as `count` batches of like length, in drawn order; one batch stays as it is."""
    if count == 1:
        return [examples]
    order = np.argsort([_bucket([example], buckets) for example in examples], kind="stable")
    rows = order.reshape(count, -1)[generator(seed, "length_window", window).permutation(count)]
    return [[examples[number] for number in row] for row in rows.tolist()]


def pad(
    batch: Sequence[Example], buckets: Sequence[tuple[int, int]], has_wrong_inputs: bool
) -> dict[str, np.ndarray]:
    """What `features.FlippedFeatureConverter` gives, for a batch at once; the tests compare the two.

    Args:
      batch: B examples.
      buckets: (S, T), ascending; the arrays get the first that holds all examples, or the last.
      has_wrong_inputs: whether the method, FLIPPED, has them.

    Returns:
      the arrays that `batches` yields.
    """
    inputs_length, targets_length = buckets[_bucket(batch, buckets)]
    targets = _stack([example.targets for example in batch], targets_length)
    decoder_inputs = np.zeros_like(targets)
    decoder_inputs[:, 1:] = targets[:, :-1]
    out = {
        "encoder_input_tokens": _stack([example.inputs for example in batch], inputs_length),
        "decoder_input_tokens": decoder_inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != 0).astype(np.int32),
        "example_ids": np.array([example.id for example in batch], dtype=object),
    }
    if has_wrong_inputs:
        wrong = [example.wrong_inputs for example in batch]
        out["wrong_encoder_input_tokens"] = _stack(wrong, inputs_length)
        out["wrong_weights"] = np.array([len(ids) > 0 for ids in wrong], np.int32)
    return out


def _bucket(examples: Sequence[Example], buckets: Sequence[tuple[int, int]]) -> int:
    """The index of the first bucket that holds all examples, or of the last."""
    inputs = max(max(len(one.inputs), len(one.wrong_inputs)) for one in examples)
    targets = max(len(one.targets) for one in examples)
    fitting = (n for n, pair in enumerate(buckets) if pair[0] >= inputs and pair[1] >= targets)
    return next(fitting, len(buckets) - 1)


def _stack(lists: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Lists of at most `length` ids as int32 [n, length], with zeros behind them."""
    out = np.zeros((len(lists), length), np.int32)
    for row, ids in zip(out, lists, strict=True):
        row[: len(ids)] = array.array("i", ids)  # NumPy is slower at lists
    return out


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


class _Ahead(Iterator[dict[str, np.ndarray]]):
    """Makes batches in a thread while others are used."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] | None = batches
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self._made: collections.deque[concurrent.futures.Future[dict[str, np.ndarray]]]
        self._made = collections.deque()

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise StopIteration
        while len(self._made) <= _AHEAD:
            self._made.append(self._pool.submit(next, self._batches))
        return self._made.popleft().result()

    def close(self) -> None:
        """Ends the thread; there is no next batch then."""
        self._batches = None
        self._pool.shutdown(cancel_futures=True)
