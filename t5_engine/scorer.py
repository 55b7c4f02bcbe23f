"""Rank classification's engine: log p(target given input) of many pairs, without doing anything twice.

The choices of one prompt are pairs with the same input. Each distinct input is encoded once; its targets are
decoded side by side and share its cross-attention keys and values, which are computed once as well. Inputs of
like length, with targets of like length and number, share a batch, so that little padding is computed and few
shapes are compiled (`t5_engine.batching`). None of this changes a score by more than rounding (1e-4 in float32).
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flipped_errors import UserError
from t5_engine import batching, partitioning
from t5_engine.batching import Group, Pair, Shape
from t5_engine.config import T5Config
from t5_engine.losses import token_log_probs
from t5_engine.model import PAD, T5, Params

Progress = Callable[[int, int], None]

INPUT_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TARGET_BUCKETS = (4, 8, 16, 24, 32, 48, 64, 96, 128)
CHOICE_BUCKETS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)

# What compiling one shape costs, in the arithmetic that could be done meanwhile: some seconds of a CPU core, or
# some seconds of an accelerator.
SHAPE_COST_CPU = 1e11
SHAPE_COST_ACCELERATOR = 1e15

# The shapes that this process has compiled, with what else the compilation depends on.
_compiled: dict[tuple[T5Config, jax.sharding.Mesh, int], set[Shape]] = collections.defaultdict(set)


@functools.partial(jax.jit, static_argnames="config")
def _score(
    config: T5Config, params: Params, inputs: jax.Array, targets: jax.Array, lengths: jax.Array
) -> jax.Array:
    """inputs [G, S], targets [G * C, T], their lengths [G * C] -> log-probabilities [G * C] float32."""
    model = T5(config)
    variables = {"params": params}
    encoded = model.apply(variables, inputs, method="encode")
    decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = model.apply(variables, encoded, inputs != PAD, decoder_inputs, method="decode")
    counted = jnp.arange(targets.shape[1])[None, :] < lengths[:, None]
    return jnp.sum(jnp.where(counted, token_log_probs(logits, targets), 0.0), axis=1)


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
        batch_size: int = 64,
        input_buckets: Sequence[int] = INPUT_BUCKETS,
        target_buckets: Sequence[int] = TARGET_BUCKETS,
        choice_buckets: Sequence[int] = CHOICE_BUCKETS,
    ) -> None:
        """Puts the parameters onto the mesh.

        Args:
          model_config: the model's; its dropout does not matter.
          params: as from `checkpoints.load` or a training state.
          mesh: as from `partitioning.make_mesh`; one device where not given.
          batch_size: the targets that are decoded at a time, at most (a prompt's are never parted).
          input_buckets: rising lengths to which inputs are padded.
          target_buckets: likewise for targets.
          choice_buckets: likewise for the number of targets of an input.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: expected at least 1, got {batch_size}")
        self._config = model_config.replace(dropout_rate=0.0, remat="none")
        self._mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
        self._params = jax.device_put(
            params, partitioning.param_shardings(model_config, self._mesh)
        )
        self._batch_size = batch_size
        self._buckets = batching.Buckets(
            tuple(input_buckets), tuple(target_buckets), tuple(choice_buckets)
        )
        for name, buckets in vars(self._buckets).items():
            if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
                raise UserError(f"buckets of {name}: expected rising numbers from 1, got {buckets}")

    def score(self, pairs: Sequence[Pair], progress: Progress | None = None) -> np.ndarray:
        """The summed log-probability of each pair's target under its input.

        Args:
          pairs: (input ids, target ids) each, without padding; eos is part of the target where it counts. Equal
            pairs are scored once.
          progress: called after each batch with the distinct pairs done and all distinct pairs.

        Returns:
          float32 [len(pairs)], at most 0 each; 0 for an empty target.
        """
        groups, slot_of_pair = batching.group_pairs(pairs)
        scores = np.zeros(sum(len(group.slots) for group in groups), np.float32)
        done = 0
        waiting: tuple[Shape, list[Group], jax.Array] | None = None

        def read(shape: Shape, batch: list[Group], result: jax.Array) -> int:
            values = np.asarray(result).reshape(-1, shape.choices)
            for group, row in zip(batch, values, strict=False):
                scores[list(group.slots)] = row[: len(group.slots)]
            return sum(len(group.slots) for group in batch)

        # Batch N is on its way before the scores of batch N - 1 are waited for.
        for step in [*self._plan(groups), None]:
            started = None if step is None else (*step, self._start(*step))
            if waiting is not None:
                done += read(*waiting)
                if progress is not None:
                    progress(done, len(scores))
            waiting = started
        return scores[slot_of_pair]

    def shapes(self, pairs: Sequence[Pair]) -> dict[Shape, int]:
        """The shapes that scoring these pairs would use now, and the number of batches of each."""
        groups, _ = batching.group_pairs(pairs)
        return dict(collections.Counter(shape for shape, _ in self._plan(groups)))

    def _rows(self, shape: Shape) -> int:
        """The number of groups in a batch of that shape: a multiple of the mesh's data axis."""
        data = self._mesh.shape[partitioning.DATA]
        return -(-max(1, self._batch_size // shape.choices) // data) * data

    def _plan(self, groups: Sequence[Group]) -> list[tuple[Shape, list[Group]]]:
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        return batching.plan(
            groups,
            self._buckets,
            rows=self._rows,
            row_cost=lambda shape: shape.flops(self._config),
            shape_cost=SHAPE_COST_CPU if on_cpu else SHAPE_COST_ACCELERATOR,
            compiled=_compiled[self._config, self._mesh, self._batch_size],
        )

    def _start(self, shape: Shape, batch: Sequence[Group]) -> jax.Array:
        rows = self._rows(shape)
        inputs = np.full((rows, shape.inputs), PAD, np.int32)
        targets = np.full((rows, shape.choices, shape.targets), PAD, np.int32)
        lengths = np.zeros((rows, shape.choices), np.int32)
        for row, group in enumerate(batch):
            inputs[row, : len(group.input_ids)] = group.input_ids
            for choice, target in enumerate(group.target_ids):
                targets[row, choice, : len(target)] = target
                lengths[row, choice] = len(target)
        arrays = jax.device_put(
            (inputs, targets.reshape(-1, shape.targets), lengths.reshape(-1)),
            partitioning.by_rows(self._mesh),
        )
        _compiled[self._config, self._mesh, self._batch_size].add(shape)
        return _score(self._config, self._params, *arrays)
