"""The scoring of a plan: chunks of cases go to the scorer, and to the shards as soon as they are scored.

A chunk takes rows block by block, each under all templates and label sets of its dataset, so that prompts which
these share stand in one chunk and are encoded once. Small splits of a suite share chunks; together they are a
*segment*, at whose end a chunk ends. Which cases form a chunk depends on the plan and on nothing else: a job that
was killed skips segments that are complete, makes the chunks of the others again, and scores what of them is not
in the shards.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import tqdm

from flipped_core.errors import UserError
from flipped_core.files import Json
from flipped_eval import shards
from flipped_eval.examples import Case, Pair, Row, TaskCases
from flipped_eval.planning import Group, Model, Plan, Unit, failure
from flipped_eval.records import UnitEnd
from mixtures.suites import ORIGINAL
from t5_engine import processes

ROWS_A_BLOCK = 16
WORST_KEPT = 3  # wrong examples of a unit and chunk that are kept as text
DROPS_TOLERATED = 0.05  # a larger share of a unit's rows is warned of
SMALL_JOB = 500  # choices; a job that has no more to score prints no line for each task

_WARNING = "warning: "

Announce = Callable[[str], None]


class Scorer(Protocol):
    """What is needed of `t5_engine.scorer.Scorer`."""

    def score(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """The summed log-probability of the target of each pair, float [n]; tells (done, all) as it goes."""


@dataclass
class Building:
    """A unit while its cases are made: what was counted so far, and the words that all examples share."""

    unit: Unit
    counts: TaskCases = field(default_factory=TaskCases)
    examples: int = 0
    choices: int = 0
    words: tuple[str, ...] | None = None
    failed: str | None = None

    def cases(self, rows: Sequence[Row], most: int) -> Iterator[tuple[Unit, Row, Case]]:
        """The cases of some rows; none beyond `most` in all, none after a row that cannot be read."""
        for row in rows:
            if self.failed is not None or self.examples >= most:
                return
            try:
                case = self.unit.builder.add(self.counts, *row)
            except UserError as error:
                self.failed = str(error)
                return
            if case is not None:
                same = self.examples == 0 or self.words == case.choices
                self.words = case.choices if same else None
                self.examples += 1
                self.choices += len(case.choices)
                yield self.unit, row, case

    def end(self) -> UnitEnd:
        """The unit's last record."""
        counts = self.counts
        return UnitEnd(
            rows=counts.rows,
            inputs_cut=counts.inputs_cut,
            targets_cut=counts.targets_cut,
            several_correct=counts.several_correct,
            duplicate_choices=counts.duplicate_choices,
            same_ids=counts.same_ids,
            dropped=dict(sorted(counts.dropped.items())),
            examples=self.examples,
            choices=self.choices,
            words=self.words,
            shown=counts.shown,
        )


@dataclass
class Chunk:
    """Cases that are scored together, and the units that are complete with them."""

    cases: list[tuple[Unit, Row, Case]] = field(default_factory=list)
    ended: list[Building] = field(default_factory=list)

    def without(self, stored: shards.Done) -> Chunk:
        """What of it is not in the shards."""
        cases = [
            (unit, row, case)
            for unit, row, case in self.cases
            if not stored.has(unit.key, case.example)
        ]
        return Chunk(cases, [one for one in self.ended if one.unit.key not in stored.ended])


def segments(groups: Sequence[Group], plan: Plan, pairs_together: int) -> Iterator[list[Group]]:
    """Consecutive groups of one suite, with about `pairs_together` pairs each; a large group stands alone."""
    segment: list[Group] = []
    size = 0.0
    for group in groups:
        if segment and (size >= pairs_together or segment[0].suite != group.suite):
            yield segment
            segment, size = [], 0.0
        segment.append(group)
        size += sum(plan.sizes[unit.key].choices for unit in group.units)
    if segment:
        yield segment


