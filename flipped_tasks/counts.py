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


def line(
    name: str, counts: Mapping[str, int], given: int, unlabelled: Mapping[str, int], rows: int
) -> list[str]:
    """The line of one task, [] where there is nothing to tell; it begins with 'warning' above 5%.

    Args:
      counts: reason → examples that were dropped or cut.
      given: examples that were used.
      unlabelled: reason → rows that were left out before.
      rows: labelled and unlabelled rows.
    """
    dropped = Counter({key: n for key, n in counts.items() if key not in CUTS})
    cut = Counter({key: n for key, n in counts.items() if key in CUTS})
    parts = []
    share = dropped.total() / max(1, dropped.total() + given)
    lost = sum(unlabelled.values()) / max(1, rows)
    if unlabelled:
        parts.append(f"{_listed(unlabelled)} of {rows} rows ({lost:.1%})")
    if dropped:
        parts.append(f"dropped {share:.1%} ({_listed(dropped)}; {given} given)")
    if cut:
        parts.append(f"of {given} given: {_listed(cut)}")
    if not parts:
        return []
    head = "warning: " if max(share, lost) > TOLERATED else ""
    return [f"{head}{name}: {'; '.join(parts)}"]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
