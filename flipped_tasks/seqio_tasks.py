"""SeqIO tasks: rows in, token ids of one method out.

A *training task* (method, dataset) draws the template anew for each example and epoch. Where a template cannot
render an example, another template of the dataset is drawn, and where none can, another example: so every position
of the stream holds exactly one example, and a restart can be computed. A *template task* (method, dataset,
template) gives each example that its template can render, once an epoch, in order.

Everything random is drawn after `CacheDatasetPlaceholder`, from (seed, epoch, example).
"""

from __future__ import annotations

import array
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError, unknown
from flipped_tasks import tokens
from flipped_tasks.caching import SharedCacheTask
from flipped_tasks.counts import Tally, TaskCounts, line, of_task
from flipped_tasks.datasets import check_template, get_dataset, slug, training_templates
from flipped_tasks.drafts import Draft, TemplateWriter, Write
from flipped_tasks.draws import draw
from flipped_tasks.methods import METHODS
from flipped_tasks.order import RowOrder, window_order
from flipped_tasks.rendering import Dropped
from flipped_tasks.row_source import RowSource, row_source
from flipped_tasks.seqio_vocabulary import SeqioVocabulary
from flipped_tasks.sources import Payloads

log = logging.getLogger(__name__)

ROWS_PER_CALL = 64  # rows that one call into Python renders
_ATTEMPTS = 64  # examples that are tried for one position before the dataset counts as unusable
_EARLY = 1_000  # examples after which a task that drops too many says so
_UNCUT = 1 << 30
_NO_SEED = 0  # draws of a reading that is neither seeded nor shuffled, such as an evaluation


