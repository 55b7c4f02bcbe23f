"""SeqIO tasks: rows in, token ids of one method out.

A *training task* (method, dataset) draws the template anew for each example and epoch. Where a template cannot
render an example, another template of the dataset is drawn, and where none can, another example: so every position
of the stream holds exactly one example, and a restart can be computed. A *template task* (method, dataset,
template) gives each example that its template can render, once an epoch, in order.

Everything random is drawn after `CacheDatasetPlaceholder`, from (seed, epoch, example).
"""

from __future__ import annotations

import array
import functools
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from flipped_core.errors import UserError, unknown
from flipped_tasks import stream
from flipped_tasks.caching import SharedCacheTask
from flipped_tasks.datasets import check_template, get_dataset, slug, training_templates
from flipped_tasks.drafts import Draft, TemplateWriter, Write
from flipped_tasks.draws import draw
from flipped_tasks.methods import METHODS
from flipped_tasks.rendering import Dropped
from flipped_tasks.row_source import RowSource, row_source
from flipped_tasks.seqio_vocabulary import SeqioVocabulary

log = logging.getLogger(__name__)

ROWS_PER_CALL = 64  # rows that one call into Python renders
_ATTEMPTS = 64  # examples that are tried for one position before the dataset counts as unusable
_EARLY = 1_000  # examples after which a task that drops too many says so
_UNCUT = 1 << 30
_NO_SEED = 0  # draws of a reading that is neither seeded nor shuffled, such as an evaluation


class RowTask(SharedCacheTask):
    """A SeqIO task that knows how it is read: seed, epoch and place in the stream reach its preprocessors.

    Attributes:
      counts: what was left out or cut so far in this process, by reason.
      given: examples that were made so far.
      failure: the error that stopped the pipeline, for tf.data reports it only as text.
    """

    def __init__(
        self, name: str, source: RowSource, features: Mapping[str, seqio.Feature], write: Write,
        one_per_position: bool, order_key: str,
    ):  # fmt: skip
        """Arguments:
        write: makes one example.
        one_per_position: another example takes the place of one that is dropped.
        order_key: what the order is drawn for; tasks with the same key meet the examples in the same order.
        """
        self.rows = source
        self.write = write
        self.one_per_position = one_per_position
        self.order_key = order_key
        self.counts: Counter[str] = Counter()
        self.failure: UserError | None = None
        self._lock = threading.Lock()
        self._read = 0
        self.given = 0
        render = functools.partial(_render, self)
        steps = [stream.enter, render] if one_per_position else [render, stream.enter]
        super().__init__(
            name=name,
            source=source,
            output_features=features,
            preprocessors=[seqio.CacheDatasetPlaceholder(), stream.arrange, *steps],
            shuffle_buffer_size=None,
        )

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
        rotated = self.one_per_position and not use_cached
        if shard_info is not None:
            size = max(1, -(-(size - shard_info.index) // shard_info.num_shards))
            rotated = False
        place = stream.current_place()
        if place is not None and self.name not in place.tasks:
            place = None
        how = stream.Reading(
            dataset=self.order_key,
            split=split,
            seed=seed,
            shuffle=shuffle,
            size=size,
            start=place.position(self.name) if place else 0,
            mask=place.mask(self.name) if place and place.host_count > 1 else None,
            rotated=rotated,
            padded=place is not None,
        )
        self.failure = None
        with stream.reading(how):
            return super().get_dataset(
                sequence_length=sequence_length, split=split, use_cached=use_cached, shuffle=shuffle,
                shuffle_buffer_size=shuffle_buffer_size, seed=seed, shard_info=shard_info,
                num_epochs=num_epochs, trim_output_features=trim_output_features,
                try_in_mem_cache=try_in_mem_cache and use_cached,
            )  # fmt: skip

    def example(
        self, row: bytes, number: int, epoch: int, how: stream.Reading
    ) -> tuple[Draft, int] | None:
        """The example at a position and its row number; None where it is dropped.

        Raises:
          UserError: no example of the split can be used.
        """
        for attempt in range(_ATTEMPTS if self.one_per_position else 1):
            if attempt:
                payloads = self.rows.payloads(how.split)
                other = draw(
                    len(payloads), how.seed, self.order_key, "instead", epoch, number, attempt
                )
                row, taken = payloads.rows[other], int(payloads.numbers[other])
            else:
                taken = number
            made = self.write(row, taken, epoch, how.seed)
            if not isinstance(made, Dropped):
                with self._lock:
                    self._read += 1
                    self.given += 1
                    early = self._read == _EARLY
                if early:
                    self._warn()
                return made, taken
            self.count(made.reason)
        with self._lock:
            self._read += 1
            nothing = not self.given and self._read >= how.size
        if self.one_per_position or nothing:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
            raise UserError(
                f"task {self.name!r}, split {how.split!r}: no example can be used ({why})"
            )
        return None

    def _warn(self) -> None:
        from flipped_tasks.counts import line  # which imports this module

        for told in line(self.name, self.counts, self.given, {}, 0):
            if told.startswith("warning: "):
                log.warning("%s", told.removeprefix("warning: "))

    def count(self, reason: str, by: int = 1) -> None:
        """Notes that something was left out or cut."""
        with self._lock:
            self.counts[reason] += by


def _render(
    task: RowTask, ds: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None
) -> tf.data.Dataset:
    """Rows → ids, `ROWS_PER_CALL` at a time, for a call into Python costs more than an example."""
    how = stream.current_reading()
    lengths = {key: (sequence_length or {}).get(key) or _UNCUT for key in ("inputs", "targets")}
    keys = tuple(task.output_features)
    vocab = task.output_features["inputs"].vocabulary

    def run(rows: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        try:
            made = [
                task.example(row, int(number), int(position) // how.size, how)
                for row, number, position in zip(rows, numbers, positions, strict=True)
            ]
        except UserError as error:
            task.failure = error
            raise
        drafts = [example for example in made if example is not None]
        vocab.tokens.encode_ahead(text for draft, _ in drafts for text in draft.texts())
        found = [(draft.ids(lengths), taken) for draft, taken in drafts]
        names = [
            f"{task.order_key}/{how.split}/{taken}/{ids.form}".encode() for ids, taken in found
        ]
        return [np.array(names, dtype=object), *(
            part for key in keys for part in _stack([getattr(ids, key) for ids, _ in found])
        )]  # fmt: skip

    def block(rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        types = [tf.string, *(tf.int32 for _ in range(2 * len(keys)))]
        made = tf.numpy_function(run, [rows["row"], rows["number"], rows["position"]], types)
        out = {"example_id": tf.ensure_shape(made[0], [None])}
        for place, key in enumerate(keys):
            out[key] = tf.ensure_shape(made[1 + 2 * place], [None, None])
            if not how.padded:
                out[f"{key}_length"] = tf.ensure_shape(made[2 + 2 * place], [None])
        return out

    def cut(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        ids = {key: example[key][: example[f"{key}_length"]] for key in keys}
        return {"example_id": example["example_id"], **ids}

    examples = ds.batch(ROWS_PER_CALL).map(block).unbatch()
    return examples if how.padded else examples.map(cut)


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
    task = RowTask(
        task_name(dataset, method, template), source, method_features(vocab, method, input_eos), writer,
        one_per_position=template is None, order_key=dataset,
    )  # fmt: skip
    writer.on_count = task.count
    return add_task(task)


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
    return found.counts + found.rows.payloads(split).dropped
