"""Two processes train in a bucket and are killed, the evaluation too; all ends with the bytes of a run on a disk.

python -m pytest -m slow -s tests/flipped_cli/test_bucket_chain.py    # KILL_SEED=N
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

import jax
import numpy as np
import pytest

from t5_engine import checkpoints
from t5_engine.reporting import TIMES
from tests.gcs_emulator import Emulator

ROOT = pathlib.Path(__file__).resolve().parents[2]
B = "gs://bucket"
STEPS, PROCESSES = 8, 2
MINUTES = 15  # that a command may take on a busy machine
RECIPE = {
    "MIXTURE_OR_TASK_NAME": "flipped.imdb",
    "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 24},
    "TRAIN_STEPS": STEPS,
    "CHECKPOINT_PERIOD": 2,
    "KEEP_CHECKPOINTS": 2,
    "BATCH_SIZE": 4,
    "LOG_PERIOD": 1,
    "T5Config.vocab_size": 512,
    "PROCESS_COUNT": PROCESSES,
}


def start(words: list[str], log: pathlib.Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=out, stderr=out)


def training(model_dir: str, vocabulary: str, log: pathlib.Path) -> list[subprocess.Popen[bytes]]:
    """The processes of one run of train.py."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MODEL_DIR": model_dir, "VOCAB_PATH": vocabulary}
    settings = {**RECIPE, **place, "COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    words = [
        "train.py",
        *(
            f"--gin_file=gin/{name}.gin"
            for name in ("models/tiny", "recipes/flipped", "runs/train")
        ),
    ]
    words += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    return [start([*words, f"--gin.PROCESS_ID={n}"], log) for n in range(PROCESSES)]


def evaluation(checkpoint: str, output: str, log: pathlib.Path) -> subprocess.Popen[bytes]:
    words = [
        "--checkpoint",
        checkpoint,
        "--output",
        output,
        "--suite",
        "labels",
        "--max_examples",
        "200",
    ]
    return start(["-m", "flipped_cli", "eval", *words], log)


def finish(processes: list[subprocess.Popen[bytes]], log: pathlib.Path) -> None:
    codes = [process.wait(timeout=60 * MINUTES) for process in processes]
    assert codes == [0] * len(codes), log.read_text()[-3000:]


def kill_after(
    processes: list[subprocess.Popen[bytes]], gcs: Emulator, sign: str, seconds: float
) -> None:
    """Kills the processes some seconds after an object with `sign` in its name is there."""
    deadline = time.monotonic() + 60 * MINUTES
    while not any(sign in name for name in gcs.names()):
        assert time.monotonic() < deadline and all(one.poll() is None for one in processes)
        time.sleep(0.02)
    time.sleep(seconds)
    for process in processes:
        process.kill()
        process.wait()


def rows(log: bytes) -> list[dict[str, object]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in log.splitlines()
    ]


@pytest.mark.slow
def test_killed_training_and_evaluation_in_a_bucket_equal_those_on_a_disk(
    gcs: Emulator,
    tmp_path: pathlib.Path,
    small_vocab_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    gcs.write("small.model", pathlib.Path(small_vocab_path).read_bytes())
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"KILL_SEED={seed}")
    draw, log = random.Random(seed), tmp_path / "log"

    kill_after(
        training(f"{B}/run", f"{B}/small.model", log),
        gcs,
        checkpoints.COMMIT_MARKER,
        draw.random() * 2,
    )
    killed = [name for name in gcs.names() if name.startswith("run/")]
    assert "run/.lock" in killed and not any(f"/checkpoints/{STEPS}/" in name for name in killed)
    finish(training(f"{B}/run", f"{B}/small.model", log), log)
    finish(training(str(tmp_path / "run"), small_vocab_path, log), log)
    found, expected = (checkpoints.load(path) for path in (f"{B}/run", str(tmp_path / "run")))
    assert found[2] == expected[2] == STEPS
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    metrics = rows(gcs.read("run/metrics.jsonl"))
    assert metrics == rows((tmp_path / "run" / "metrics.jsonl").read_bytes())
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))

    kill_after([evaluation(f"{B}/run", f"{B}/out", log)], gcs, "out/scores/", draw.random() / 20)
    assert "out/results.json" not in gcs.names()
    finish([evaluation(f"{B}/run", f"{B}/out", log)], log)
    finish([evaluation(str(tmp_path / "run"), str(tmp_path / "out"), log)], log)
    for name in ("results.json", "predictions.jsonl"):
        assert gcs.read(f"out/{name}") == (tmp_path / "out" / name).read_bytes(), name
    finish(
        [start(["-m", "flipped_cli", "report", f"{B}/out", "--output", f"{B}/report"], log)], log
    )
    finish([start(["-m", "flipped_cli", "ckpt", "verify", f"{B}/run"], log)], log)
    assert "report/report.html" in gcs.names() and not (ROOT / "gs:").exists()