@dataclasses.dataclass(frozen=True)
class Drafted:
    """A training example as text.

    Attributes:
      draft: the text, which becomes ids together with others.
      row: dataset/split/row number, the beginning of the example's id.
    """

    draft: Draft
    row: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
      id: dataset/split/row number/template.
      inputs, targets: token ids, with eos where it belongs.
      wrong_inputs: FLIPPED's inputs with a wrong choice; empty where there is none.
    """

    id: bytes
    inputs: Sequence[int]
    targets: Sequence[int]
    wrong_inputs: Sequence[int]


class RowTask(SharedCacheTask):
    """A SeqIO task whose examples are functions of (seed, epoch, row).

    Attributes:
      rows: the source of its rows.
      write: makes one example of a row.
      one_per_position: another example takes the place of one that is dropped.
      order_key: what the order is drawn for; tasks with the same key meet the rows in the same order.
      tally: what was given, left out or cut so far in this process.
    """

    def __init__(
        self, name: str, source: RowSource, features: Mapping[str, seqio.Feature], write: Write,
        one_per_position: bool, order_key: str,
    ):  # fmt: skip
        """Args: see the attributes; features: the task's output."""
        self.rows = source
        self.write = write
        self.one_per_position = one_per_position
        self.order_key = order_key
        self.tally = Tally()
        super().__init__(
            name=name,
            source=source,
            output_features=features,
            preprocessors=[seqio.CacheDatasetPlaceholder()],
            shuffle_buffer_size=None,
        )

    @property
    def vocabulary(self) -> tokens.Vocabulary:
        """Of all features."""
        found: SeqioVocabulary = self.output_features["inputs"].vocabulary
        return found.tokens

    def get_dataset(
        self,
        sequence_length: Mapping[str, int] | None = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = True,
        shuffle_buffer_size: int | None = None,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        num_epochs: int | None = 1,
        trim_output_features: bool = True,
        try_in_mem_cache: bool = True,
    ) -> tf.data.Dataset:
        """As seqio.Task.get_dataset. Each example carries 'example_id': dataset/split/row number/template."""
        if split not in self.splits:
            raise unknown(f"split of task {self.name!r}", split, self.splits)
        if seed is None:
            seed = int.from_bytes(np.random.bytes(4), "big") if shuffle else _NO_SEED
        size = self.rows.num_input_examples(split)
        if shard_info is not None:
            size = max(1, -(-(size - shard_info.index) // shard_info.num_shards))
        order = RowOrder(self.order_key, size, seed, shuffle)
        read = SharedCacheTask(
            self.name,
            self.rows,
            self.output_features,
            [
                *self.preprocessors,
                functools.partial(_arrange, order=order),
                functools.partial(_render, task=self, split=split, order=order),
            ],
            shuffle_buffer_size=None,
        )
        read.order_key = self.order_key
        return read.get_dataset(
            sequence_length=sequence_length, split=split, use_cached=use_cached, shuffle=shuffle,
            shuffle_buffer_size=shuffle_buffer_size, seed=seed, shard_info=shard_info,
            num_epochs=num_epochs, trim_output_features=trim_output_features,
            try_in_mem_cache=try_in_mem_cache and use_cached,
        )  # fmt: skip

    def cached_rows(self, split: str) -> Payloads:
        """The rows of a split as SeqIO's cache holds them, in the split's order."""
        cached = self._get_cached_source(split).get_dataset(split, shuffle=False)
        found = sorted((int(row["number"]), row["row"]) for row in cached.as_numpy_iterator())
        numbers = np.array([number for number, _ in found], np.int64)
        return Payloads([row for _, row in found], numbers, Counter())

    def draft(
        self, rows: Payloads, place: int, epoch: int, split: str, seed: int
    ) -> Drafted | None:
        """The example that a row gives in an epoch; None where it is dropped.

        Args:
          rows: of the split.
          place: of the row among them.
          epoch: how often the row was met before.
          split: the split.
          seed: decides template and wrong choice.

        Raises:
          UserError: no example of the split can be used.
        """
        row, number = rows.rows[place], int(rows.numbers[place])
        return self._draft(row, number, rows, epoch, split, seed, len(rows))

    def _draft(
        self,
        row: bytes,
        number: int,
        rows: Payloads,
        epoch: int,
        split: str,
        seed: int,
        enough: int,
    ) -> Drafted | None:
        """`draft` of a row and its number; others are taken from `rows`. `enough` rows without one example fail."""
        for attempt in range(_ATTEMPTS if self.one_per_position else 1):
            taken = number
            if attempt:
                other = draw(len(rows), seed, self.order_key, "instead", epoch, number, attempt)
                row, taken = rows.rows[other], int(rows.numbers[other])
            made = self.write(row, taken, epoch, seed, self.tally.note)
            if not isinstance(made, Dropped):
                if self.tally.tried(made=True) == _EARLY:
                    self._warn()
                return Drafted(made, f"{self.order_key}/{split}/{taken}")
            self.tally.note(made.reason)
        read = self.tally.tried(made=False)
        if self.one_per_position or (not self.tally.given and read >= enough):
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(self.tally.reasons.items()))
            raise UserError(f"task {self.name!r}, split {split!r}: no example can be used ({why})")
        return None

    def example(self, drafted: Drafted, lengths: Mapping[str, int]) -> Example:
        """A drafted example as ids, at most so many of 'inputs' and 'targets'."""
        ids = drafted.draft.ids(lengths, self.tally.note)
        name = f"{drafted.row}/{ids.form}".encode()
        return Example(name, ids.inputs, ids.targets, ids.wrong_inputs)

    def _warn(self) -> None:
        for told in line(self.name, self.tally.reasons, self.tally.given, {}, 0):
            if told.startswith("warning: "):
                log.warning("%s", told.removeprefix("warning: "))


def _arrange(ds: tf.data.Dataset, *, order: RowOrder) -> tf.data.Dataset:
    """Reshuffles a repeated source in windows and numbers its elements: adds 'position', scalar int64."""

    def shuffled(window: np.int64, size: np.int32) -> np.ndarray:
        return window_order(int(size), order.seed, order.dataset, int(window))

    def number(window: tf.Tensor, rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = tf.shape(rows["number"])[0]
        if order.shuffle:
            places = tf.numpy_function(shuffled, [window, size], tf.int64, stateful=False)
            rows = {key: tf.gather(value, places) for key, value in rows.items()}
        return {**rows, "position": window * order.window + tf.range(tf.cast(size, tf.int64))}

    windows = tf.data.Dataset.range(1 << 40)
    return tf.data.Dataset.zip((windows, ds.batch(order.window))).map(number).unbatch()


def _render(
    ds: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    task: RowTask,
    split: str,
    order: RowOrder,
) -> tf.data.Dataset:
    """Rows → ids, `ROWS_PER_CALL` at a time, for a call into Python costs more than an example."""
    lengths = {key: (sequence_length or {}).get(key) or _UNCUT for key in ("inputs", "targets")}
    keys = tuple(task.output_features)

    def run(rows: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        others = task.rows.payloads(split)
        made = (
            task._draft(
                row, int(number), others, int(position) // order.size, split, order.seed, order.size
            )
            for row, number, position in zip(rows, numbers, positions, strict=True)
        )
        drafts = [drafted for drafted in made if drafted is not None]
        task.vocabulary.encode_ahead(text for one in drafts for text in one.draft.texts())
        found = [task.example(drafted, lengths) for drafted in drafts]
        return [np.array([example.id for example in found], dtype=object), *(
            part for key in keys for part in _stack([getattr(example, key) for example in found])
        )]  # fmt: skip

    def block(rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        types = [tf.string, *(tf.int32 for _ in range(2 * len(keys)))]
        made = tf.numpy_function(run, [rows["row"], rows["number"], rows["position"]], types)
        out = {"example_id": tf.ensure_shape(made[0], [None])}
        for place, key in enumerate(keys):
            out[key] = tf.ensure_shape(made[1 + 2 * place], [None, None])
            out[f"{key}_length"] = tf.ensure_shape(made[2 + 2 * place], [None])
        return out

    def cut(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        ids = {key: example[key][: example[f"{key}_length"]] for key in keys}
        return {"example_id": example["example_id"], **ids}

    return ds.batch(ROWS_PER_CALL).map(block).unbatch().map(cut)


def _stack(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids as a padded int32 [n, longest] and their lengths int32 [n].

    There is at least one column: tf.data's unbatch (TensorFlow 2.21) crashes on rows without elements.
    """
    lengths = np.array([len(ids) for ids in lists], np.int32)
    out = np.zeros((len(lists), int(lengths.max(initial=1))), np.int32)
    for row, ids in zip(out, lists, strict=True):
        row[: len(ids)] = array.array("i", ids)  # NumPy is slower at lists
    return out, lengths


def method_features(
    vocab: SeqioVocabulary, method: str, input_eos: bool = True
) -> dict[str, seqio.Feature]:
    """SeqIO's features of a method; FLIPPED has `wrong_inputs` beside `inputs` and `targets`."""
    names = ("inputs", "targets", "wrong_inputs") if method == "flipped" else ("inputs", "targets")
    return {
        name: seqio.Feature(vocab, add_eos=input_eos or name == "targets", dtype=tf.int32)
        for name in names
    }


def task_name(dataset: str, method: str, template: str | None = None) -> str:
    """The name in SeqIO's registry: `flipped.glue_mrpc` or `flipped.glue_mrpc.want_to_know`."""
    parts = (method, dataset) if template is None else (method, dataset, template)
    return ".".join(slug(part).replace(".", "_") for part in parts)


def register_task(
    dataset: str,
    method: str,
    template: str | None = None,
    data_dir: str | None = None,
    vocab_path: str | None = None,
    input_eos: bool = True,
) -> RowTask:
    """Puts a task into seqio.TaskRegistry; one of the same name is replaced.

    Args:
      dataset: promptsource's name.
      method: 'direct', 'channel' or 'flipped'.
      template: one template; None for the training task, which draws among all that the method can use.
      data_dir: see `sources.load_rows`; None for the embedded world.
      vocab_path: the SentencePiece model.
      input_eos: whether inputs end with eos. The public Flipped models were trained so; T0 was not.

    Raises:
      UserError: unknown dataset, method or template, or a template that the method cannot use.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if vocab_path is None:
        raise UserError("vocab_path: expected a SentencePiece model file, got None")
    spec = get_dataset(dataset)
    names = (
        [check_template(dataset, template, method)]
        if template
        else training_templates(spec, method)
    )
    vocab = SeqioVocabulary(vocab_path)
    writer = TemplateWriter(dataset, method, names, vocab, input_eos)
    source = row_source(dataset, data_dir)
    return add_task(RowTask(
        task_name(dataset, method, template), source, method_features(vocab, method, input_eos), writer,
        one_per_position=template is None, order_key=dataset,
    ))  # fmt: skip


def add_task(task: RowTask) -> RowTask:
    """Registers a task, in place of one of the same name."""
    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    return task


def drop_counts(task: str | RowTask, split: str = "train") -> Counter[str]:
    """What a task left out or cut so far in this process, by reason; unlabelled rows of `split` included."""
    found = seqio.TaskRegistry.get(task) if isinstance(task, str) else task
    if not isinstance(found, RowTask):
        raise UserError(f"task {found.name!r} keeps no counts")
    return found.tally.reasons + found.rows.payloads(split).dropped


def mixture_counts(mixture: str, split: str = "train") -> list[TaskCounts]:
    """The counts of each task of a mixture that dropped or cut something so far in this process.

    An example that a template drops and another renders counts as given, and as a drop.

    Args:
      mixture: the name of a mixture or task in SeqIO's registries.
      split: whose unlabelled rows are counted.
    """
    found = []
    for task in row_tasks(mixture):
        if split in task.splits:
            unlabelled = task.rows.payloads(split).dropped
            rows = task.rows.num_input_examples(split) + sum(unlabelled.values())
            if unlabelled or task.tally.reasons:
                tally = task.tally
                found.append(of_task(task.name, tally.reasons, tally.given, unlabelled, rows))
    return found


def row_tasks(mixture: str) -> list[RowTask]:
    """The tasks of a mixture, or a task itself, that read rows."""
    provider = seqio.get_mixture_or_task(mixture)
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    return [task for task in tasks if isinstance(task, RowTask)]
