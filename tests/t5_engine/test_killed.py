"""A run that is killed at any moment and started again ends as if nothing had been."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from t5_engine import checkpoints
from t5_engine.reporting import TIMES
from tests.t5_engine import killed_program

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the final state of a run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, killed_program.run(folder)


def start(folder, pause=0.05):
    command = [sys.executable, "-m", "tests.t5_engine.killed_program", str(folder), str(pause)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_ids(folder):
    file = folder / "ids.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(folder, reads, process):
    """Returns when the program has read so many batches, or has ended."""
    while len(read_ids(folder)) < reads and process.poll() is None:
        time.sleep(0.02)


def kill_somewhere(folder, reads, draw):
    """Starts the program and kills it some milliseconds after so many more batches; whether it was still running."""
    process = start(folder)
    wait_for(folder, len(read_ids(folder)) + reads, process)
    time.sleep(draw.random() * 0.2)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def assert_as_undisturbed(folder, undisturbed):
    expected_folder, state = undisturbed
    params, _, step = checkpoints.load(folder)
    assert step == killed_program.STEPS
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    rows, expected = (
        [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        for where in (folder, expected_folder)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert {k: v for k, v in row.items() if k not in TIMES} == {
            k: v for k, v in wanted.items() if k not in TIMES
        }
    read = collections.defaultdict(set)
    for step, ids in read_ids(folder):
        read[step].add(tuple(ids))
    assert {step: {tuple(ids)} for step, ids in read_ids(expected_folder)} == read


def test_killed_twice_and_started_again(undisturbed, tmp_path):
    draw = random.Random(0)
    assert kill_somewhere(tmp_path, 14, draw)
    assert kill_somewhere(tmp_path, 10, draw)
    process = start(tmp_path, 0)
    assert process.wait() == 0
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_twenty_times(undisturbed, tmp_path):
    """Twenty kills, in as many runs as it takes: each run goes a few steps further."""
    draw = random.Random(1)
    kills = runs = 0
    while kills < 20:
        runs += 1
        folder = tmp_path / str(runs)
        while kill_somewhere(folder, draw.randint(1, 20), draw):
            kills += 1
            if kills >= 20:
                assert start(folder, 0).wait() == 0
                break
        assert_as_undisturbed(folder, undisturbed)


def test_sigterm_saves_and_ends_with_zero_and_a_word(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, 8, process)
    process.terminate()
    asked = time.monotonic()
    _, told = process.communicate()
    assert process.returncode == 0 and time.monotonic() - asked < 20
    step = checkpoints.Checkpoints(tmp_path).newest
    assert step is not None and 7 <= step < killed_program.STEPS
    assert f"asked to end (SIGTERM); step {step} of {killed_program.STEPS} is saved in" in told
    assert start(tmp_path, 0).wait() == 0
    assert_as_undisturbed(tmp_path, undisturbed)
