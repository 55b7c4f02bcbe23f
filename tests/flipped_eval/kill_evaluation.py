"""Kills an evaluation again and again: the results of each job that ends are those of one left alone, to the byte.

python -m tests.flipped_eval.kill_evaluation FOLDER KILLS SEED VOCAB
"""

from __future__ import annotations

import collections
import json
import pathlib
import sys
import time

from flipped_eval import results, run_files, shards
from tests import killing
from tests.flipped_eval.conftest import HashScorer, evaluate

JOB = {
    "methods": ["direct", "flipped"],
    "suites": ["super_glue/rte", "super_glue/cb"],
    "resamples": 20,
    "pairs_together": 60,
    "max_examples": 12,
}
RESULTS = (results.RESULTS, results.PREDICTIONS, results.EXAMPLES, run_files.RUN, run_files.PLAN)


class SlowScorer(HashScorer):
    """Takes as long as the rest of a chunk."""

    def score(self, *arguments, **named):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return super().score(*arguments, **named)


def check(folder: pathlib.Path) -> None:
    """Raises where a result differs, or a score is there twice, or something is left over."""
    alone = folder.parent / "alone"
    for name in RESULTS:
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    assert records(folder) == records(alone)
    assert max(records(folder).values()) == 1
    left = {path.name for path in folder.iterdir()} - {*RESULTS, shards.FOLDER}
    assert not left, left


def records(folder: pathlib.Path) -> collections.Counter[tuple[str, str, int]]:
    """How often each choice's score stands in the complete chunks."""
    found: collections.Counter[tuple[str, str, int]] = collections.Counter()
    for path in sorted((folder / shards.FOLDER).iterdir()):
        pending: collections.Counter[tuple[str, str, int]] = collections.Counter()
        for text in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:  # torn by a kill
                break
            if "chunk" in line:
                found += pending
                pending.clear()
            elif "choice" in line:
                pending[line["unit"], line["example"], line["choice"]] += 1
    return found


if __name__ == "__main__":
    place, kills, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    vocab = sys.argv[4]
    import scipy.stats  # noqa: F401

    import flipped_eval.estimate  # noqa: F401

    told = killing.kill_again_and_again(
        lambda folder: evaluate(folder, vocab, scorer=SlowScorer(), **JOB), check, place, seed=seed, kills=kills
    )  # fmt: skip
    print(json.dumps(told))
