"""The training stream: (mixture, seed, position) → example, computed without the examples before it.

SeqIO reads the same examples in the same order (`RowTask.get_dataset`, `mixing.RowMixture`), always from the
beginning; this is how the engine and the T5X bridge read them, from any step and on any host.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio

from flipped_core.errors import UserError, unknown
from flipped_tasks.order import MixtureOrder, RowOrder
from flipped_tasks.seqio_tasks import Drafted, Example, RowTask
from flipped_tasks.sources import Payloads

EXAMPLES_PER_CALL = 64  # examples whose texts are encoded together


@dataclasses.dataclass(frozen=True)
class Slots:
    """Which examples of the stream a host reads.

    Attributes:
      batch_size: B, examples of a step, of all hosts together.
      host_index, host_count: host h of H reads slots h·B/H … (h+1)·B/H−1 of every step.
    """

    batch_size: int
    host_index: int = 0
    host_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.host_count:
            raise UserError(
                f"batch_size: expected a positive multiple of the {self.host_count} host(s), got {self.batch_size}"
            )
        if not 0 <= self.host_index < self.host_count:
            raise UserError(
                f"host_index: expected 0 to {self.host_count - 1}, got {self.host_index}"
            )

    def of(self, step: int) -> np.ndarray:
        """The numbers of this host's examples of a step: int64 [B/H]."""
        share = self.batch_size // self.host_count
        return step * self.batch_size + self.host_index * share + np.arange(share)


class Stream:
    """The endless examples of a mixture: example g is a function of (mixture, lengths, seed, g).

    Attributes:
      tasks: the mixture's, in the order in which they are drawn.
      has_wrong_inputs: whether the method, FLIPPED, has them.
    """

    def __init__(
        self,
        mixture: str,
        lengths: Mapping[str, int],
        seed: int,
        split: str = "train",
        shuffle: bool = True,
        rows: Callable[[RowTask, str], Payloads] | None = None,
    ) -> None:
        """Opens a registered mixture or task, and loads its rows.

        Args:
          mixture: a name in SeqIO's registries.
          lengths: at most so many tokens of 'inputs' and 'targets'.
          seed: decides order, templates and wrong choices.
          split: of every task that has it.
          shuffle: False leaves each task's rows in their own order.
          rows: the rows of a task's split; the task's own by default.

        Raises:
          UserError: an unknown mixture or split, a task of others, a bad length, or rows that cannot be read.
        """
        for key in ("inputs", "targets"):
            if lengths.get(key, 0) < 1:
                raise UserError(f"lengths[{key!r}]: expected at least 1, got {lengths.get(key)!r}")
        provider = _provider(mixture)
        self.tasks = _tasks(provider, split)
        rates = [
            provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1.0
            for task in self.tasks
        ]
        self.has_wrong_inputs = "wrong_inputs" in provider.output_features
        self._lengths = {key: lengths[key] for key in ("inputs", "targets")}
        self._order = MixtureOrder(rates, seed)
        self._readers = []
        for task in self.tasks:
            payloads = task.rows.payloads(split) if rows is None else rows(task, split)
            kind = _TaskReader if task.one_per_position else _InOrder
            self._readers.append(kind(task, payloads, split, seed, shuffle))

    def examples(self, numbers: np.ndarray) -> list[Example]:
        """The examples of these numbers.

        Args:
          numbers: ascending, from 0: int64 [n]. A task with a single template finds its place by rendering all of
            its rows before, so that it is fast in ascending calls only; others are fast anywhere.

        Raises:
          UserError: no example of a task can be used.
        """
        return [
            example
            for begin in range(0, len(numbers), EXAMPLES_PER_CALL)
            for example in self._together(numbers[begin : begin + EXAMPLES_PER_CALL])
        ]

    def _together(self, numbers: np.ndarray) -> list[Example]:
        """Examples whose texts are encoded in one call."""
        tasks, positions = self._order.at(numbers)
        drafts: dict[int, Drafted] = {}
        for task in map(int, np.unique(tasks)):
            mine = np.flatnonzero(tasks == task)
            found = self._readers[task].read(positions[mine])
            drafts |= zip(mine.tolist(), found, strict=True)
        vocabulary = self.tasks[0].vocabulary
        vocabulary.encode_ahead(
            text for drafted in drafts.values() for text in drafted.draft.texts()
        )
        return [
            self.tasks[task].example(drafts[place], self._lengths)
            for place, task in enumerate(tasks.tolist())
        ]


class _TaskReader:
    """Reads a training task, each of whose positions holds one example."""

    def __init__(self, task: RowTask, rows: Payloads, split: str, seed: int, shuffle: bool) -> None:
        self._task, self._rows, self._split, self._seed = task, rows, split, seed
        self._order = RowOrder(task.order_key, len(rows), seed, shuffle)

    def read(self, positions: np.ndarray) -> list[Drafted]:
        """The examples at positions, int64 [n] ascending; those that are dropped are left out."""
        places = self._order.places(positions).tolist()
        epochs = (positions // len(self._rows)).tolist()
        made = (
            self._task.draft(self._rows, place, epoch, self._split, self._seed)
            for place, epoch in zip(places, epochs, strict=True)
        )
        return [drafted for drafted in made if drafted is not None]


class _InOrder(_TaskReader):
    """Reads a task of one template, whose positions count the rows that it renders."""

    def __init__(self, task: RowTask, rows: Payloads, split: str, seed: int, shuffle: bool) -> None:
        super().__init__(task, rows, split, seed, shuffle)
        self._rendered, self._next = self._from_start(), 0

    def _from_start(self) -> Iterator[Drafted]:
        for begin in itertools.count(0, EXAMPLES_PER_CALL):
            yield from super().read(np.arange(begin, begin + EXAMPLES_PER_CALL))

    def read(self, positions: np.ndarray) -> list[Drafted]:
        found = []
        for position in positions.tolist():
            if position < self._next:
                self._rendered, self._next = self._from_start(), 0
            found.append(next(itertools.islice(self._rendered, position - self._next, None)))
            self._next = position + 1
        return found


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
