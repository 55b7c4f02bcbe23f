"""A run without a local disk: every path of training, evaluation, report and conversion is in a bucket."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from flipped_cli import gin_config, training
from flipped_cli.main import main
from flipped_cli.runs import TrainRun
from t5_engine import exchange
from tests.gcs_emulator import BUCKET, Emulator
from tests.t5_engine import conftest

assert conftest.FAST_COMPILATION, "importing it makes XLA compile fast"

B = "gs://bucket"
FILES = ("gin/models/tiny.gin", "gin/recipes/flipped.gin", "gin/runs/train.gin")
SETTINGS = {
    "MODEL_DIR": f"{B}/run",
    "VOCAB_PATH": f"{B}/vocabulary/small.model",
    "INITIAL_CHECKPOINT_PATH": f"{B}/start",  # the folder above a step of T5X
    "DATA_DIR": f"{B}/data",
    "MIXTURE_OR_TASK_NAME": "flipped.imdb",
    "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 24},
    "TRAIN_STEPS": 3,
    "CHECKPOINT_PERIOD": 2,
    "BATCH_SIZE": 4,
    "LOG_PERIOD": 1,
    "PROFILE": (1, 1),
    "T5Config.vocab_size": 512,
}
LABEL_SETS = """
- dataset: imdb
  template: Reviewer Enjoyment Yes No
  words: ["No", "Yes"]
  sets:
    false_true: ["False", "True"]
"""
MADE = ("results.json", "predictions.jsonl", "examples.json")


def call(*words: str) -> str:
    said = CliRunner().invoke(main, list(words), catch_exceptions=False)
    assert said.exit_code == 0, (words, said.output)
    return said.stdout


def train() -> None:
    bindings = tuple((name, repr(value)) for name, value in SETTINGS.items())
    gin_config.load(gin_config.Arguments(FILES, bindings), TrainRun)
    training.train(gin_config.make(TrainRun), gin_config.operative())


def evaluate(checkpoint: str, output: str) -> None:
    words = ("--suite", "labels", "--max_examples", "4", "--data_dir", f"{B}/data")
    sets = ("--label_sets", f"{B}/label_sets.yaml", "--split", "imdb=test")
    call("eval", "--checkpoint", checkpoint, "--output", output, *words, *sets)


def below(gcs: Emulator, folder: str) -> dict[str, bytes]:
    return {
        name.removeprefix(f"{folder}/"): gcs.read(name)
        for name in gcs.names()
        if name.startswith(f"{folder}/")
    }


def test_every_path_is_in_a_bucket_and_the_run_is_complete_in_itself(
    gcs: Emulator,
    tmp_path: pathlib.Path,
    small_vocab_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    vocabulary = str(SETTINGS["VOCAB_PATH"])
    gcs.write("vocabulary/small.model", pathlib.Path(small_vocab_path).read_bytes())
    gcs.write("label_sets.yaml", LABEL_SETS.encode())
    call("data", "prepare", "imdb", "--from", "embedded", "--data_dir", f"{B}/data")
    call("ckpt", "init", f"{B}/drawn", "--model", "tiny", "--vocab", vocabulary)
    call("ckpt", "export", f"{B}/drawn", f"{B}/start", "--to", "t5x")
    train()
    run = below(gcs, "run")
    assert ".lock" not in run and {name.split("/")[0].split(".")[0] for name in run} == {
        *("checkpoints", "events", "metrics", "operative_config", "profile", "run", "spiece")
    }
    assert any(name.endswith(".xplane.pb") for name in run)
    recorded = json.loads(run["run.json"])["recipe"]
    assert recorded["vocab_path"] == "spiece.model" and "model_dir" not in recorded
    assert [json.loads(line)["step"] for line in run["metrics.jsonl"].splitlines()] == [1, 2, 3]

    evaluate(f"{B}/run", f"{B}/out")
    call("report", f"{B}/out", "--output", f"{B}/report")
    assert set(below(gcs, "report")) == {"report.html", "report.md", "report.json"}
    assert b'id="training"' in gcs.read("report/report.html")  # the curves of the run

    # Conversions with both ends in the bucket keep the parameters, and each can be started from.
    call("ckpt", "export", f"{B}/run", f"{B}/hf", "--to", "hf", "--results", f"{B}/out")
    call("ckpt", "export", f"{B}/run/checkpoints/3", f"{B}/t5x", "--to", "t5x")
    call("ckpt", "import", f"{B}/hf", f"{B}/from_hf", "--from", "hf")
    call("ckpt", "cp", f"{B}/run", f"{B}/copy")
    expected, config, _ = exchange.load(f"{B}/run")
    for name in ("hf", "t5x", "t5x/checkpoint_3", "from_hf", "copy", "run/checkpoints/3"):
        jax.tree.map(
            np.testing.assert_array_equal, exchange.load_for(f"{B}/{name}", config), expected
        )
    for name in ("run", "hf", "t5x", "copy"):
        assert "arrays whole and finite; files as in" in call("ckpt", "verify", f"{B}/{name}")
    assert "recipe: gs://bucket/copy: method flipped" in call("ckpt", "info", f"{B}/copy")

    # From the bucket to a disk and back: what the run refers to goes with it.
    for name, content in run.items():
        file = tmp_path / "disk" / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        gcs.write(f"back/{name}", content)
        gcs.storage.delete_file(BUCKET, f"run/{name}")
    gcs.storage.delete_file(BUCKET, "vocabulary/small.model")
    evaluate("../disk/run", "../disk/out")
    for name in MADE:
        assert (tmp_path / "disk" / "out" / name).read_bytes() == gcs.read(f"out/{name}"), name
    for path in ("../disk/run", f"{B}/back"):
        assert "files as in checksums.json" in call("ckpt", "verify", path)
        assert f"recipe: {path}: method flipped" in call("ckpt", "info", path)
    call("ckpt", "export", "../disk/run", f"{B}/hf_again", "--to", "hf")
    assert gcs.read("hf_again/model.safetensors") == gcs.read("hf/model.safetensors")
    assert list(here.iterdir()) == []
