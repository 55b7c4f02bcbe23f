"""What tasks leave out and cut, by reason: counted, shown in lines and warned of."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping

TOLERATED = 0.05  # a larger share of dropped examples is warned of
# Counted, but the example is used.
CUTS = ("inputs_cut", "targets_cut", "one_choice", "wrong_choice_same_ids")


@dataclasses.dataclass
class Tally:
    """What became of a task's examples so far in this process; several threads may count.

    Attributes:
      reasons: reason → how often something was left out or cut.
      read: positions that were tried.
      given: examples that were made.
    """

    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    read: int = 0
    given: int = 0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def note(self, reason: str) -> None:
        """Something was left out or cut."""
        with self._lock:
            self.reasons[reason] += 1

    def tried(self, made: bool) -> int:
        """A position was read, and an example made or not; returns how many positions were read by now."""
        with self._lock:
            self.read += 1
            self.given += made
            return self.read


@dataclasses.dataclass(frozen=True)
class TaskCounts:
    """What became of the rows of one task so far in this process.

    Attributes:
      task: its name.
      rows: labelled and unlabelled rows.
      unlabelled: reason -> rows that were left out before.
      given: examples that were used.
      dropped: reason -> examples that were dropped.
      cut: reason -> examples that were truncated or lack something, and were used.
    """

    task: str
    rows: int
    unlabelled: Mapping[str, int]
    given: int
    dropped: Mapping[str, int]
    cut: Mapping[str, int]

    @property
    def is_warned(self) -> bool:
        """Whether a larger share than `TOLERATED` was lost."""
        dropped, unlabelled = sum(self.dropped.values()), sum(self.unlabelled.values())
        share = dropped / max(1, dropped + self.given)
        return max(share, unlabelled / max(1, self.rows)) > TOLERATED


def of_task(
    name: str, counts: Mapping[str, int], given: int, unlabelled: Mapping[str, int], rows: int
) -> TaskCounts:
    """The counts of one task, what was cut apart from what was dropped."""
    return TaskCounts(
        task=name,
        rows=rows,
        unlabelled=dict(unlabelled),
        given=given,
        dropped={key: n for key, n in counts.items() if key not in CUTS},
        cut={key: n for key, n in counts.items() if key in CUTS},
    )


def line(
    name: str, counts: Mapping[str, int], given: int, unlabelled: Mapping[str, int], rows: int
) -> list[str]:
    """The counts of one task as a line, for warnings while it runs; [] where there is nothing to say.

    Args:
      counts: reason → examples that were dropped or cut.
      given: examples that were used.
      unlabelled: reason → rows that were left out before.
      rows: labelled and unlabelled rows.
    """
    found = of_task(name, counts, given, unlabelled, rows)
    parts = []
    if found.unlabelled:
        lost = sum(unlabelled.values()) / max(1, rows)
        parts.append(f"{listed(found.unlabelled)} of {rows} rows ({lost:.1%})")
    if found.dropped:
        dropped = sum(found.dropped.values())
        share = dropped / max(1, dropped + given)
        parts.append(f"dropped {share:.1%} ({listed(found.dropped)}; {given} given)")
    if found.cut:
        parts.append(f"of {given} given: {listed(found.cut)}")
    if not parts:
        return []
    return [f"{'warning: ' if found.is_warned else ''}{name}: {'; '.join(parts)}"]


def listed(counts: Mapping[str, int]) -> str:
    """Such as "3 empty_target, 1 no_choices"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
