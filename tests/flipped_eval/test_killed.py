"""A job that SIGKILL ends, wherever it ends it, goes on with the rest and comes to the same bytes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Runs the job in children, each of which kills itself at one place, and resumes it each time. One process that
# forks spares the imports.
PROGRAM = """
import json, os, pathlib, signal, sys
import flipped_eval.results
from tests.flipped_eval.conftest import HashScorer, evaluate

vocab, folder = sys.argv[1], pathlib.Path(sys.argv[2])
job = {"methods": ["direct", "flipped"], "suites": ["super_glue/rte", "super_glue/cb"], "resamples": 20,
       "pairs_together": 100, "max_examples": 12}

def dies(owner, name, times, before):
    real, left = getattr(owner, name), [times]
    def patched(*args, **named):
        left[0] -= 1
        if before and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **named)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, patched)

def kill(place):
    kind, times = place
    if kind == "score":
        dies(HashScorer, "score", times, False)
    elif kind == "torn":  # the operating system has taken half of what was to be written
        os.fsync, real = (lambda handle: None), os.fsync
        def half(handle):
            left[0] -= 1
            if not left[0]:
                os.ftruncate(handle, os.fstat(handle).st_size - 37)
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)
        left = [times]
        os.fsync = half
    else:
        dies(os, kind, times, True)

whole = HashScorer()
evaluate(folder / "whole", vocab, scorer=whole, **job)
found = []
places = [("score", 1), ("score", 4), ("fsync", 4), ("torn", 5), ("replace", 2), ("replace", 6)]
for number, place in enumerate(places):
    child = os.fork()
    if not child:
        kill(place)
        evaluate(folder / str(number), vocab, scorer=HashScorer(), **job)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    rest = HashScorer()
    evaluate(folder / str(number), vocab, scorer=rest, **job)
    last = whole.calls[len(whole.calls) - len(rest.calls):]
    found.append([os.WTERMSIG(status), len(rest.calls), rest.calls == last])
print(json.dumps({"calls": len(whole.calls), "found": found}))
"""


def test_a_job_killed_anywhere_goes_on(tmp_path, small_vocab_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, small_vocab_path, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert [signal for signal, *_ in told["found"]] == [9] * 6
    assert all(same for *_, same in told["found"])
    calls = told["calls"]
    assert [left for _, left, _ in told["found"][:2]] == [calls, calls - 3], (
        "only the last chunk again"
    )
    assert told["found"][5][1] == 0, "all was scored"
    for name in ("results.json", "predictions.jsonl", "examples.json"):
        files = {
            (tmp_path / folder / name).read_bytes() for folder in ["whole", *map(str, range(6))]
        }
        assert len(files) == 1, name


@pytest.mark.slow
def test_a_job_killed_a_hundred_times(tmp_path, small_vocab_path):
    """By the clock and at file operations, anywhere from the first line to the last; see `killing`."""
    seed = int(os.environ.get("KILL_SEED", "1"))
    print(f"seed {seed} (KILL_SEED)")
    command = [sys.executable, "-W", "ignore", "-m", "tests.flipped_eval.kill_evaluation"]
    done = subprocess.run(
        [*command, str(tmp_path / "jobs"), "100", str(seed), small_vocab_path],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, "see stderr, which has the figures after each job"
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == 100 and min(told["by_clock"], told["at_file_operation"]) > 20
