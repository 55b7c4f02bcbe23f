"""`train` end to end on made-up rows: it writes, resumes, and refuses what does not belong together."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from flipped_cli import gin_config, training
from flipped_cli.runs import TrainRun
from flipped_core.errors import UserError
from flipped_tasks.embedded.vocabulary import train_vocabulary
from flipped_tasks.embedded.warmup import warmup_texts

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ("gin/models/tiny.gin", "gin/recipes/direct.gin", "gin/runs/train.gin")


@pytest.fixture(scope="module")
def vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)


def run(model_dir: pathlib.Path | str, vocab_path: str, **changes: Any) -> Any:
    values = {
        "MODEL_DIR": str(model_dir),
        "VOCAB_PATH": vocab_path,
        "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8},
        "MIXTURE_OR_TASK_NAME": "direct.imdb",  # one dataset opens faster than the mixture of 20
        "BATCH_SIZE": 4,
        "LOG_PERIOD": 1,
        "T5Config.vocab_size": 512,
        "T5Config.emb_dim": 16,
        **changes,
    }
    bindings = tuple((name, repr(value)) for name, value in values.items())
    gin_config.load(gin_config.Arguments(FILES, bindings), TrainRun)
    return training.train(gin_config.make(TrainRun), gin_config.operative())


def test_train_resume_refuse(
    tmp_path: pathlib.Path, vocab_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert int(run(folder, vocab_path, TRAIN_STEPS=2).step) == 2
    said = capsys.readouterr()
    assert "token accuracy 0." in said.err
    assert "4 examples per step, 2 steps: 8 examples" in said.out
    assert "warning: 1 of 1 datasets get less than one epoch: imdb (" in said.out
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert about["recipe"]["mixture"] == "direct.imdb"
    assert about["recipe"]["model"]["emb_dim"] == 16
    assert about["versions"]["jax"]
    assert "TrainRun.batch_size" in (folder / "operative_config.gin").read_text(encoding="utf-8")

    # How it is carried out may change on the way.
    other: dict[str, Any] = {"MICROBATCHES": 2, "REMAT": "full", "FSDP": True, "TRAIN_STEPS": 3}
    assert int(run(folder, vocab_path, **other).step) == 3
    assert f"resuming from step 2 of 3 in {folder}" in capsys.readouterr().out
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]

    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already at step 3: expected at least that, got 2"):
        run(folder, vocab_path, TRAIN_STEPS=2)
    assert int(run(folder, vocab_path, TRAIN_STEPS=3, LOG_PERIOD=9).step) == 3  # nothing to do
    said_again = capsys.readouterr().out
    assert "direct.imdb: already complete, nothing was trained: step 3 of 3" in said_again
    assert "examples per step" not in said_again and "next: flipped eval" in said_again
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert (folder / "spiece.model").read_bytes() == pathlib.Path(vocab_path).read_bytes()

    with pytest.raises(UserError, match="holds another run: its batch_size is 4, got 8") as caught:
        run(folder, vocab_path, TRAIN_STEPS=4, BATCH_SIZE=8)
    assert "\n" not in str(caught.value)

    changes: dict[str, Any] = {"INITIAL_CHECKPOINT_PATH": str(folder), "T5Config.emb_dim": 32}
    with pytest.raises(UserError, match="emb_dim is 16 there and 32 here") as caught:
        run(tmp_path / "wider", vocab_path, TRAIN_STEPS=3, **changes)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_does_not_fit_the_model(tmp_path: pathlib.Path, vocab_path: str) -> None:
    with pytest.raises(UserError, match="T5Config.vocab_size: expected at least 500, the ids of"):
        run(tmp_path / "run", vocab_path, **{"T5Config.vocab_size": 256})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [9, 10])
def test_a_schedule_without_steps_to_decay_in_writes_nothing(
    tmp_path: pathlib.Path, vocab_path: str, decay: str, steps: int
) -> None:
    folder = tmp_path / "run"
    expected = r"TRAIN_STEPS: expected more than WARMUP_STEPS \(10\), since DECAY is"
    with pytest.raises(UserError, match=expected):
        run(folder, vocab_path, TRAIN_STEPS=steps, WARMUP_STEPS=10, DECAY=decay)
    assert not folder.exists()


@pytest.mark.parametrize("address", ["gs:/bucket/run", "s3://bucket/run"])
def test_other_schemes_are_no_folders_to_train_in(
    tmp_path: pathlib.Path, vocab_path: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """`gs:/` is what `pathlib` makes of `gs://`. Nothing may be written: a folder named `gs:`, for instance."""
    monkeypatch.chdir(tmp_path)
    expected = (
        f"MODEL_DIR: expected a path, got '{address}'; expected a local path or gs://BUCKET/NAME"
    )
    with pytest.raises(UserError, match=expected):
        run(address, vocab_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("example_id", "task"),
    [
        (b"imdb/train/17/Movie Expressed Sentiment", "imdb"),
        (b"super_glue/rte/train/3/GPT-3 style", "super_glue/rte"),
        (b"story_cloze/2016/validation/5/a/9/b", "story_cloze/2016"),
        (b"something else", "something else"),
    ],
)
def test_tasks_of_example_ids(example_id: bytes, task: str) -> None:
    assert training.task_of(example_id) == task


def command(folder: pathlib.Path, vocab_path: str) -> list[str]:
    values = {
        "MODEL_DIR": folder,
        "VOCAB_PATH": vocab_path,
        "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8},
        "MIXTURE_OR_TASK_NAME": "direct.imdb",
        "BATCH_SIZE": 4,
        "TRAIN_STEPS": 60,
        "CHECKPOINT_PERIOD": 7,
        "LOG_PERIOD": 2,
        "T5Config.vocab_size": 512,
        "T5Config.emb_dim": 16,
    }
    files = [f"--gin_file={name}" for name in FILES]
    bindings = [f"--gin.{name}={value}" for name, value in values.items()]
    return [sys.executable, str(ROOT / "train.py"), *files, *bindings]


@pytest.mark.slow
def test_the_command_killed_and_ended_goes_on_to_the_same_bits(
    tmp_path: pathlib.Path, vocab_path: str
) -> None:
    """SIGKILL once and SIGTERM once, each in the middle; the second says so and its code is 0."""
    import jax
    import numpy as np

    from t5_engine import checkpoints
    from t5_engine.reporting import TIMES

    def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
        file = folder / "metrics.jsonl"
        found = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in found]

    def start_and_send(sent: signal.Signals, after: int) -> tuple[int, str]:
        process = subprocess.Popen(
            command(parted, vocab_path),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        while len(rows(parted)) < after and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(sent)
        told = process.communicate()[1]
        return process.returncode, told

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    subprocess.run(command(whole, vocab_path), check=True, capture_output=True)
    assert start_and_send(signal.SIGKILL, 9)[0] == -signal.SIGKILL
    code, told = start_and_send(signal.SIGTERM, 18)
    assert code == 0 and "asked to end (SIGTERM)" in told
    subprocess.run(command(parted, vocab_path), check=True, capture_output=True)

    states = [checkpoints.load(folder)[0] for folder in (whole, parted)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    timeless = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in rows(folder)]
        for folder in (whole, parted)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 30
