"""Plain text as a task: the language modelling that stands in for the LM-adapted checkpoint in small runs.

Two objectives, drawn for each example and epoch: prefix language modelling, as the LM adaptation of T5 does
(Lester et al. 2021, arXiv 2104.08691), and span corruption (Raffel et al. 2020, arXiv 1910.10683). A text may say
with a tab where it is to be cut; it is read with holes in it then, instead of being corrupted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import orjson

from flipped_core.errors import UserError
from flipped_tasks import sources, tokens
from flipped_tasks.drafts import Ids, Note
from flipped_tasks.draws import generator
from flipped_tasks.methods import NUM_SENTINELS
from flipped_tasks.rendering import Dropped
from flipped_tasks.row_source import RowSource
from flipped_tasks.seqio_tasks import RowTask, add_task, method_features
from flipped_tasks.seqio_vocabulary import SeqioVocabulary

MOST_HOLES = 3


@dataclasses.dataclass(frozen=True)
class TextWriter:
    """Makes (inputs, targets) from one text.

    Attributes:
      name: the task's name, which decorrelates the draws of two tasks.
      vocab: turns text into ids.
      prefix_lm_share: share of examples for prefix language modelling, 0 to 1; the rest is span corruption.
        A text with a tab, such as a question, a tab and its answer, is cut there; instead of being corrupted it
        gets holes, see `with_holes`.
      noise_density: share of the ids that span corruption takes out.
      mean_span_length: their mean run, in ids.
      input_eos: whether inputs end with eos.
      most_holes: how many holes a text gets at most.
    """

    name: str
    vocab: SeqioVocabulary
    prefix_lm_share: float
    noise_density: float
    mean_span_length: float
    input_eos: bool
    most_holes: int

    def __call__(
        self, row: bytes, number: int, epoch: int, seed: int, note: Note
    ) -> TextDraft | Dropped:
        """`Dropped('too_short')` below two ids."""
        del note
        vocab = self.vocab.tokens
        before, tab, after = orjson.loads(row).partition("\t")
        start = vocab.encode(before)
        ids = start + vocab.encode(after)
        if len(ids) < 2:
            return Dropped("too_short")
        cut = len(start) if tab else None
        return TextDraft(self, ids, cut, generator(seed, self.name, epoch, number))


@dataclasses.dataclass(frozen=True)
class TextDraft:
    """One text as ids; see `drafts.Draft`.

    Attributes:
      writer: who made it.
      tokens: all ids of the text, at least two.
      cut: the place where the text says it is to be cut.
      rng: of this example.
    """

    writer: TextWriter
    tokens: list[int]
    cut: int | None
    rng: np.random.Generator

    def texts(self) -> Sequence[str]:
        return ()

    def ids(self, lengths: Mapping[str, int], note: Note) -> Ids:
        del note  # cutting a text is what this task does
        writer, rng, vocab = self.writer, self.rng, self.writer.vocab.tokens
        tokens = self.tokens[: max(2, lengths["inputs"] - 1 + lengths["targets"] - 1)]
        if rng.random() < writer.prefix_lm_share:
            form, (inputs, targets) = "prefix_lm", _split(tokens, lengths, rng, self.cut)
        elif self.cut is not None:
            start = self.tokens[: self.cut]
            form, (inputs, targets) = (
                "holes",
                with_holes(start, tokens[self.cut :], vocab, rng, writer.most_holes),
            )
        else:
            mask = noise_mask(len(tokens), writer.noise_density, writer.mean_span_length, rng)
            form, (inputs, targets) = "span_corruption", corrupt(tokens, mask, vocab)
        end = [vocab.eos] if writer.input_eos else []
        return Ids(
            inputs[: lengths["inputs"] - len(end)] + end,
            targets[: lengths["targets"] - 1] + [vocab.eos],
            form=form,
        )


def sample_pairs(
    texts: Iterable[str], vocab: tokens.Vocabulary, seed: int
) -> list[tuple[list[int], list[int]]]:
    """(input ids, target ids) of each text that says where to cut it: as prefix LM, then with holes.

    For measuring a model on a fixed sample; inputs and targets end with eos, nothing is truncated.
    """
    rng = generator(seed, "sample")
    pairs = []
    for text in texts:
        before, tab, after = text.partition("\t")
        if not tab:
            continue
        start, end = vocab.encode(before), vocab.encode(after)
        for inputs, targets in ((start, end), with_holes(start, end, vocab, rng)):
            pairs.append(([*inputs, vocab.eos], [*targets, vocab.eos]))
    return pairs


def _split(
    ids: list[int], lengths: Mapping[str, int], rng: np.random.Generator, wanted: int | None
) -> tuple[list[int], list[int]]:
    """Cuts at the wanted or a random place where both parts fit, or as nearly as can be."""
    first = max(1, len(ids) - (lengths["targets"] - 1))
    last = max(first, min(len(ids) - 1, lengths["inputs"] - 1))
    place = int(rng.integers(first, last + 1)) if wanted is None else min(max(wanted, first), last)
    return ids[:place], ids[place:]


def with_holes(
    before: list[int],
    after: list[int],
    vocab: tokens.Vocabulary,
    rng: np.random.Generator,
    most: int = MOST_HOLES,
) -> tuple[list[int], list[int]]:
    """Sentinels at one to `most` random places of a text from which nothing was taken out -> (inputs, targets).

    The target is what comes after the text, behind the first sentinel: the form of FLIPPED's inputs, which have a
    sentinel wherever an instruction stood.
    """
    places = sorted(
        int(place) for place in rng.integers(0, len(before) + 1, rng.integers(1, most + 1))
    )
    inputs = list(before)
    for k, place in reversed(list(enumerate(places))):
        inputs.insert(place, vocab.sentinel(k))
    return inputs, [vocab.sentinel(0), *after]


def noise_mask(
    length: int, density: float, mean_span_length: float, rng: np.random.Generator
) -> np.ndarray:
    """Which ids span corruption takes out: bool [length], begins with a kept id and ends with a removed one.

    Args:
      length: number of ids, at least 2.
      density: share to take out; at least one id is, and one is kept.
      mean_span_length: the mean run, in ids.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, length - noise, NUM_SENTINELS)
    mask = np.zeros(length, bool)
    start = 0
    for kept, removed in zip(
        _parts(length - noise, spans, rng), _parts(noise, spans, rng), strict=True
    ):
        mask[start + kept : start + kept + removed] = True
        start += kept + removed
    return mask


