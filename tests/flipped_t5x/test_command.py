"""`python -m flipped_t5x`: mistakes in gin are told in one line, and T5X's program is what runs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import gin
import pytest
from gin import config as gin_internals

from flipped_t5x import __main__ as command
from flipped_t5x import requirement

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)
# isort: split
import t5x.train
from t5x import gin_utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN, RECIPE, SIZE = "gin/t5x/train.gin", "gin/recipes/flipped.gin", "gin/t5x/tiny.gin"
REQUIRED = ("MODEL_DIR=run", "VOCAB_PATH=words.model")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gin_internals, "_FINALIZE_HOOKS", list(gin_internals._FINALIZE_HOOKS))
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.mark.parametrize(
    ("files", "bindings", "expected"),
    [
        ((TRAIN, RECIPE, SIZE), (), "required gin bindings are missing: --gin.MODEL_DIR=… --gin.VOCAB_PATH=…"),
        ((TRAIN, RECIPE), REQUIRED, "nothing binds: MODEL; expected --gin_file= of a size"),
        ((TRAIN, SIZE), REQUIRED, "nothing binds: BATCH_SIZE, .* of a recipe"),
        ((TRAIN, RECIPE, SIZE), (*REQUIRED, "TRAIN_STEP=3"), "gin macro 'TRAIN_STEP'; nearest: 'TRAIN_STEPS'"),
        ((TRAIN, RECIPE, SIZE), (*REQUIRED, "BATCH_SIZE=[1"), "not gin syntax"),
        ((TRAIN, RECIPE, SIZE), (*REQUIRED, "Trainer.modle=1"), "parameter of Trainer 'modle'; nearest: 'model'"),
        (("gin/t5x/trian.gin",), REQUIRED, "gin file 'gin/t5x/trian.gin'; nearest: 'gin/t5x/train.gin'"),
    ],
)  # fmt: skip
def test_mistakes_in_gin(
    files: tuple[str, ...], bindings: tuple[str, ...], expected: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """T5X's own reader of gin stands in for its program, which would go on to train."""

    def program(*_: object, **__: object) -> None:
        given = [word.removeprefix("--gin.") for word in sys.argv if word.startswith("--gin.")]
        gin_utils.parse_gin_flags([str(ROOT)], list(files), given)

    monkeypatch.setitem(sys.modules, "__main__", t5x.train)
    monkeypatch.setattr(command.runpy, "run_module", program)
    monkeypatch.setattr(sys, "argv", [])
    assert command.main(["train", *(f"--gin.{binding}" for binding in bindings)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(expected, line), line


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(command.runpy, "run_module", program)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(KeyError, match="a bug"):
        command.main(["train"])


def test_strings_without_quotes_and_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(command.runpy, "run_module", lambda *_, **__: seen.extend(sys.argv))
    monkeypatch.setattr(sys, "argv", [])
    words = [
        "--gin_file=a.gin",
        "--gin.MODEL_DIR=runs/x",
        '--gin.A="q"',
        "--gin.N=3",
        "--data_dir=rows",
    ]
    assert command.main(["eval", *words]) == 0
    assert seen == [
        "t5x.eval", "--gin_file=a.gin", "--gin.MODEL_DIR='runs/x'", '--gin.A="q"', "--gin.N=3",
        "--gin.DATA_DIR='rows'",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_program_itself(tmp_path: pathlib.Path, small_vocab_path: str) -> None:
    """A relative MODEL_DIR, unquoted strings, and another checkpoint than T5X's in one line."""
    words = [
        "-m", "flipped_t5x", "train", f"--gin_file={ROOT / TRAIN}", f"--gin_file={ROOT / RECIPE}",
        f"--gin_file={ROOT / SIZE}", "--gin.MODEL_DIR=run", f"--gin.VOCAB_PATH={small_vocab_path}",
        "--gin.MIXTURE_OR_TASK_NAME=flipped.imdb", "--gin.BATCH_SIZE=2", "--gin.TRAIN_STEPS=1",
        "--gin.TASK_FEATURE_LENGTHS={'inputs':32,'targets':16}",
    ]  # fmt: skip

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        path = {
            "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)]),
            "PATH": "/usr/bin:/bin",
        }
        given = [sys.executable, *words, *more]
        environment = {**path, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
        return subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True)

    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    done = run("--gin.INITIAL_CHECKPOINT_PATH=hf")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "flipped ckpt export --to t5x hf OUT" in line
    assert "Traceback" not in done.stderr
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoint_1").is_dir()
