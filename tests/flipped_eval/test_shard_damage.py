"""Damage of all kinds to the shards of a finished evaluation: no trial may change a number in silence.

    python -m pytest -m slow -s tests/flipped_eval/test_shard_damage.py     # about 6 minutes

Each trial damages a copy of the shards. Then `results.finish` must give the same bytes or refuse by name and write
nothing; and the job, run again, must score what is missing and come to the same bytes, or refuse and write nothing.
"""

from __future__ import annotations

import pathlib
import random
import re
import shutil
from collections import Counter

import pytest

from flipped_core.errors import UserError
from flipped_eval import results

from .conftest import HashScorer, evaluate

TRIALS = 200
MADE = (results.RESULTS, results.PREDICTIONS, results.EXAMPLES)
JOB = {
    "suites": ["super_glue/rte:MNLI crowdsource", "super_glue/cb:can we infer"],
    "methods": ["direct", "flipped"], "max_examples": 32, "pairs_together": 30, "resamples": 5,
}  # fmt: skip
CHUNK = re.compile(rb'(?s).*?\{"chunk":[^\n]*\n')


class Stopped(BaseException):
    """Stands for what ends a job."""


class Dying(HashScorer):
    """Dies in its third call."""

    def score(self, pairs, progress=None):
        if len(self.calls) == 2:
            raise Stopped
        return super().score(pairs, progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_vocab_path) -> pathlib.Path:
    """A finished evaluation of three shards: it was stopped twice."""
    folder = tmp_path_factory.mktemp("whole")
    for scorer in (Dying(), Dying(), HashScorer()):
        try:
            evaluate(folder, small_vocab_path, scorer=scorer, **JOB)
        except Stopped:
            continue
    assert len(list((folder / "scores").iterdir())) == 3
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, small_vocab_path) -> pathlib.Path:
    """A shard of other weights, with numbers of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    evaluate(folder, small_vocab_path, weights=1, **JOB)
    return next((folder / "scores").iterdir())


def flip(draw: random.Random, shards: list[pathlib.Path], foreign: pathlib.Path) -> None:
    """One bit."""
    path = draw.choice(shards)
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(draw: random.Random, shards: list[pathlib.Path], foreign: pathlib.Path) -> None:
    """Anywhere, at a line, at a chunk, to nothing; or garbage instead of what is cut off."""
    path = draw.choice(shards)
    data = path.read_bytes()
    place = draw.randrange(len(data))
    how = draw.randrange(5)
    if how == 1:
        place = data.rfind(b"\n", 0, place) + 1
    elif how == 2:
        place = draw.choice([0, *(found.end() for found in CHUNK.finditer(data))][:-1])
    elif how == 3:
        place = 0
    path.write_bytes(data[:place] + (draw.randbytes(draw.randrange(200)) if how == 4 else b""))


def swap(draw: random.Random, shards: list[pathlib.Path], foreign: pathlib.Path) -> None:
    """Bytes, lines, chunks, whole shards, or a shard for that of other weights."""
    path = draw.choice(shards)
    data = path.read_bytes()
    how = draw.randrange(5)
    if how == 0:
        size = draw.randrange(1, 40)
        a, b = sorted(draw.sample(range(0, len(data) - size, size), 2))
        data = (
            data[:a]
            + data[b : b + size]
            + data[a + size : b]
            + data[a : a + size]
            + data[b + size :]
        )
        path.write_bytes(data)
    elif how in (1, 2):
        parts = data.splitlines(keepends=True) if how == 1 else CHUNK.findall(data)
        others = CHUNK.findall(draw.choice(shards).read_bytes()) if how == 2 else parts
        place = draw.randrange(len(parts))
        other = draw.randrange(len(others))
        parts[place] = others[other]
        path.write_bytes(b"".join(parts))
    elif how == 3:
        first, second = draw.sample(shards, 2)
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        if draw.randrange(2):
            second.write_bytes(kept)
    else:
        shutil.copy(foreign, path)


def delete(draw: random.Random, shards: list[pathlib.Path], foreign: pathlib.Path) -> None:
    """Some bytes, a line, a chunk, a shard, all shards."""
    path = draw.choice(shards)
    data = path.read_bytes()
    how = draw.randrange(5)
    if how == 0:
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + data[place + draw.randrange(1, 400) :])
    elif how in (1, 2):
        parts = data.splitlines(keepends=True) if how == 1 else CHUNK.findall(data)
        del parts[draw.randrange(len(parts))]
        path.write_bytes(b"".join(parts))
    elif how == 3:
        path.unlink()
    else:
        shutil.rmtree(path.parent)


def made(folder: pathlib.Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in MADE]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, truncate, swap, delete], ids=lambda one: one.__name__)
def test_no_damage_changes_results_in_silence(tmp_path, whole, foreign, small_vocab_path, damage):
    before = made(whole)
    seen: Counter[str] = Counter()
    for seed in range(TRIALS):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damage(random.Random(seed), sorted((folder / "scores").iterdir()), foreign)
        for what in ("results", "job"):
            told: list[str] = []
            again = HashScorer()
            try:
                if what == "results":
                    results.finish(folder, JOB["resamples"])
                else:
                    evaluate(folder, small_vocab_path, scorer=again, announce=told.append, **JOB)
                outcome = "scored again" if again.pairs else "the same"
                if again.pairs:
                    assert any("warning: " in line and "/scores" in line for line in told), seed
            except UserError as error:
                assert "scores" in str(error) and "\n" not in str(error), seed
                outcome = "refused by name"
            seen[f"{what}: {outcome}"] += 1
            assert made(folder) == before, f"{damage.__name__}, seed {seed}: changed in silence"
    counts = ", ".join(f"{name} {number}" for name, number in sorted(seen.items()))
    print(f"\n{damage.__name__}, seeds 0 to {TRIALS - 1}: {counts}; 0 silent changes")
