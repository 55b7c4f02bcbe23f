"""Two processes train in a bucket, are killed, resume, and end with the bits of a run in a folder.

KILL_SEED=3 python -m pytest -m slow -s tests/t5_engine/test_bucket_killed.py
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from t5_engine import checkpoints
from t5_engine.reporting import TIMES
from tests import gcs_emulator
from tests.t5_engine import bucket_program

ROOT = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def processes(model_dir: str, log: pathlib.Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of one run; those that still run at the end are killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "tests.t5_engine.bucket_program"
    with log.open("ab") as out:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", program, model_dir, str(port), str(number)],
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )
            for number in range(bucket_program.PROCESSES)
        ]
        try:
            yield started
        finally:
            for process in started:
                process.kill()
                process.wait()


def finish(model_dir: str, log: pathlib.Path) -> None:
    with processes(model_dir, log) as started:
        codes = [process.wait(timeout=900) for process in started]
    assert codes == [0] * len(codes), log.read_text()[-3000:]


@pytest.mark.slow
def test_two_killed_processes_end_with_the_bits_of_a_local_run(
    gcs: gcs_emulator.Emulator, tmp_path: pathlib.Path
) -> None:
    log = tmp_path / "log"
    with processes("gs://bucket/run", log):
        deadline = time.monotonic() + 900
        while not any(checkpoints.COMMIT_MARKER in name for name in gcs.names()):
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
        print(f"KILL_SEED={seed}")
        time.sleep(random.Random(seed).random() * 3)
    left = [name for name in gcs.names() if "checkpoints/" not in name]
    assert "run/.lock" in left
    finish("gs://bucket/run", log)
    finish(str(tmp_path / "run"), log)
    found, expected = (
        checkpoints.load(path) for path in ("gs://bucket/run", str(tmp_path / "run"))
    )
    assert found[2] == expected[2] == bucket_program.STEPS
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    rows = [
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in text.splitlines()
        ]
        for text in (
            gcs.read("run/metrics.jsonl").decode(),
            (tmp_path / "run" / "metrics.jsonl").read_text(),
        )
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == list(
        range(1, bucket_program.STEPS + 1)
    )
    steps = {name.split("/")[2] for name in gcs.names() if "/checkpoints/" in name}
    assert steps == {"10", "12"}
