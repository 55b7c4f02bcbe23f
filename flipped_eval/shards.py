"""Scores on disk: append-only shards of JSON lines, in chunks that carry a checksum and count as a whole or not at all.

    output_dir/scores/scores-00000.jsonl

A *unit* is one model, one method and one (task, template, label set) on one version of its data and
tokenizer; its key is a hash of all of these, so a changed checkpoint never meets an old score. Lines:

    {"unit": KEY, "about": {…}}                                        what the key stands for
    {"unit": KEY, "example": "17", "choice": 0, "logprob": -3.2, "tokens": 4, "right": true}
    {"unit": KEY, "example": "17", "shown": {…}}                       an example as text
    {"unit": KEY, "end": {…}}                                          the last line of a unit, with its counts
    {"chunk": n, "number": k, "bytes": b, "format": 3, "crc32": "…"}   the n lines before are chunk k of the shard

The checksum is CRC-32 of those n lines (b bytes) and of its own line up to `,"crc32"`. A unit is complete when the
shards hold its last line and as many examples and choices as that says. A chunk that does not match its checksum is
left out by name (`Damage`), and so are shards of the older format, which has no checksums: what they held is scored
again. Each process begins a shard of its own, so nothing is ever written behind the torn end that a kill leaves.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import Json, cannot_write, write_atomically
from flipped_core.paths import explain, is_bucket
from flipped_core.sealed import DAMAGED
from flipped_eval.examples import Shown
from flipped_eval.records import Score, UnitEnd

FORMAT = 3  # of the lines above; 2 had no checksums
FOLDER = "scores"
SHARD_BYTES = 256 * 2**20  # a longer shard is followed by a new one
BUCKET_SHARD_BYTES = 2**22  # in a bucket, where each chunk rewrites its shard
LARGEST_SHARD = 4 * SHARD_BYTES  # no shard of ours comes near it

_FOOTER_START = b'{"chunk":'
_FOOTER = re.compile(
    rb'(\{"chunk":(\d{1,9}),"number":(\d{1,9}),"bytes":(\d{1,12}),"format":(\d{1,4})),"crc32":"([0-9a-f]{8})"\}\n'
)
_OLD_FOOTER = re.compile(rb'^\{"chunk":\d+\}$', re.MULTILINE)


class Fault(enum.Enum):
    """What is wrong with a part of a shard."""

    DAMAGED = DAMAGED
    MISSING = "chunks before this line are missing"
    UNVERIFIABLE = "written by an older version, without checksums"
    TORN = "ends within a chunk: the job that wrote it was stopped there, or the file was cut off"


@dataclass(frozen=True)
class Damage:
    """A part of a shard that is left out, or a gap in it.

    Attributes:
      path, line: where it begins; lines count from 1.
      fault: what is wrong.
    """

    path: epath.Path
    line: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.fault.value}"


@dataclass
class UnitScores:
    """What the shards hold of one unit.

    Attributes:
      scores: by example.
      shown: example -> its text.
      end: the unit's last record; None where it is not there.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    end: UnitEnd | None = None

    @property
    def complete(self) -> bool:
        """Whether every record is there: the last one, and as many examples and choices as it says."""
        if self.end is None or len(self.scores) != self.end.examples:
            return False
        choices = [len(score.logprobs) for score in self.scores.values()]
        if self.end.words is not None and set(choices) - {len(self.end.words)}:
            return False
        return sum(choices) == self.end.choices


@dataclass
class Stored:
    """The verified content of a folder's shards, and what was left out.

    Attributes:
      units: by key.
      damage: what cannot be used, in the order of the shards; `Fault.TORN` included.
    """

    units: dict[str, UnitScores] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)

    def lost(self) -> Damage | None:
        """The first part that held scores once and cannot be used; a torn end may never have been whole."""
        return next((one for one in self.damage if one.fault is not Fault.TORN), None)

    def done(self) -> Done:
        """What of it need not be scored again."""
        done = Done()
        for key, unit in self.units.items():
            if unit.complete:
                done.ended.add(key)
            elif unit.scores:
                done.examples[key] = set(unit.scores)
        return done


