"""From pieces to token ids: T5's SentencePiece vocabulary with its 100 sentinels, and truncation.

Text between sentinels is encoded on its own and the sentinels' ids are put between. A string that
contains sentinels is never tokenized in one go: that loses the ones that touch a word.
"""

from __future__ import annotations

import bisect
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sentencepiece

from flipped_core import hub
from flipped_core.errors import UserError
from flipped_core.paths import to_path
from flipped_tasks.methods import NUM_SENTINELS, Formatted, Piece, PieceKind, with_choice

_ROW_MULTIPLE = 128  # embedding rows are padded to it: 32,100 become T5's 32,128
_SPACE = "▁"  # how SentencePiece writes a space
_SHORT = 256  # characters; instruction and options repeat, long instance texts rarely do
_SHORT_KEPT, _LONG_KEPT = 32_768, 1_024  # texts whose ids are kept
_THREADS = min(8, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 1


class Vocabulary:
    """SentencePiece ids, with `<extra_id_0>` … `<extra_id_99>` behind them in reversed order.

    Attributes:
      pad, eos, unk: 0, 1 and 2, as in all T5 vocabularies.
      num_ids: pieces and sentinels; every id is below it.
      size: rows of an embedding table for the ids, padded as T5's are.
    """

    pad, eos, unk = 0, 1, 2

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self._pieces = processor.get_piece_size()
        self.num_ids = self._pieces + NUM_SENTINELS
        self.size = -(-self.num_ids // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self._short: dict[str, tuple[int, ...]] = {}
        self._long: dict[str, tuple[int, ...]] = {}
        self.prefix = functools.lru_cache(maxsize=512)(self._prefix)
        self._cut_pieces = functools.lru_cache(maxsize=64)(processor.encode_as_pieces)
        self.spans = functools.lru_cache(maxsize=4096)(self._spans)

    @classmethod
    def from_file(cls, path: str | pathlib.Path) -> Vocabulary:
        """Reads a SentencePiece `.model` file that holds no sentinels, of `hf://OWNER/NAME` the repository's.

        Raises:
          UserError: there is no such file, it is not a SentencePiece model, or its pad, eos and unk
            are not 0, 1 and 2.
        """
        file = to_path(hub.vocabulary(str(path)), "vocabulary")
        if not file.is_file():
            raise UserError(f"vocabulary: expected a SentencePiece model file, got {str(path)!r}")
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(file.read_bytes())
        except RuntimeError as error:
            raise UserError(f"vocabulary {str(path)!r} is not a SentencePiece model") from error
        special = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        if special != (cls.pad, cls.eos, cls.unk):
            raise UserError(
                f"vocabulary {str(path)!r}: expected pad, eos, unk to be 0, 1, 2, got {special}"
            )
        return cls(processor)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._processor.encode(text))

    def _prefix(self, text: str, count: int) -> str:
        """A beginning of `text` that has at most `count` ids, and with one more character would have more."""
        if count <= 0:
            return ""
        pieces = self._cut_pieces(text)
        if len(pieces) <= count:
            return text
        # Near enough: normalising may change lengths, and a cut the pieces before it.
        size = min(len("".join(pieces[:count])), len(text) - 1)
        counts = _PrefixCounts(text, pieces, self)
        while size and counts[size] > count:
            size -= 1
        while counts[size + 1] <= count:
            size += 1
        return text[:size]

    def _spans(self, pieces: tuple[Piece, ...]) -> tuple[int, ...]:
        """Ids of FLIPPED's targets, of which a template has few: kept, unlike those of other texts."""
        kinds: list[PieceKind] = ["instruction"] * len(pieces)
        return tuple(_ids(pieces, kinds, self))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of a text without eos; sentinels are not looked for in it."""
        known = self._short if len(text) <= _SHORT else self._long
        ids = known.get(text)
        if ids is None:
            ids = self._encode(text)
            self._keep([(text, ids)])
        return ids

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encodes what `encode_text` will be asked for, in several threads, and keeps it for then.

        SentencePiece holds Python's lock all the while: only so do several cores work on one process's texts.
        """
        fresh = [
            text
            for text in dict.fromkeys(texts)
            if text not in (self._short if len(text) <= _SHORT else self._long)
        ]
        if fresh:
            found = self._processor.encode(fresh, num_threads=_THREADS)
            self._keep(zip(fresh, map(tuple, found), strict=True))

    def _keep(self, found: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        for text, ids in found:
            short = len(text) <= _SHORT
            known, kept = (self._short, _SHORT_KEPT) if short else (self._long, _LONG_KEPT)
            if len(known) >= kept:
                known.clear()
            known[text] = ids

    def count(self, text: str) -> int:
        """The number of ids of a text that `prefix` may be asked to shorten."""
        return len(self.encode_text(text) if len(text) <= _SHORT else self._cut_pieces(text))

    def encode(self, text: str) -> list[int]:
        """Like `encode_text`, as a new list."""
        return list(self.encode_text(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; sentinels are written `<extra_id_k>`; pad, eos and padding rows vanish."""
        texts: list[str] = []
        run: list[int] = []
        first_sentinel = self._pieces
        for token in [*map(int, ids), first_sentinel + NUM_SENTINELS]:
            if token < first_sentinel:
                run.append(token)
                continue
            if run:
                texts.append(self._processor.decode(run))
                run = []
            if token < first_sentinel + NUM_SENTINELS:
                texts.append(f"<extra_id_{first_sentinel + NUM_SENTINELS - 1 - token}>")
        return " ".join(text for text in texts if text)

    def sentinel(self, k: int) -> int:
        """Id of `<extra_id_k>`; `ValueError` outside of 0 … 99."""
        if not 0 <= k < NUM_SENTINELS:
            raise ValueError(f"sentinel: expected 0 to {NUM_SENTINELS - 1}, got {k}")
        return self._pieces + NUM_SENTINELS - 1 - k


class _PrefixCounts:
    """The numbers of ids of a text's beginnings: a word at a time, for no token runs across a space."""

    def __init__(self, text: str, pieces: Sequence[str], vocab: Vocabulary) -> None:
        self._text, self._vocab = text, vocab
        self._words: dict[int, int] = {}  # where a word begins → ids before it
        # Of text that normalising leaves as it is, the pieces tell where each word's ids begin.
        self._starts: list[int] = []
        if text.isascii() and text.isprintable():
            starts = [place for place, piece in enumerate(pieces) if piece.startswith(_SPACE)]
            self._starts = starts if len(starts) == text.count(" ") + 1 else []

    def __getitem__(self, size: int) -> int:
        begin = self._text.rfind(" ", 0, size) + 1
        return self._before(begin) + len(self._vocab._encode(self._text[begin:size]))

    def _before(self, begin: int) -> int:
        if self._starts:
            return self._starts[self._text.count(" ", 0, begin)]
        if begin not in self._words:
            self._words[begin] = len(self._vocab._encode(self._text[:begin]))
        return self._words[begin]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one (example, choice).

    Attributes:
      inputs: encoder ids, eos included where it is wanted.
      targets: decoder ids, eos included.
      inputs_cut, targets_cut: how many ids truncation took away; 0 where nothing was too long.
    """

    inputs: list[int]
    targets: list[int]
    inputs_cut: int
    targets_cut: int


def encode(
    formatted: Formatted,
    vocab: Vocabulary,
    lengths: Mapping[str, int],
    input_eos: bool = True,
) -> Encoded:
    """Ids of an example, at most `lengths["inputs"]` and `lengths["targets"]`, eos included.

    Inputs that are too long lose instance text, from the ends of the longest stretches first, until
    they fit: so `output: choice` of FLIPPED stays whole, and so do all sentinels and DIRECT's
    instruction. Only where there is no instance text left are other pieces cut. Targets are cut at
    their end and keep eos.

    Args:
      input_eos: whether inputs end with eos, as those of the public Flipped models do (Hugging
        Face's tokenizer appends it). T0 trains without.

    Raises:
      UserError: a length is not at least 1, or missing.
    """
    for name in ("inputs", "targets"):
        if lengths.get(name, 0) < 1:
            raise UserError(f"lengths[{name!r}]: expected at least 1, got {lengths.get(name)!r}")
    inputs, inputs_cut = _encode_inputs(formatted, vocab, lengths["inputs"], input_eos)
    targets = formatted.targets
    # A prompt without instruction text gives FLIPPED no target: `flipped tasks render` shows it all the same.
    ids = vocab.encode_text(str(targets[0])) if len(targets) == 1 else vocab.spans(targets)
    room = lengths["targets"] - 1
    return Encoded(inputs, [*ids[:room], vocab.eos], inputs_cut, max(0, len(ids) - room))


def texts(formatted: Formatted) -> list[str]:
    """What `encode` asks the vocabulary for: for `Vocabulary.encode_ahead`."""
    runs = _runs(formatted.inputs, formatted.input_kinds)
    targets = formatted.targets if len(formatted.targets) == 1 else ()
    return [run for run in (*runs, *targets) if isinstance(run, str)]


def encode_with_choice(
    flipped: Formatted,
    encoded: Encoded,
    option: str,
    vocab: Vocabulary,
    lengths: Mapping[str, int],
    input_eos: bool = True,
) -> list[int]:
    """The inputs that `encode` gives for `methods.with_choice(flipped, option)`.

    Args:
      flipped: a FLIPPED example.
      encoded: what `encode` gave for it, with the same further arguments; where nothing is cut, only the choice
        is encoded anew.
      option: the text of another choice.
    """
    other = with_choice(flipped, option)
    end = [vocab.eos] if input_eos else []
    old, new = (vocab.encode_text(str(one.inputs[-1])) for one in (flipped, other))
    head = len(encoded.inputs) - len(end) - len(old)
    if encoded.inputs_cut or head + len(new) + len(end) > lengths["inputs"]:
        return _encode_inputs(other, vocab, lengths["inputs"], input_eos)[0]
    return [*encoded.inputs[:head], *new, *end]


def _encode_inputs(
    formatted: Formatted, vocab: Vocabulary, length: int, input_eos: bool
) -> tuple[list[int], int]:
    """At most `length` ids, and how many were cut."""
    end = [vocab.eos] if input_eos else []
    whole = _ids(formatted.inputs, formatted.input_kinds, vocab)
    if len(whole) <= length - len(end):
        return whole + end, 0
    inputs = _fit(formatted, vocab, length - len(end))
    return inputs + end, len(whole) - len(inputs)


def _ids(pieces: Sequence[Piece], kinds: Sequence[PieceKind], vocab: Vocabulary) -> list[int]:
    """Ids of all pieces."""
    ids: list[int] = []
    for run in _runs(pieces, kinds):
        if isinstance(run, str):
            ids += vocab.encode_text(run)
        else:
            ids.append(vocab.sentinel(run))
    return ids


def _runs(pieces: Sequence[Piece], kinds: Sequence[PieceKind]) -> list[Piece]:
    """What is encoded on its own. Neighbouring texts are one, for words may run across them; an output piece begins
    with whitespace or stands alone, where no token runs across, and stays apart."""
    runs: list[Piece] = []
    text = ""
    for piece, kind in zip(pieces, kinds, strict=True):
        if isinstance(piece, str) and kind != "output":
            text += piece
            continue
        if text:
            runs.append(text)
            text = ""
        runs.append(piece)
    if text:
        runs.append(text)
    return runs


def _fit(formatted: Formatted, vocab: Vocabulary, limit: int) -> list[int]:
    """Ids of the inputs, shortened to at most `limit`."""
    pieces, kinds = list(formatted.inputs), formatted.input_kinds
    ids = _ids(pieces, kinds, vocab)
    while len(ids) > limit and _shorten(pieces, kinds, vocab, len(ids) - limit):
        ids = _ids(pieces, kinds, vocab)
    if len(ids) <= limit:
        return ids
    output = [
        token
        for piece, kind in zip(pieces, kinds, strict=True)
        if kind == "output"
        for token in vocab.encode_text(str(piece))
    ]
    if not output:
        return ids[len(ids) - limit :]  # DIRECT: the last instruction is what asks the question
    room = max(0, limit - len(output))
    return (ids[: len(ids) - len(output)][:room] + output)[:limit]


def _shorten(
    pieces: list[Piece], kinds: Sequence[PieceKind], vocab: Vocabulary, surplus: int
) -> bool:
    """Takes at least `surplus` ids from the longest instance pieces; False where none is left."""
    counts = {
        place: vocab.count(str(piece))
        for place, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind == "instance" and piece
    }
    if not counts:
        return False
    budget = max(0, sum(counts.values()) - surplus)
    level = bisect.bisect_right(
        range(max(counts.values()) + 1),
        budget,
        key=lambda level: sum(min(count, level) for count in counts.values()),
    )
    level -= 1  # the highest level at which all pieces together are within the budget
    spare = budget - sum(min(count, level) for count in counts.values())
    for place, count in counts.items():
        if count <= level and level > 0:
            continue
        keep = level + (1 if spare > 0 else 0)
        spare -= 1
        pieces[place] = vocab.prefix(str(pieces[place]), keep)
    return True
