"""Rank classification's engine: log p(target given input) of many pairs, without doing anything twice.

The choices of one prompt are pairs with the same input. Each distinct input is encoded once; its targets share
its cross-attention keys and values, which are computed once as well. Nothing but attention is padded, and few
shapes are compiled (`t5_engine.batching`). Of the logits only each target's own and their logarithmic sum are
kept, a part of the vocabulary at a time. None of this changes a score by more than rounding (1e-4 in float32).
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flipped_core.errors import UserError
from t5_engine import axes, batching, partitioning
from t5_engine.batching import Batch, Go, Group, Pair, Shape
from t5_engine.config import T5Config
from t5_engine.model import T5, Params, abstract_params
from t5_engine.ragged import OneByOne, Ragged

Progress = Callable[[int, int], None]

INPUT_BUCKETS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
TARGET_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 256)

# Tokens of a full batch on each device, of inputs and targets together.
TOKENS_CPU = 2048
TOKENS_ACCELERATOR = 32768
# What compiling one shape costs, in the arithmetic that could be done meanwhile: some seconds of a CPU core, or
# some seconds of an accelerator.
SHAPE_COST_CPU = 2e11
SHAPE_COST_ACCELERATOR = 1e15
# Attention waits for the memory that its logits travel through: about 25 bytes for the 256 operations of one logit,
# where a card does 300 operations a byte in bfloat16 and its matrix products reach two thirds of that.
ATTENTION_WEIGHT_ACCELERATOR = 20
# The part of the vocabulary whose logits are there at a time: what fits into a processor's cache.
VOCABULARY_PART = 4096
MOST_BATCHES_AT_A_TIME = 8

# The shapes that this process has compiled, with what else the compilation depends on.
_compiled: dict[tuple[T5Config, jax.sharding.Mesh], set[Shape]] = collections.defaultdict(set)
_compiling = threading.Lock()


@functools.partial(jax.jit, static_argnames=("config", "shape", "mesh", "way"))
def _encode(
    config: T5Config,
    params: Params,
    tokens: jax.Array,
    starts: jax.Array,
    shape: Shape,
    mesh: jax.sharding.Mesh,
    way: type[Ragged],
) -> jax.Array:
    """Ids of inputs [R, M], where each begins and the last ends [R, C + 1] -> encoded [R, M, D]."""
    places, words, lengths, back = _layout(starts, shape.input_length, shape.input_tokens)
    ragged = way(places, places, words[:, :, None], back, lengths, lengths)
    with axes.laid_out(axes.Layout(mesh)):
        return T5(config).apply({"params": params}, tokens, ragged=ragged, method="encode")


@functools.partial(jax.jit, static_argnames=("config", "shape", "mesh", "way"))
def _decode(
    config: T5Config,
    params: Params,
    encoded: jax.Array,
    input_starts: jax.Array,
    sources: jax.Array,
    tokens: jax.Array,
    of_target: jax.Array,
    starts: jax.Array,
    shape: Shape,
    mesh: jax.sharding.Mesh,
    way: type[Ragged],
) -> jax.Array:
    """The log-probability of each target token, [R, M] float32.

    Args:
      config, params: the model's.
      encoded: [R, M', D].
      input_starts: where each input begins on it and the last ends, [R, C' + 1].
      sources: the number of each bundle's input, [R, C].
      tokens: ids of targets, [R, M].
      of_target: for each of them a number that is another one for the next target, [R, M].
      starts: where each bundle begins and the last ends, [R, C + 1].
      shape: the batch's.
      mesh: where the result is to be whole on each device.
      way: how the sequences are attended to.
    """
    places, words, lengths, back = _layout(starts, shape.bundle_length, shape.target_tokens)
    row = jnp.arange(len(starts))[:, None]
    owner = of_target[row[:, :, None], places]  # [R, C, T]
    own = (owner[:, :, :, None] == owner[:, :, None, :]) & words[:, :, None]
    memory = _layout(input_starts, shape.input_length, shape.input_tokens)
    input_places, input_words, input_lengths = (one[row, sources] for one in memory[:3])
    ragged = (
        way(places, places, own, back, lengths, lengths),
        way(places, input_places, input_words[:, :, None], back, lengths, input_lengths),
    )
    before = jnp.pad(of_target[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    shifted = jnp.where(of_target == before, jnp.pad(tokens[:, :-1], ((0, 0), (1, 0))), 0)
    with axes.laid_out(axes.Layout(mesh)):
        x = T5(config).apply(
            {"params": params},
            encoded,
            None,
            shifted,
            ragged=ragged,
            logits=False,
            method="decode",
        )
    kernel = params["decoder"]["logits_dense"]["kernel"]
    parts = 1 if mesh.shape[partitioning.MODEL] > 1 else _parts(config.vocab_size)
    found = log_probs(x.reshape(-1, x.shape[-1]), kernel, tokens.reshape(-1), parts)
    return jax.lax.with_sharding_constraint(found.reshape(tokens.shape), partitioning.whole(mesh))


def _layout(
    starts: jax.Array, length: int, tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of sequences on rows: the place of each word [R, C, T], whether there is one, length [R, C] and way back [R, M].

    Args:
      starts: where each begins and the last ends, [R, C + 1].
      length: T, what they are padded to.
      tokens: M.
    """
    places = starts[:, :-1, None] + jnp.arange(length)
    words = places < starts[:, 1:, None]
    place = jnp.arange(tokens)
    owner = jnp.sum(place[:, None] >= starts[:, None, 1:-1], axis=-1)  # [R, M]
    offset = place - jnp.take_along_axis(starts, owner, axis=1)
    back = owner * length + jnp.minimum(offset, length - 1)
    return jnp.minimum(places, tokens - 1), words, starts[:, 1:] - starts[:, :-1], back


def _parts(vocab_size: int) -> int:
    """Into how many equal parts of at least `VOCABULARY_PART` / 2 a vocabulary is cut."""
    most = max(1, 2 * vocab_size // VOCABULARY_PART)
    wanted = max(1, round(vocab_size / VOCABULARY_PART))
    return min((n for n in range(1, most + 1) if not vocab_size % n), key=lambda n: abs(n - wanted))


def log_probs(x: jax.Array, kernel: jax.Array, targets: jax.Array, parts: int = 1) -> jax.Array:
    """log softmax(x kernel)[target] of each row, with the logits of one part of the vocabulary at a time.

    Args:
      x: [M, D].
      kernel: [D, V] float32.
      targets: [M] int in [0, V).
      parts: a divisor of V.

    Returns:
      [M] float32, at most 0.
    """
    size = kernel.shape[1] // parts
    x = x.astype(jnp.float32)

    def part(carry: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        highest, total, own = carry
        begin = number * size
        logits = x @ jax.lax.dynamic_slice_in_dim(kernel, begin, size, axis=1)
        higher = jnp.maximum(highest, logits.max(axis=1))
        total = total * jnp.exp(highest - higher)
        total = total + jnp.exp(logits - higher[:, None]).sum(axis=1)
        place = targets - begin
        here = jnp.take_along_axis(logits, jnp.clip(place, 0, size - 1)[:, None], axis=1)[:, 0]
        own = jnp.where((place >= 0) & (place < size), here, own)
        return (higher, total, own), None

    zeros = jnp.zeros(len(x), jnp.float32)
    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros)
    (highest, total, own), _ = jax.lax.scan(part, start, jnp.arange(parts))
    return jnp.minimum(own - highest - jnp.log(total), 0.0)


class Scorer:
    """Scores pairs of token ids under one model.

    The compiled programs depend on the model's config only and are shared by all scorers of a process.
    """

    def __init__(
        self,
        model_config: T5Config,
        params: Params,
        *,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        input_buckets: Sequence[int] = INPUT_BUCKETS,
        target_buckets: Sequence[int] = TARGET_BUCKETS,
    ) -> None:
        """Puts the parameters onto the mesh.

        Args:
          model_config: the model's; its dropout does not matter.
          params: as from `checkpoints.load` or a training state.
          mesh: as from `partitioning.make_mesh`; one device where not given.
          batch_size: the inputs, each with its targets, that are computed at a time on each device, at most; None
            for as many as `batch_tokens` allows.
          batch_tokens: the tokens of inputs and targets that are computed at a time on each device, about (a longer
            pair is never cut); None for what suits the kind of device.
          input_buckets: rising lengths to which attention pads inputs; beyond the last, multiples of it.
          target_buckets: likewise for the targets of an input, one after the other.
        """
        for name, number in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if number is not None and number < 1:
                raise UserError(f"{name}: expected at least 1, got {number}")
        for name, buckets in (("inputs", input_buckets), ("targets", target_buckets)):
            if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
                raise UserError(f"buckets of {name}: expected rising numbers from 1, got {buckets}")
        self._config = _scoring(model_config)
        self._mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
        self._params = jax.device_put(
            params, partitioning.param_shardings(model_config, self._mesh)
        )
        devices = self._mesh.shape[partitioning.DATA]
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        self._way = OneByOne if on_cpu and devices == 1 else Ragged
        attention_weight = (
            0 if self._way is OneByOne else 1 if on_cpu else ATTENTION_WEIGHT_ACCELERATOR
        )
        self._planner = batching.Planner(
            input_buckets=tuple(input_buckets),
            target_buckets=tuple(target_buckets),
            tokens=batch_tokens or (TOKENS_CPU if on_cpu else TOKENS_ACCELERATOR),
            most_inputs=batch_size,
            batch_cost=lambda shape: shape.cost(self._config, attention_weight),
            shape_cost=SHAPE_COST_CPU if on_cpu else SHAPE_COST_ACCELERATOR,
            devices=devices,
        )

    def score(self, pairs: Sequence[Pair], progress: Progress | None = None) -> np.ndarray:
        """The summed log-probability of each pair's target under its input.

        Args:
          pairs: (input ids, target ids) each, without padding; eos is part of the target where it counts. Equal
            pairs are scored once.
          progress: called after each batch with the distinct pairs done and all distinct pairs.

        Returns:
          float32 [len(pairs)], at most 0 each; 0 for an empty target.

        Raises:
          UserError: an input is empty, or an id is beyond the model's vocabulary.
        """
        groups, slot_of_pair, slots_in_all = batching.group_pairs(pairs)
        self._check_ids(groups)
        scores = np.zeros(slots_in_all, np.float32)
        done = 0

        def read(go: Go, result: np.ndarray) -> None:
            nonlocal done
            for row, bundles in zip(result.astype(np.float64), go, strict=False):
                slots = [slot for bundle in bundles for slot in bundle.slots]
                ends = np.cumsum([len(ids) for bundle in bundles for ids in bundle.target_ids])
                for slot, tokens in zip(slots, np.split(row, ends), strict=False):
                    scores[slot] = tokens.sum()
                done += len(slots)
            if progress is not None:
                progress(done, slots_in_all - 1)

        batches = self._planner.plan(groups, self.compiled)
        with contextlib.closing(self._results(batches)) as results:
            for go, result in results:
                read(go, result)
        return scores[slot_of_pair]

    def plan(self, pairs: Sequence[Pair]) -> list[Batch]:
        """The batches that scoring these pairs would make now."""
        return self._planner.plan(batching.group_pairs(pairs)[0], self.compiled)

    @property
    def compiled(self) -> set[Shape]:
        """The shapes for which programs are there."""
        return _compiled[self._config, self._mesh]

    def _check_ids(self, groups: Sequence[Group]) -> None:
        for group in groups:
            for ids in (group.input_ids, *group.target_ids):
                if not 0 <= ids.min() <= ids.max() < self._config.vocab_size:
                    raise UserError(
                        f"pairs: expected ids from 0 to {self._config.vocab_size - 1}, the model's "
                        f"vocabulary, got {ids[(ids < 0) | (ids >= self._config.vocab_size)][0]}"
                    )

    def _results(self, batches: Sequence[Batch]) -> Generator[tuple[Go, np.ndarray], None, None]:
        """One go after the other: its bundles and the tokens' log-probabilities."""
        if self._way is OneByOne and self._mesh.size == 1:
            pool = concurrent.futures.ThreadPoolExecutor(batches_at_a_time())
            try:
                for several in pool.map(self._computed, batches):
                    yield from several
            finally:
                pool.shutdown(cancel_futures=True)
            return
        # Go N is on its way before the result of go N - 1 is waited for.
        waiting: list[tuple[Go, jax.Array]] = []
        for batch in batches:
            for started in self._started(batch):
                yield from ((go, np.asarray(result)) for go, result in waiting)
                waiting = [started]
        yield from ((go, np.asarray(result)) for go, result in waiting)

    def _computed(self, batch: Batch) -> list[tuple[Go, np.ndarray]]:
        # The first batch of a shape compiles; the second one waits for that.
        new = batch.shape not in self.compiled
        with _compiling if new else contextlib.nullcontext():
            started = list(self._started(batch))
        return [(go, np.asarray(result)) for go, result in started]

    def _started(self, batch: Batch) -> Iterator[tuple[Go, jax.Array]]:
        """Sends one go after the other to the devices: its bundles and, to come, the tokens' log-probabilities."""
        shape = batch.shape
        tokens, starts = self._rows(batch.inputs, shape.input_tokens, shape.inputs)
        inputs, input_starts = self._put(tokens), self._put(starts)
        known = self._config, self._params
        fixed = shape, self._mesh, self._way
        encoded = _encode(*known, inputs, input_starts, *fixed)
        for go in batch.goes:
            targets = map(self._put, self._targets(go, shape))
            decoded = _decode(*known, encoded, input_starts, *targets, *fixed)
            self.compiled.add(shape)
            yield go, decoded

    def _targets(self, go: Go, shape: Shape) -> tuple[np.ndarray, ...]:
        """The arguments `sources`, `tokens`, `of_target` and `starts` of `_decode`."""
        ids = [[np.concatenate(bundle.target_ids) for bundle in bundles] for bundles in go]
        tokens, starts = self._rows(ids, shape.target_tokens, shape.bundles)
        sources = np.zeros((len(tokens), shape.bundles), np.int32)
        of_target = np.zeros_like(tokens)
        for row, bundles in enumerate(go):
            sources[row, : len(bundles)] = [bundle.input for bundle in bundles]
            lengths = [len(one) for bundle in bundles for one in bundle.target_ids]
            of_target[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        return sources, tokens, of_target, starts

    def _rows(
        self, rows: Sequence[Sequence[np.ndarray]], tokens: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sequences one after the other, [R, tokens], and where each begins and the last ends, [R, count + 1]."""
        devices = self._planner.devices
        ids = np.zeros((devices, tokens), np.int32)
        starts = np.zeros((devices, count + 1), np.int32)
        for number, row in enumerate(rows):
            if row:
                joined = np.concatenate(row)
                ids[number, : len(joined)] = joined
                starts[number, 1:] = len(joined)
                starts[number, 1 : len(row) + 1] = np.cumsum([len(one) for one in row])
        return ids, starts

    def _put(self, array: np.ndarray) -> jax.Array:
        """Each row onto its device; in a group of processes every one has all rows and keeps its own."""
        sharding = partitioning.by_rows(self._mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def batches_at_a_time() -> int:
    """How many batches are computed at a time on one CPU device, each by a thread of its own.

    What one batch does on one core, such as attention, leaves the other cores to the others; a program waits only for
    those that the same thread has started. Each batch takes memory, so not as many as a large machine has cores.
    """
    return min(os.cpu_count() or 1, MOST_BATCHES_AT_A_TIME)


def _scoring(config: T5Config) -> T5Config:
    """The model as it is scored with, whatever it was trained with."""
    return config.replace(dropout_rate=0.0, remat="none", attention="plain")


def traced(config: T5Config, mesh: jax.sharding.Mesh, shape: Shape) -> dict[str, Any]:
    """The two programs of a batch of that shape, "encode" and "decode", without any parameters at hand.

    They are those of accelerators on CPU devices too.
    """
    config = _scoring(config)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(config),
        partitioning.param_shardings(config, mesh),
    )
    rows, by_rows = mesh.shape[partitioning.DATA], partitioning.by_rows(mesh)

    def array(columns: int, *rest: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, columns, *rest), dtype, sharding=by_rows)

    tokens, starts = array(shape.input_tokens), array(shape.inputs + 1)
    encoded = array(shape.input_tokens, config.emb_dim, dtype=config.dtype)
    go = [array(n) for n in (shape.bundles, *[shape.target_tokens] * 2, shape.bundles + 1)]
    return {
        "encode": _encode.trace(config, params, tokens, starts, shape, mesh, Ragged),
        "decode": _decode.trace(config, params, encoded, starts, *go, shape, mesh, Ragged),
    }
