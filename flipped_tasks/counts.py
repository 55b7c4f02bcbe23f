"""What the tasks of a mixture left out and cut, told in lines and warned of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import seqio

from flipped_tasks.seqio_tasks import RowTask

TOLERATED = 0.05  # a larger share of dropped examples is warned of
# Counted, but the example is used.
CUTS = ("inputs_cut", "targets_cut", "one_choice", "wrong_choice_same_ids")


def lines(mixture: str, split: str = "train") -> list[str]:
    """One line for each task of a mixture that dropped or cut something so far in this process.

    An example that a template drops and another renders counts as given, and as a drop.

    Args:
      mixture: the name of a mixture or task in SeqIO's registries.
      split: whose unlabelled rows are counted.
    """
    provider = seqio.get_mixture_or_task(mixture)
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    told = []
    for task in tasks:
        if isinstance(task, RowTask) and split in task.splits:
            unlabelled = task.rows.payloads(split).dropped
            rows = task.rows.num_input_examples(split) + sum(unlabelled.values())
            told += line(task.name, task.counts, task.given, unlabelled, rows)
    return told


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
