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
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import seqio
import tensorflow as tf

from flipped_errors import UserError, unknown
from flipped_tasks import promptsource, stream, tokens
from flipped_tasks.caching import SharedCacheTask
from flipped_tasks.datasets import check_template, get_dataset, slug, training_templates
from flipped_tasks.draws import draw
from flipped_tasks.methods import METHODS, Formatted, format_example
from flipped_tasks.rendering import Dropped, Rendered, compile_template, template_rng
from flipped_tasks.row_source import RowSource, row_source

log = logging.getLogger(__name__)

ROWS_PER_CALL = 64  # rows that one call into Python renders
_ATTEMPTS = 64  # examples that are tried for one position before the dataset counts as unusable
_EARLY = 1_000  # examples after which a task that drops too many says so
_UNCUT = 1 << 30
_NO_SEED = 0  # draws of a reading that is neither seeded nor shuffled, such as an evaluation


class SeqioVocabulary(seqio.Vocabulary):
    """`tokens.Vocabulary` as SeqIO and T5X want it; vocab_size counts ids, not padded embedding rows."""

    def __init__(self, path: str):
        """Args: path: the SentencePiece model, which has no sentinels."""
        super().__init__(extra_ids=100)
        self.path = str(path)

    @functools.cached_property
    def tokens(self) -> tokens.Vocabulary:
        """The vocabulary itself, read when first needed."""
        return load_vocabulary(self.path)

    @property
    def eos_id(self) -> int:
        return tokens.Vocabulary.eos

    @property
    def pad_id(self) -> int:
        return tokens.Vocabulary.pad

    @property
    def bos_id(self) -> int:
        return tokens.Vocabulary.pad

    @property
    def unk_id(self) -> int:
        return tokens.Vocabulary.unk

    @property
    def _base_vocab_size(self) -> int:
        return self.tokens.sentinel(0) + 1

    @property
    def vocab_size(self) -> int:
        """Ids in use, sentinels included: 32,100 for T5."""
        return self._base_vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokens.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def run(text: bytes | np.ndarray) -> np.ndarray:
            plain = text if isinstance(text, bytes) else text.item()  # an array outside of graphs
            return np.asarray(self.tokens.encode(plain.decode()), np.int32)

        return tf.ensure_shape(tf.numpy_function(run, [tf.convert_to_tensor(s)], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def run(row: np.ndarray) -> bytes:
            return self.tokens.decode(row.tolist()).encode()

        return tf.ensure_shape(tf.numpy_function(run, [ids], tf.string), [])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


@functools.lru_cache(maxsize=8)
def load_vocabulary(path: str) -> tokens.Vocabulary:
    """The vocabulary of a SentencePiece file, read once in a process."""
    return tokens.Vocabulary.from_file(path)


@dataclasses.dataclass(frozen=True)
class Ids:
    """Token ids of one training example.

    Attributes:
      inputs, targets: with eos where it belongs.
      wrong_inputs: FLIPPED's inputs with a wrong choice; empty where there is none.
      form: how the example was put, such as the template's name.
    """

    inputs: Sequence[int]
    targets: Sequence[int]
    wrong_inputs: Sequence[int] = ()
    form: str = ""


# (row, example's number, epoch, seed, lengths) → ids, or why there are none.
Encode = Callable[[bytes, int, int, int, Mapping[str, int]], Ids | Dropped]


class RowTask(SharedCacheTask):
    """A SeqIO task that knows how it is read: seed, epoch and place in the stream reach its preprocessors.

    Attributes:
      counts: what was left out or cut so far in this process, by reason.
      given: examples that were made so far.
      failure: the error that stopped the pipeline, for tf.data reports it only as text.
    """

    def __init__(
        self, name: str, source: RowSource, features: Mapping[str, seqio.Feature], encode: Encode,
        one_per_position: bool, order_key: str,
    ):  # fmt: skip
        """Arguments:
        encode: makes one example.
        one_per_position: another example takes the place of one that is dropped.
        order_key: what the order is drawn for; tasks with the same key meet the examples in the same order.
        """
        self.rows = source
        self.encode = encode
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
        self, row: bytes, number: int, epoch: int, how: stream.Reading, lengths: Mapping[str, int]
    ) -> tuple[Ids, int] | None:
        """The ids of the example at a position and its row number; None where it is dropped.

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
            made = self.encode(row, taken, epoch, how.seed, lengths)
            if isinstance(made, Ids):
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

    def run(rows: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        try:
            made = [
                task.example(row, int(number), int(position) // how.size, how, lengths)
                for row, number, position in zip(rows, numbers, positions, strict=True)
            ]
        except UserError as error:
            task.failure = error
            raise
        found = [example for example in made if example is not None]
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


class TemplateEncoder:
    """Makes the ids of one method from a row, with a template that is drawn or given."""

    def __init__(
        self,
        dataset: str,
        method: str,
        templates: Sequence[str],
        vocab: SeqioVocabulary,
        input_eos: bool,
    ):
        """Args: templates: one is drawn for each example and epoch; input_eos: inputs end with eos."""
        self.dataset, self.method, self.input_eos = dataset, method, input_eos
        self._names = tuple(templates)
        self._vocab = vocab
        self.task: RowTask | None = None  # whose counts are kept

    @functools.cached_property
    def _templates(self) -> tuple[Any, ...]:
        return tuple(
            compile_template(promptsource.load_template(self.dataset, name)) for name in self._names
        )

    def __call__(
        self, row: bytes, number: int, epoch: int, seed: int, lengths: Mapping[str, int]
    ) -> Ids | Dropped:
        """Ids under the drawn template, or under another one where that drops the row; else the last reason."""
        columns = orjson.loads(row)
        left = list(self._templates)
        while True:
            template = left.pop(
                draw(len(left), seed, self.dataset, "template", epoch, number, len(left))
            )
            name = template.spec.name
            rendered = template.render(columns, template_rng(seed, name, f"{epoch}/{number}"))
            made: Ids | Dropped
            if isinstance(rendered, Dropped):
                made = rendered
            else:
                draws = (seed, self.dataset, "wrong", epoch, number)
                made = self._encode(rendered, name, draws, lengths)
            if isinstance(made, Ids) or not left:
                return made
            self._count(made.reason)

    def _encode(
        self,
        rendered: Rendered,
        name: str,
        draws: tuple[int | str, ...],
        lengths: Mapping[str, int],
    ) -> Ids | Dropped:
        formatted = format_example(self.method, rendered, rendered.correct)
        if isinstance(formatted, Dropped):
            return formatted
        encoded = tokens.encode(formatted, self._vocab.tokens, lengths, self.input_eos)
        if encoded.inputs_cut:
            self._count("inputs_cut")
        if encoded.targets_cut:
            self._count("targets_cut")
        wrong: Sequence[int] = ()
        if self.method == "flipped":
            wrong = self._wrong_inputs(rendered, formatted, encoded, draws, lengths)
        return Ids(encoded.inputs, encoded.targets, wrong, name)

    def _wrong_inputs(
        self,
        rendered: Rendered,
        formatted: Formatted,
        encoded: tokens.Encoded,
        draws: tuple[int | str, ...],
        lengths: Mapping[str, int],
    ) -> Sequence[int]:
        """Inputs with a wrong choice, uniform over the options whose text is another; empty without one."""
        wrong = [place for place, text in enumerate(rendered.choices) if text != rendered.target]
        if not wrong:
            self._count("one_choice")
            return ()
        option = rendered.choices[wrong[draw(len(wrong), *draws)]]
        ids = tokens.encode_with_choice(
            formatted, encoded, option, self._vocab.tokens, lengths, self.input_eos
        )
        if ids == encoded.inputs:
            # Options that differ as text and not as ids would be taught and untaught at once.
            self._count("wrong_choice_same_ids")
            return ()
        return ids

    def _count(self, reason: str) -> None:
        if self.task is not None:
            self.task.count(reason)


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
    encoder = TemplateEncoder(dataset, method, names, vocab, input_eos)
    source = row_source(dataset, data_dir)
    task = RowTask(
        task_name(dataset, method, template), source, method_features(vocab, method, input_eos), encoder,
        one_per_position=template is None, order_key=dataset,
    )  # fmt: skip
    encoder.task = task
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
