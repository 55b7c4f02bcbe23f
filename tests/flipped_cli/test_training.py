"""`train` end to end on made-up rows: it writes, resumes, and refuses what does not belong together."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from flipped_cli import gin_config, training
from flipped_errors import UserError
from flipped_tasks.embedded.vocabulary import train_vocabulary
from flipped_tasks.embedded.warmup import warmup_texts

FILES = ("gin/models/tiny.gin", "gin/recipes/direct.gin", "gin/runs/train.gin")


@pytest.fixture(scope="module")
def vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)


def run(model_dir: pathlib.Path, vocab_path: str, **changes: Any) -> Any:
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
    gin_config.load(gin_config.Arguments(FILES, bindings))
    return gin_config.call(training.train)


def test_train_resume_refuse(tmp_path: pathlib.Path, vocab_path: str) -> None:
    folder = tmp_path / "run"
    assert int(run(folder, vocab_path, TRAIN_STEPS=2).step) == 2
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert about["recipe"]["mixture"] == "direct.imdb"
    assert about["recipe"]["model"]["emb_dim"] == 16
    assert about["versions"]["jax"]
    assert "train.batch_size" in (folder / "operative_config.gin").read_text(encoding="utf-8")

    assert int(run(folder, vocab_path, TRAIN_STEPS=3).step) == 3
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]

    with pytest.raises(UserError, match="holds another run: its batch_size is 4, got 8") as caught:
        run(folder, vocab_path, TRAIN_STEPS=4, BATCH_SIZE=8)
    assert "\n" not in str(caught.value)

    changes: dict[str, Any] = {"INITIAL_CHECKPOINT_PATH": str(folder), "T5Config.emb_dim": 32}
    with pytest.raises(UserError, match="emb_dim is 16 there and 32 here") as caught:
        run(tmp_path / "wider", vocab_path, TRAIN_STEPS=3, **changes)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_does_not_fit_the_model(tmp_path: pathlib.Path, vocab_path: str) -> None:
    with pytest.raises(UserError, match="vocab_size: expected at least 512"):
        run(tmp_path / "run", vocab_path, **{"T5Config.vocab_size": 256})
    assert not (tmp_path / "run").exists()
