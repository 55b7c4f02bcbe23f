"""A run that is killed at any moment and started again ends as if nothing had been."""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from flipped_core import locks
from t5_engine import checkpoints
from tests.t5_engine import killed_program
from tests.t5_engine.killed_run import assert_same_run, read_ids

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the final parameters of a run that nobody kills, in a process of its own like all others."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder, 0).wait() == 0
    return folder, checkpoints.load(folder)[0]


def start(folder, pause=0.05, **how):
    command = [sys.executable, "-m", "tests.t5_engine.killed_program", str(folder), str(pause)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def wait_for(folder, reads, process):
    """Returns when the program has read so many batches, or has ended."""
    while len(read_ids(folder)) < reads and process.poll() is None:
        time.sleep(0.02)


def kill_somewhere(folder, reads, draw):
    """Starts the program and kills it some milliseconds after so many more batches; whether it was still running."""
    process = start(folder)
    wait_for(folder, len(read_ids(folder)) + killed_program.SAMPLE + reads, process)
    time.sleep(draw.random() * 0.2)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def assert_as_undisturbed(folder, undisturbed):
    expected_folder, params = undisturbed
    assert_same_run(folder, expected_folder, params)


def test_killed_twice_and_started_again(undisturbed, tmp_path):
    draw = random.Random(0)
    assert kill_somewhere(tmp_path, 5, draw)
    assert kill_somewhere(tmp_path, 7, draw)
    process = start(tmp_path, 0)
    assert process.wait() == 0
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_a_hundred_times(tmp_path):
    """By the clock and at file operations, anywhere from the first line to the last; see `killing`."""
    seed = int(os.environ.get("KILL_SEED", "1"))
    print(f"seed {seed} (KILL_SEED)")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "tests.t5_engine.kill_training"]
    done = subprocess.run(
        [*command, str(tmp_path / "runs"), "100", str(seed)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, "see stderr, which has the figures after each job"
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == 100 and min(told["by_clock"], told["at_file_operation"]) > 20


@pytest.mark.parametrize("name, code", [("SIGTERM", 0), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_saves_and_says_so(undisturbed, tmp_path, name, code):
    process = start(tmp_path)
    wait_for(tmp_path, killed_program.SAMPLE + 4, process)
    process.send_signal(signal.Signals[name])
    asked = time.monotonic()
    _, told = process.communicate()
    assert process.returncode == code and time.monotonic() - asked < 20
    step = checkpoints.Checkpoints(tmp_path).newest
    assert step is not None and killed_program.SAMPLE + 3 <= step < killed_program.STEPS
    cause = "Ctrl-C" if name == "SIGINT" else name
    assert f"stopped by {cause}; step {step} of {killed_program.STEPS} is saved in" in told
    assert "Traceback" not in told
    assert not (tmp_path / locks.FILE).exists()
    if name == "SIGINT":
        assert start(tmp_path, 0).wait() == 0
        assert_as_undisturbed(tmp_path, undisturbed)


def test_a_second_signal_ends_at_once_and_says_what_is_kept(tmp_path):
    process = start(tmp_path, pause=2.0)  # in the batch's pause
    wait_for(tmp_path, killed_program.SAMPLE + 1, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130 and time.monotonic() - asked < 20
    last = told.splitlines()[-1]
    assert last.startswith("interrupted (Ctrl-C): ") and "Traceback" not in told
    assert re.search(r"checkpoints/1[25] is complete and kept$|no checkpoint is complete in ", last)


def test_a_disk_that_takes_no_more_is_one_line_and_the_run_resumes(undisturbed, tmp_path):
    """A limit on the size of files refuses what a full disk refuses: Python's writes and TensorStore's."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    process = start(tmp_path, 0, preexec_fn=limit)
    _, told = process.communicate()
    assert process.returncode == 2 and "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0] == told.splitlines()[-1]
    assert lines[0].startswith(
        f"error: cannot write the run in {tmp_path}: {tmp_path}/checkpoints/"
    )
    assert ": File too large; no checkpoint is complete in" in lines[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert start(tmp_path, 0).wait() == 0
    assert_as_undisturbed(tmp_path, undisturbed)


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    first = start(tmp_path)
    wait_for(tmp_path, 1, first)
    second = start(tmp_path)
    _, told = second.communicate()
    assert second.returncode == 2
    assert told.startswith(f"error: model_dir {tmp_path} is in use by process {first.pid} on ")
    assert told.count("\n") == 1
    first.kill()
    first.communicate()