def _parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `count` positive numbers, all such sums being equally likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(
    ids: Sequence[int], mask: np.ndarray, vocab: tokens.Vocabulary
) -> tuple[list[int], list[int]]:
    """Puts a sentinel for each masked run, and the runs behind their sentinels into the targets."""
    inputs: list[int] = []
    targets: list[int] = []
    count = 0
    for place, token in enumerate(ids):
        if not mask[place]:
            inputs.append(token)
            continue
        if place == 0 or not mask[place - 1]:
            inputs.append(vocab.sentinel(count))
            targets.append(vocab.sentinel(count))
            count += 1
        targets.append(token)
    return inputs, targets


def register_text_task(
    name: str,
    texts: Callable[[], Iterable[str]],
    vocab_path: str,
    prefix_lm_share: float = 0.7,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    input_eos: bool = True,
    most_holes: int = MOST_HOLES,
) -> RowTask:
    """Puts a task over plain texts into seqio.TaskRegistry, with the features of DIRECT and the split 'train'.

    Args:
      name: the task's name.
      texts: gives the texts, one example each; called once, when they are first needed.
      vocab_path: the SentencePiece model.
      prefix_lm_share: see `TextWriter`, as for the others.

    Raises:
      UserError: a share is not between 0 and 1, or the mean run is below 1.
    """
    for field, value, low, high in (
        ("prefix_lm_share", prefix_lm_share, 0.0, 1.0),
        ("noise_density", noise_density, 0.0, 1.0),
        ("mean_span_length", mean_span_length, 1.0, float("inf")),
    ):
        if not low <= value <= high:
            raise UserError(f"{field}: expected {low} to {high}, got {value}")
    vocab = SeqioVocabulary(vocab_path)
    writer = TextWriter(
        name, vocab, prefix_lm_share, noise_density, mean_span_length, input_eos, most_holes
    )

    @functools.cache
    def load(split: str) -> sources.Payloads:
        rows = [orjson.dumps(text) for text in texts()]
        if not rows:
            raise UserError(f"task {name!r}: no text is given")
        return sources.Payloads(rows, np.arange(len(rows)), Counter())

    return add_task(
        RowTask(
            name,
            RowSource(name, load, lambda: ("train",)),
            method_features(vocab, "direct", input_eos),
            writer,
            one_per_position=True,
            order_key=name,
        )  # fmt: skip
    )
