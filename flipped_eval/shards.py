"""Scores on disk: append-only shards of JSON lines, in chunks that count as a whole or not at all.

    output_dir/scores/scores-00000.jsonl

A *unit* is one model, one method and one (task, template, label set) on one version of its data and
tokenizer; its key is a hash of all of these, so a changed checkpoint never meets an old score. Lines:

    {"unit": KEY, "about": {…}}                                        what the key stands for
    {"unit": KEY, "example": "17", "choice": 0, "logprob": -3.2, "tokens": 4, "right": true}
    {"unit": KEY, "example": "17", "shown": {…}}                       an example as text
    {"unit": KEY, "end": {…}}                                          the unit is complete; its counts
    {"chunk": n}                                                       the n lines before belong together

What a kill left behind the last `chunk` line, a torn line included, is not there for the reader. Each
process begins a shard of its own, so nothing is ever written behind a torn line.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from flipped_core.errors import UserError
from flipped_core.files import Json, cannot_write

FOLDER = "scores"
SHARD_BYTES = 256 * 2**20  # a longer shard is followed by a new one


@dataclass
class UnitScores:
    """What the shards hold of one unit.

    Attributes:
      about: what its key stands for.
      logprobs, tokens, right: example -> one entry a choice, in the order of the choices.
      shown: example -> its text.
      end: the unit's counts; None where it is not complete.
    """

    about: Json = field(default_factory=dict)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)
    shown: dict[str, Json] = field(default_factory=dict)
    end: Json | None = None

    def _add(self, line: Json) -> None:
        if "choice" in line:
            example = line["example"]
            scores = self.logprobs.setdefault(example, [])
            if line["choice"] == len(scores):  # not one that two processes scored at once
                scores.append(line["logprob"])
                self.tokens.setdefault(example, []).append(line["tokens"])
                self.right.setdefault(example, []).append(line["right"])
        elif "shown" in line:
            self.shown[line["example"]] = line["shown"]
        elif "end" in line:
            self.end = line["end"]
        else:
            self.about = line["about"]


@dataclass
class Done:
    """What is in the shards of a folder: the examples of each unit, and the units that are complete."""

    examples: dict[str, set[str]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def has(self, unit: str, example: str) -> bool:
        """Whether all choices of an example are scored."""
        return unit in self.ended or example in self.examples.get(unit, ())

    def to_json(self) -> Json:
        """Itself as plain values."""
        examples = {unit: sorted(names) for unit, names in self.examples.items()}
        return {"examples": examples, "ended": sorted(self.ended)}

    @classmethod
    def from_json(cls, found: Json) -> Done:
        """What `to_json` gave."""
        examples = {unit: set(names) for unit, names in found["examples"].items()}
        return cls(examples, set(found["ended"]))


def done(output_dir: pathlib.Path) -> Done:
    """What need not be scored again.

    Raises:
      UserError: a shard cannot be read, or a line other than its last is not what was written.
    """
    found = Done()
    for line in _all_lines(output_dir):
        if "choice" in line:
            found.examples.setdefault(line["unit"], set()).add(line["example"])
        elif "end" in line:
            found.ended.add(line["unit"])
            found.examples.pop(line["unit"], None)
    return found


def read(output_dir: pathlib.Path) -> dict[str, UnitScores]:
    """All scores in the shards of `output_dir`, by unit key; of what two processes wrote at once, the first.

    Raises:
      UserError: as `done`.
    """
    units: dict[str, UnitScores] = {}
    for line in _all_lines(output_dir):
        units.setdefault(line["unit"], UnitScores())._add(line)
    return units


def _all_lines(output_dir: pathlib.Path) -> Iterator[Json]:
    for path in sorted((output_dir / FOLDER).glob("scores-*.jsonl")):
        yield from _lines(path)


def _lines(path: pathlib.Path) -> Iterator[Json]:
    """The lines of a shard's complete chunks."""
    pending: list[Json] = []
    torn = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if torn:
                    raise _damaged(path, torn)
                line = _parse(text)
                if line is None:
                    torn = number  # the last line of a killed process; an error where others follow
                elif "chunk" not in line:
                    pending.append(line)
                elif line["chunk"] != len(pending):
                    raise _damaged(path, number)
                else:
                    yield from pending
                    pending = []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parse(text: bytes) -> Json | None:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and ("unit" in line or "chunk" in line) else None


def _damaged(path: pathlib.Path, number: int) -> UserError:
    return UserError(
        f"{path}, line {number}: not what was written there; remove the file to score its part anew"
    )


class Writer:
    """Appends chunks to shards of this process' own."""

    def __init__(self, output_dir: pathlib.Path) -> None:
        """Nothing is written, and no file made, before the first chunk."""
        self._folder = output_dir / FOLDER
        self._path: pathlib.Path | None = None
        self._written = 0
        self._told: set[str] = set()

    def append(self, lines: Sequence[Json], about: Mapping[str, Json]) -> None:
        """Writes a chunk and waits until it is on the disk.

        Args:
          lines: in the forms above, without the units' `about`.
          about: unit key -> what it stands for; written once for each shard.

        Raises:
          UserError: the disk is full, or the like; the chunks before are complete.
        """
        if self._path is None or self._written > SHARD_BYTES:
            self._begin()
        assert self._path is not None
        new = [
            key for key in dict.fromkeys(line["unit"] for line in lines) if key not in self._told
        ]
        whole: list[Any] = [{"unit": key, "about": about[key]} for key in new] + list(lines)
        whole.append({"chunk": len(whole)})
        text = b"".join(orjson.dumps(line) + b"\n" for line in whole)
        try:
            with self._path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._written)
            raise cannot_write(self._path, error) from error
        self._told.update(new)
        self._written += len(text)

    def _begin(self) -> None:
        """Makes the next shard, which no other process writes."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self._folder.glob("scores-*.jsonl")))
            while True:
                path = self._folder / f"scores-{number:05d}.jsonl"
                try:
                    path.open("xb").close()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        self._path, self._written, self._told = path, 0, set()
