"""What a job says is left to do: only what no earlier job has scored."""

from __future__ import annotations

import functools
from typing import Any

from flipped_core.paths import to_path
from flipped_eval import jobs, scoring, shards

RTE = "super_glue/rte:MNLI crowdsource"


def test_the_time_that_is_left_counts_only_what_is_left(monkeypatch):
    """Of 1,000 choices an earlier job scored 900; half of the rest took 10 s, so 10 s are left."""
    now = iter((100.0, 110.0))
    monkeypatch.setattr(scoring.time, "monotonic", lambda: next(now))
    told: list[str] = []
    progress = scoring.Progress(1000, 100, told.append)
    progress.move(900)
    progress.move(950)
    progress.tell("line")
    progress.close()
    assert told == ["[ 95%, 10 s left] line"]


def test_what_is_left_of_a_plan_leaves_out_single_examples_that_are_scored(tmp_path, run_job):
    """A job that was stopped within a unit: the plan of the next one counts the other examples only."""
    told: list[Any] = []
    request = {"suites": [RTE], "max_examples": 12}
    run_job(tmp_path, tell_plan=told.append, **request)
    whole = told[0].waiting
    done = shards.done(to_path(tmp_path))
    [unit] = done.ended
    half = shards.Done({unit: set(sorted(done.examples.get(unit) or map(str, range(12)))[:6])})
    left = told[0].plan.total(functools.partial(jobs._left, told[0].plan, half))
    assert (left.examples, left.choices) == (whole.examples / 2, whole.choices / 2)
    nothing = told[0].plan.total(functools.partial(jobs._left, told[0].plan, done))
    assert nothing.templates == 0