@dataclass
class Done:
    """What need not be scored again: the examples of each unit, and the units that are complete."""

    examples: dict[str, set[str]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def has(self, unit: str, example: str) -> bool:
        """Whether all choices of an example are scored."""
        return unit in self.ended or example in self.examples.get(unit, ())

    def add(self, unit: str, example: str) -> None:
        """An example was scored and written."""
        self.examples.setdefault(unit, set()).add(example)

    def to_json(self) -> Json:
        """Itself as plain values."""
        examples = {unit: sorted(names) for unit, names in self.examples.items()}
        return {"examples": examples, "ended": sorted(self.ended)}

    @classmethod
    def from_json(cls, found: Json) -> Done:
        """What `to_json` gave."""
        examples = {unit: set(names) for unit, names in found["examples"].items()}
        return cls(examples, set(found["ended"]))


def done(output_dir: epath.Path) -> Done:
    """What need not be scored again; raises as `read`."""
    return read(output_dir).done()


def read(output_dir: epath.Path) -> Stored:
    """All scores in the shards of `output_dir` whose checksums and counts are right.

    Raises:
      UserError: a shard cannot be read, is of a newer format, or contradicts another; names it.
    """
    stored = Stored()
    for path in sorted((output_dir / FOLDER).glob("scores-*.jsonl")):
        _read_shard(path, stored)
    return stored


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """Any line but the last of a chunk."""

    unit: str
    about: dict[str, Any] | None = None
    example: str | None = None
    choice: int | None = None
    logprob: float | None = None
    tokens: int | None = None
    right: bool | None = None
    shown: Shown | None = None
    end: UnitEnd | None = None


_LINES = msgspec.json.Decoder(_Line)
_Record = tuple[str, str | None, "Score | Shown | UnitEnd"]  # unit, example, what is known of it


def _read_shard(path: epath.Path, stored: Stored) -> None:
    """Adds a shard's chunks to `stored`, and what of it cannot be used to its `damage`."""
    try:
        if (size := epath.Path(path).stat().length) > LARGEST_SHARD:
            raise UserError(f"{path}: expected a shard of scores, got {size:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from error

    def damaged(offset: int, fault: Fault) -> None:
        stored.damage.append(Damage(path, data.count(b"\n", 0, offset) + 1, fault))

    end, expected = 0, 0
    for chunk in _chunks(path, data):
        records = _records(data[chunk.start : chunk.footer], chunk.lines)
        if records is None:
            continue  # not from our writer; reported as the part between its neighbours
        if chunk.start > end:
            damaged(end, _fault(data[end : chunk.start]))
        elif chunk.number != expected:
            damaged(chunk.start, Fault.MISSING)
        for record in records:
            _add(path, stored, *record)
        end, expected = chunk.end, chunk.number + 1
    if end < len(data):
        rest = data[end:]
        damaged(end, Fault.TORN if _may_be_torn(rest) else _fault(rest))


@dataclass(frozen=True)
class _Chunk:
    """Where a chunk with the right checksum lies: its lines, then its footer, then `end`."""

    start: int
    footer: int
    end: int
    lines: int
    number: int


def _chunks(path: epath.Path, data: bytes) -> Iterator[_Chunk]:
    """The chunks whose checksum is right, in order; each is found by its own footer, whatever precedes it."""
    end = 0
    at = data.find(_FOOTER_START)
    while at >= 0:
        if found := _FOOTER.match(data, at):
            head, lines, number, size, version, crc = found.groups()
            start = at - int(size)
            if start >= end and _crc(data[start:at], head) == int(crc, 16):
                if int(version) != FORMAT:
                    raise UserError(
                        f"{path}: expected scores of format {FORMAT}, got {int(version)}: written by another "
                        "version of this program; name another output_dir"
                    )
                yield _Chunk(start, at, found.end(), int(lines), int(number))
                end = found.end()
        at = data.find(_FOOTER_START, at + 1)


def _records(body: bytes, lines: int) -> list[_Record] | None:
    """What a chunk's lines say; None where they are not such as the writer makes."""
    try:
        decoded = _LINES.decode_lines(body)
        if len(decoded) != lines:
            return None
        return list(_joined(decoded))
    except (msgspec.MsgspecError, RecursionError, _OddLine):
        return None


class _OddLine(Exception):
    """A line that the writer does not make."""


def _joined(lines: Sequence[_Line]) -> Iterator[_Record]:
    """The records of some lines; those of an example's choices, which follow one another, become one `Score`."""
    group: list[_Line] = []
    for line in lines:
        if line.choice is not None:
            if group and line.choice == 0:
                yield _score(group)
                group = []
            group.append(line)
            continue
        if group:
            yield _score(group)
            group = []
        if line.shown is not None and line.example is not None:
            yield line.unit, line.example, line.shown
        elif line.end is not None:
            yield line.unit, None, line.end
        elif line.about is None:
            raise _OddLine
    if group:
        yield _score(group)


def _score(lines: Sequence[_Line]) -> _Record:
    """The lines of one example's choices as one record."""
    first = lines[0]
    logprobs, tokens, right = [], [], []
    for place, line in enumerate(lines):
        if (line.unit, line.example, line.choice) != (first.unit, first.example, place):
            raise _OddLine
        if line.logprob is None or not math.isfinite(line.logprob):
            raise _OddLine
        if line.tokens is None or line.tokens < 0 or line.right is None:
            raise _OddLine
        logprobs.append(line.logprob)
        tokens.append(line.tokens)
        right.append(line.right)
    if first.example is None or not any(right):
        raise _OddLine
    return first.unit, first.example, Score(tuple(logprobs), tuple(tokens), tuple(right))


def _add(
    path: epath.Path,
    stored: Stored,
    key: str,
    example: str | None,
    record: Score | Shown | UnitEnd,
) -> None:
    """Adds a record; the same one may occur twice, another one in its place is refused."""
    unit = stored.units.setdefault(key, UnitScores())
    if isinstance(record, UnitEnd):
        known: object = unit.end
        unit.end = record
    else:
        assert example is not None
        if isinstance(record, Score):
            known = unit.scores.setdefault(example, record)
        else:
            known = unit.shown.setdefault(example, record)
    if known is not None and known != record:
        what = "the end" if example is None else f"example {example!r}"
        raise UserError(
            f"{path}: {what} of unit {key} was written twice with different content; remove this file to score what "
            "it holds again"
        )


def _fault(part: bytes) -> Fault:
    """Why a part of a shard cannot be used."""
    return Fault.UNVERIFIABLE if _OLD_FOOTER.search(part) else Fault.DAMAGED


def _may_be_torn(rest: bytes) -> bool:
    """Whether a shard's rest may be the beginning of a chunk, as a kill leaves it: whole lines, then a part of one."""
    whole = rest[: rest.rfind(b"\n") + 1]
    if _FOOTER_START in whole:
        return False
    try:
        _LINES.decode_lines(whole)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


class Writer:
    """Appends chunks to shards of this process' own; in a bucket, where nothing can be appended, it rewrites them."""

    def __init__(self, output_dir: epath.Path) -> None:
        """Nothing is written, and no file made, before the first chunk."""
        self._folder = output_dir / FOLDER
        self._path: epath.Path | None = None
        self._written = 0
        self._number = 0
        self._described: set[str] = set()
        self._in_bucket = is_bucket(output_dir)
        self._text = b""  # of the shard, where it is rewritten

    def append(self, lines: Sequence[Json], about: Mapping[str, Json]) -> None:
        """Writes a chunk and waits until it is on the disk.

        Args:
          lines: in the forms above, without the units' `about`.
          about: unit key -> what it stands for; written once for each shard.

        Raises:
          UserError: the disk is full, or the like; the chunks before are complete.
        """
        largest = BUCKET_SHARD_BYTES if self._in_bucket else SHARD_BYTES
        if self._path is None or self._written > largest:
            self._begin()
        assert self._path is not None
        keys = dict.fromkeys(line["unit"] for line in lines)
        new = [key for key in keys if key not in self._described]
        whole: list[Any] = [{"unit": key, "about": about[key]} for key in new] + list(lines)
        text = _chunk_text(whole, self._number)
        if self._in_bucket:
            write_atomically(
                self._path, self._text + text
            )  # the object before stays until this one is whole
            self._text += text
        else:
            self._append_locally(self._path, text)
        self._described.update(new)
        self._written += len(text)
        self._number += 1

    def _append_locally(self, path: epath.Path, text: bytes) -> None:
        try:
            with open(path, "ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, self._written)
            raise cannot_write(path, error) from error

    def _begin(self) -> None:
        """Makes the next shard, which no other process writes."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self._folder.glob("scores-*.jsonl")))
            while True:
                path = self._folder / f"scores-{number:05d}.jsonl"
                if self._in_bucket:  # one job owns the folder
                    if not path.exists():
                        break
                    number += 1
                    continue
                try:
                    open(path, "xb").close()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        self._path, self._written, self._number, self._described = path, 0, 0, set()
        self._text = b""


def _chunk_text(lines: Sequence[Json], number: int) -> bytes:
    """A chunk as it is written: its lines and its footer."""
    body = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    head = b'{"chunk":%d,"number":%d,"bytes":%d,"format":%d' % (
        len(lines), number, len(body), FORMAT,
    )  # fmt: skip
    return body + head + b',"crc32":"%08x"}\n' % _crc(body, head)


def _crc(body: bytes, head: bytes) -> int:
    """The checksum of a chunk: of its lines and of its footer's fields."""
    return zlib.crc32(head, zlib.crc32(body))
