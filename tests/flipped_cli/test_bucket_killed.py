"""The whole chain in a bucket, killed on the way: train.py in two processes, `flipped eval`, report, verify.

KILL_SEED=3 python -m pytest -m slow -s tests/flipped_cli/test_bucket_killed.py
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest

from t5_engine import checkpoints
from t5_engine.reporting import TIMES
from tests import gcs_emulator

ROOT = pathlib.Path(__file__).resolve().parents[2]
MINIATURE = ROOT / "flipped_world" / "pretrained"
PROCESSES, STEPS = 2, 8
SETTINGS = {
    "MIXTURE_OR_TASK_NAME": "flipped.imdb",
    "TRAIN_STEPS": STEPS,
    "WARMUP_STEPS": 1,
    "CHECKPOINT_PERIOD": 2,
    "KEEP_CHECKPOINTS": 2,
    "LOG_PERIOD": 1,
    "BATCH_SIZE": 4,
    "LENGTH_BUCKETS": None,
    "LENGTH_WINDOW": 1,
    "DROPOUT_RATE": 0.1,
    "COORDINATOR_TIMEOUT": 300,
}
EVALUATION = (
    *("--suite", "super_glue/rte", "super_glue/cb", "--max_examples", "8"),
    *("--methods", "direct", "flipped"),
)


def train(folder: str, miniature: str, cache: pathlib.Path) -> list[list[str]]:
    """The command of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    macros = SETTINGS | {
        "MODEL_DIR": f"{folder}/run",
        "INITIAL_CHECKPOINT_PATH": miniature,
        "VOCAB_PATH": f"{miniature}/spiece.model",
        "COMPILATION_CACHE_DIR": str(cache),
        "COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "PROCESS_COUNT": PROCESSES,
    }
    return [
        [sys.executable, "train.py", "--gin_file=gin/runs/demo_flipped.gin"]
        + [f"--gin.{name}={value!r}" for name, value in (macros | {"PROCESS_ID": n}).items()]
        for n in range(PROCESSES)
    ]


def evaluate(folder: str, cache: pathlib.Path) -> list[list[str]]:
    """`flipped eval` in chunks of few pairs."""
    program = (sys.executable, "-m", "tests.flipped_eval.job_program", "none", "0", "eval")
    paths = ("--checkpoint", f"{folder}/run", "--output", f"{folder}/out")
    return [[*program, *paths, *EVALUATION, "--compilation_cache_dir", str(cache)]]


def start(commands: Sequence[Sequence[str]], log: pathlib.Path) -> list[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        return [subprocess.Popen(c, cwd=ROOT, stdout=out, stderr=out) for c in commands]


def finish(commands: Sequence[Sequence[str]], log: pathlib.Path) -> None:
    processes = start(commands, log)
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * len(codes), log.read_text()[-3000:]


def kill_after(
    seen: Callable[[], bool],
    seconds: float,
    commands: Sequence[Sequence[str]],
    log: pathlib.Path,
) -> None:
    """SIGKILL so many seconds after the first sign of progress."""
    processes = start(commands, log)
    try:
        deadline = time.monotonic() + 500
        while not seen():
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            assert all(process.poll() is None for process in processes), log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(seconds)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def metrics(text: str) -> list[dict[str, object]]:
    """The rows without what depends on the clock."""
    rows = [json.loads(line) for line in text.splitlines()]
    return [{name: row[name] for name in row if name not in TIMES} for row in rows]


@pytest.mark.slow
def test_a_killed_run_and_a_killed_evaluation_end_with_the_bytes_of_local_ones(
    gcs: gcs_emulator.Emulator, tmp_path: pathlib.Path
) -> None:
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"KILL_SEED={seed}")
    draw, log, cache = random.Random(seed), tmp_path / "log", tmp_path / "xla"
    for file in MINIATURE.iterdir():
        gcs.write(f"miniature/{file.name}", file.read_bytes())
    local, bucket = str(tmp_path), "gs://bucket"
    finish(train(local, str(MINIATURE), cache), log)
    finish(evaluate(local, cache), log)

    marker = f"/{checkpoints.COMMIT_MARKER}"
    for least in (1, 2):  # checkpoints that were completed before the kill
        kill_after(
            lambda: sum(n.endswith(marker) and n.count("/") == 3 for n in gcs.names()) >= least,  # noqa: B023
            draw.random() * 2,
            train(bucket, f"{bucket}/miniature", cache),
            log,
        )
        assert "run/.lock" in gcs.names()
    finish(train(bucket, f"{bucket}/miniature", cache), log)
    found, expected = (checkpoints.load(f"{folder}/run") for folder in (bucket, local))
    assert found[2] == expected[2] == STEPS
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    rows = metrics(gcs.read("run/metrics.jsonl").decode())
    assert rows == metrics((tmp_path / "run" / "metrics.jsonl").read_text())
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert {n.split("/")[2] for n in gcs.names() if n.startswith("run/checkpoints/")} == {"6", "8"}

    for least in (1, 2):  # shards that were begun before the kill
        kill_after(
            lambda: sum(n.startswith("out/scores/") for n in gcs.names()) >= least,  # noqa: B023
            draw.random(),
            evaluate(bucket, cache),
            log,
        )
        print(f"killed with results: {'out/results.json' in gcs.names()}")
    finish(evaluate(bucket, cache), log)
    assert "out/.lock" not in gcs.names()
    for name in ("results.json", "predictions.jsonl", "examples.json"):
        assert gcs.read(f"out/{name}") == (tmp_path / "out" / name).read_bytes(), name

    flipped = (sys.executable, "-m", "flipped_cli")
    for folder in (bucket, local):
        finish([[*flipped, "report", f"{folder}/out", "--output", f"{folder}/report"]], log)
        finish([[*flipped, "ckpt", "verify", f"{folder}/run"]], log)
    for name in ("report.md", "report.json"):
        assert gcs.read(f"report/{name}") == (tmp_path / "report" / name).read_bytes(), name
    assert f"{bucket}/run/checkpoints/{STEPS}: flipped," in log.read_text()
    assert not (ROOT / "gs:").exists()