def chunks(groups: Sequence[Group], pairs_together: int) -> Iterator[Chunk]:
    """All cases of a segment, in chunks that end with the block of rows that fills them.

    A unit that a row breaks ends as `failed`; what was made of it in this chunk is taken out again.
    """
    chunk, size = Chunk(), 0
    for group in groups:
        rows = group.rows()
        building = [Building(unit) for unit in group.units]
        most = group.request.max_examples or len(rows)
        for start in range(0, len(rows), ROWS_A_BLOCK):
            for one in building:
                made = list(one.cases(rows[start : start + ROWS_A_BLOCK], most))
                chunk.cases += made
                size += sum(len(case.pairs) for _, _, case in made)
            if size >= pairs_together:
                yield chunk
                chunk, size = Chunk(), 0
            if all(one.examples >= most or one.failed for one in building):
                break
        broken = {one.unit.key for one in building if one.failed}
        chunk.cases = [made for made in chunk.cases if made[0].key not in broken]
        chunk.ended += building
    yield chunk


class Progress:
    """One bar over all choices of a job on a terminal, and a line for each split that is done."""

    def __init__(self, choices: float, waiting: float, announce: Announce | None) -> None:
        """Opens the bar.

        Args:
          choices: about how many there are.
          waiting: of these, how many no earlier job has scored; only they count for the time that is left.
          announce: gets the lines; None, nothing is shown.
        """
        self._announce = announce or (lambda line: None)
        self._began: float | None = None
        self._all = max(1, round(choices))
        self._done = self._before = min(self._all, max(0, round(choices - waiting)))
        self.is_small = waiting <= SMALL_JOB
        self._bar = tqdm.tqdm(
            total=self._all, initial=self._done, unit="choice", disable=None if announce else True,
            dynamic_ncols=True, leave=False,
        )  # fmt: skip

    def move(self, done: int) -> None:
        """So many choices are done; the total grows where it was estimated too low."""
        if self._began is None:
            self._began = time.monotonic()
        self._done = done
        self._all = max(self._all, done)
        self._bar.total = self._all
        self._bar.update(done - self._bar.n)

    def tell(self, line: str) -> None:
        """A line, with the share that is done and the time that is left."""
        new = self._done - self._before
        left = ""
        if self._began is not None and new:
            seconds = (time.monotonic() - self._began) / new * (self._all - self._done)
            left = f", {seconds:.0f} s left"
        self._announce(f"[{self._done / self._all:4.0%}{left}] {line}")

    @property
    def done(self) -> int:
        """The choices that are done."""
        return self._done

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


