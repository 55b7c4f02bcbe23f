"""An evaluation in a bucket that SIGKILL ends at random moments: its results have the bytes of a job in a folder.

KILL_SEED=3 python -m pytest -m slow -s tests/flipped_eval/test_bucket_killed.py
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from tests.gcs_emulator import Emulator

ROOT = pathlib.Path(__file__).resolve().parents[2]
KILLS = 12


@pytest.mark.slow
def test_a_job_in_a_bucket_is_killed_and_resumed(
    gcs: Emulator,
    tmp_path: pathlib.Path,
    small_vocab_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"KILL_SEED={seed}")
    module = "tests.flipped_eval.kill_bucket_evaluation"
    jobs = ("gs://bucket/jobs", str(KILLS), str(seed), small_vocab_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, str(tmp_path), *jobs],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, "see stderr, which has the figures after each job"
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == KILLS and told["with_scores"] >= KILLS // 4
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for source, target in (
        ("gs://bucket/jobs/job_0", "gs://bucket/report"),
        (str(tmp_path / "alone"), str(tmp_path / "report")),
    ):
        said = CliRunner().invoke(main, ["report", source, "--output", target])
        assert said.exit_code == 0, said.output
    for name in ("report.md", "report.json"):
        assert gcs.read(f"report/{name}") == (tmp_path / "report" / name).read_bytes()
    assert list(here.iterdir()) == []