@dataclass
class Job:
    """What the scoring of all models of a plan shares.

    Attributes:
      plan: what is to be done.
      stored: what the shards hold: at first what an earlier job left, then also what this one has written.
      writer: gets the new chunks; None in all processes but the first.
      progress: the bar.
      pairs_together: the size of a chunk.
      failed: units that failed on the way, as in `Plan.failed`.
    """

    plan: Plan
    stored: shards.Done
    writer: shards.Writer | None
    progress: Progress
    pairs_together: int
    failed: list[Json] = field(default_factory=list)

    def waiting(self, model: Model) -> list[list[Group]]:
        """The segments of a model that are not complete."""
        groups = [group for group in self.plan.groups if group.model is model]
        found = []
        for segment in segments(groups, self.plan, self.pairs_together):
            units = [unit for group in segment for unit in group.units]
            if any(unit.key not in self.stored.ended for unit in units):
                found.append(segment)
        return found

    def score(self, waiting: Sequence[Sequence[Group]], scorer: Scorer) -> None:
        """Scores what the shards do not hold of some segments, and writes it chunk by chunk."""
        for segment in waiting:
            for chunk in chunks(segment, self.pairs_together):
                left = chunk.without(self.stored)
                if left.cases or any(one.failed is None for one in left.ended):
                    self._score(left, scorer)
                self._tell(chunk.ended)

    def _score(self, chunk: Chunk, scorer: Scorer) -> None:
        begun, pairs = self.progress.done, [pair for *_, case in chunk.cases for pair in case.pairs]

        def progress(done: int, total: int) -> None:
            self.progress.move(begun + len(pairs) * done // max(1, total))

        scores = np.zeros(0)
        if pairs:
            self.progress.move(begun)
            processes.agree()
            with processes.computing():
                scores = np.asarray(scorer.score(pairs, progress=progress), np.float64)
        if scores.shape != (len(pairs),):
            raise ValueError(f"scorer: expected {len(pairs)} scores, got shape {scores.shape}")
        units = [*(made[0] for made in chunk.cases), *(one.unit for one in chunk.ended)]
        about = {key: unit.about() for key, unit in {unit.key: unit for unit in units}.items()}
        lines = list(_lines(chunk, scores))
        if self.writer is not None:
            self.writer.append(lines, about)
        for unit, _, case in chunk.cases:  # another run may ask the same model the same
            self.stored.add(unit.key, case.example)
        self.stored.ended.update(one.unit.key for one in chunk.ended if one.failed is None)
        self.progress.move(begun + len(pairs))

    def _tell(self, ended: Sequence[Building]) -> None:
        """A line for each task, and one for each of its templates that could not be run."""
        tasks: dict[str, list[Building]] = defaultdict(list)
        for one in ended:
            task = one.unit.task
            tasks[f"{one.unit.model.label}: {task.suite} {task.task}"].append(one)
            if one.failed is not None:
                self.failed.append(failure(one.unit.model, task, one.failed))
        for name, units in tasks.items():
            usable = [one for one in units if one.examples and one.failed is None]
            examples = sum(one.examples for one in usable)
            templates = len({one.unit.task.template for one in usable})
            label_sets = len({one.unit.task.label_set for one in usable})
            words = f" with {label_sets} label sets" if label_sets > 1 else ""
            drops = _drops(units)
            if not self.progress.is_small or _WARNING in drops:
                self.progress.tell(
                    f"{name}: {templates} templates{words}, {examples} examples{drops}"
                )
            for one in units:
                if one not in usable:
                    why = one.failed or f"no example can be used{_drops([one])}"
                    words = (
                        ""
                        if one.unit.task.label_set == ORIGINAL
                        else f" | {one.unit.task.label_set}"
                    )
                    self.progress.tell(f"{name} | {one.unit.task.template}{words}: not run: {why}")


def _lines(chunk: Chunk, scores: np.ndarray) -> Iterator[Json]:
    """The lines of a chunk for the shards; `UserError` where a score is no number."""
    start = 0
    wrong: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for place, (unit, _, case) in enumerate(chunk.cases):
        own = scores[start : start + len(case.pairs)]
        start += len(case.pairs)
        if not np.isfinite(own).all():
            raise UserError(
                f"{unit.model.label}: the model gives {own.tolist()} for example {case.example} of "
                f"{unit.task.dataset}: expected numbers; are its weights whole, and its dtype not too narrow?"
            )
        margin = max(s for c, s in enumerate(own) if not case.is_right(c)) - max(
            s for c, s in enumerate(own) if case.is_right(c)
        )
        if margin > 0:
            wrong[unit.key].append((-float(margin), place))
        for choice, (score, (_, targets)) in enumerate(zip(own, case.pairs, strict=True)):
            yield {
                "unit": unit.key,
                "example": case.example,
                "choice": choice,
                "logprob": float(score),
                "tokens": len(targets),
                "right": case.is_right(choice),
            }
    for places in wrong.values():
        for _, place in sorted(places)[:WORST_KEPT]:
            unit, (number, row), case = chunk.cases[place]
            shown = asdict(unit.builder.shown(number, row))
            yield {"unit": unit.key, "example": case.example, "shown": shown}
    for one in chunk.ended:
        if one.failed is None:
            yield {"unit": one.unit.key, "end": asdict(one.end())}


def _drops(units: Sequence[Building]) -> str:
    """What was left out and cut; with a warning where that is more than one row in twenty."""
    parts = []
    dropped = sum((one.counts.dropped for one in units), Counter[str]())
    if dropped:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        share = dropped.total() / sum(one.counts.rows for one in units)
        warning = _WARNING if share > DROPS_TOLERATED else ""
        parts.append(f"{warning}dropped {share:.1%} ({listed})")
    for name in ("inputs_cut", "targets_cut", "duplicate_choices", "same_ids"):
        if number := sum(getattr(one.counts, name) for one in units):
            parts.append(f"{number} {name}")
    return "".join(f"; {part}" for part in parts)
