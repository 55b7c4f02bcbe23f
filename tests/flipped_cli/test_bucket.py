"""Paths in buckets, as a user types them: what is refused, in one line, before anything is written or compiled."""

from __future__ import annotations

import importlib.util
import pathlib
import time

import pytest
from click.testing import CliRunner

from flipped_cli import errors
from flipped_cli.main import main
from tests.gcs_emulator import Emulator, Fault

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = (
    *("train.py", "--gin_file=gin/models/tiny.gin", "--gin_file=gin/recipes/direct.gin"),
    *("--gin_file=gin/runs/train.gin", "--gin.MODEL_DIR='run'", "--gin.VOCAB_PATH='v'"),
)
EVAL = (
    *("eval.py", "--gin_file=gin/runs/eval.gin"),
    *("--gin.CHECKPOINT_PATH='ck'", "--gin.EVAL_OUTPUT_DIR='out'"),
)
JOB = ("eval", "--checkpoint", "ck", "--output", "out", "--suite", "nlp14")
SCORE = ("score", "--template", "{{input}}", "--input", "x", "--choices", "a", "b", "--checkpoint")
GENERATE = ("generate", "--method", "direct", "--template", "{{input}}", "--input", "x")
LINT = ("tasks", "lint", "imdb")
RENDER = ("tasks", "render", "--dataset", "imdb", "--all")
SHOW = ("mixtures", "show", "flipped_train")

# Every option, argument and macro that takes a path; the path is the last part of the last word.
READ = [
    (*JOB, "--checkpoint"),
    (*JOB, "--vocab"),
    (*JOB, "--data_dir"),
    (*JOB, "--label_sets"),
    ("report",),
    ("report", "--output", "out"),
    ("ckpt", "init", "out", "--model", "tiny", "--vocab"),
    ("ckpt", "import", "--from", "hf"),
    ("ckpt", "import", "ck", "out", "--from", "hf", "--vocab"),
    ("ckpt", "export", "--to", "hf"),
    ("ckpt", "export", "ck", "out", "--to", "hf", "--vocab"),
    ("ckpt", "export", "ck", "out", "--to", "hf", "--results"),
    ("ckpt", "info"),
    ("ckpt", "verify"),
    ("ckpt", "cp"),
    ("data", "list", "--data_dir"),
    ("data", "verify", "--data_dir"),
    (*LINT, "--data_dir"),
    (*LINT, "--vocab"),
    (*RENDER, "--vocab"),
    (*SHOW, "--data_dir"),
    SCORE,
    (*SCORE, "ck", "--vocab"),
    (*GENERATE, "--checkpoint"),
    (*GENERATE, "--checkpoint", "ck", "--vocab"),
    (*TRAIN, "--gin.INITIAL_CHECKPOINT_PATH="),
    (*TRAIN, "--gin.VOCAB_PATH="),
    (*TRAIN, "--data_dir="),
    (*EVAL, "--gin.CHECKPOINT_PATH="),
    (*EVAL, "--gin.VOCAB_PATH="),
    (*EVAL, "--gin.LABEL_SETS="),
    (*EVAL, "--gin.DATA_DIR="),
]
WRITTEN = [
    (*JOB, "--output"),
    (*JOB, "--compilation_cache_dir"),
    ("report", "out", "--output"),
    ("ckpt", "init", "--model", "tiny", "--vocab", "v"),
    ("ckpt", "import", "--from", "hf", "ck"),
    ("ckpt", "export", "--to", "hf", "ck"),
    ("ckpt", "cp", "ck"),
    ("data", "prepare", "imdb", "--from", "embedded", "--data_dir"),
    (*TRAIN, "--gin.MODEL_DIR="),
    (*TRAIN, "--gin.COMPILATION_CACHE_DIR="),
    (*EVAL, "--gin.EVAL_OUTPUT_DIR="),
    (*EVAL, "--gin.COMPILATION_CACHE_DIR="),
]
LOCAL = [
    ("tasks", "new", "my_rows", "--folder"),
    (*RENDER, "--rows"),
    (*RENDER, "--module"),
    (*LINT, "--module"),
    (*SHOW, "--module"),
    (*SCORE, "ck", "--jsonl"),
    (*SCORE, "ck", "--module"),
    (*GENERATE, "--checkpoint", "ck", "--jsonl"),
    (*GENERATE, "--checkpoint", "ck", "--module"),
    (*JOB, "--module"),
    ("demo", "--output"),
    ("study", "--output"),
    ("pretrain", "--output"),
    ("pretrain", "--export"),
    ("data", "prepare", "imdb", "--data_dir", "data", "--from", "files:"),
    (*TRAIN, "--gin.TASK_MODULES="),
    (*TRAIN, "--gin_file="),
    (*EVAL, "--gin.TASK_MODULES="),
]


def name(words: tuple[str, ...]) -> str:
    return " ".join([*words[: 1 if words[0].endswith(".py") else 2], words[-1]])


@pytest.fixture(autouse=True)
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Refused:
    """Calls a command in this process and checks how it ends."""

    def __init__(
        self, gcs: Emulator, here: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._gcs, self._here, self._capsys = gcs, here, capsys

    def __call__(self, words: tuple[str, ...], path: str, fault: Fault | None = None) -> str:
        """The line that the command ends with, where it leaves nothing behind."""
        *before, last = words
        joined = (last + path,) if last.endswith(("=", ":")) else (last, path)
        out = ("out",) if words[:2] in [("ckpt", one) for one in ("import", "export", "cp")] else ()
        words = (*before, *joined, *(out if last in ("hf", "cp") else ()))
        if fault is not None:
            self._gcs.faults.append(fault)
        began = time.monotonic()
        code, stderr = self._call(words)
        assert time.monotonic() - began < 30
        assert code == 2, stderr
        [line] = stderr.strip().splitlines()
        assert list(self._here.iterdir()) == [] and self._gcs.names() == []
        return line

    def _call(self, words: tuple[str, ...]) -> tuple[int, str]:
        if not words[0].endswith(".py"):
            said = CliRunner().invoke(main, list(words))
            return said.exit_code, said.stderr
        spec = importlib.util.spec_from_file_location(f"script_{words[0][:-3]}", ROOT / words[0])
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._capsys.readouterr()
        code = errors.run(module.main, list(words[1:]))
        return code, self._capsys.readouterr().err


@pytest.fixture
def refused(gcs: Emulator, here: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(gcs, here, capsys)


@pytest.mark.parametrize(
    "words, path",
    [(words, "s3://bucket/x") for words in READ + WRITTEN + LOCAL]
    + [(words, "gs:/bucket/x") for words in WRITTEN + LOCAL],  # a folder on a disk to `pathlib`
    ids=lambda value: value if isinstance(value, str) else name(value),
)
def test_other_schemes_are_one_line(refused: Refused, words: tuple[str, ...], path: str) -> None:
    line = refused(words, path)
    assert path in line and "expected a local path or gs://BUCKET/NAME" in line


@pytest.mark.parametrize("words", READ + WRITTEN, ids=name)
def test_a_missing_bucket_is_one_line_in_time(refused: Refused, words: tuple[str, ...]) -> None:
    assert "there is no bucket gs://absent" in refused(words, "gs://absent/x")


@pytest.mark.parametrize("words", READ + WRITTEN, ids=name)
def test_a_forbidden_bucket_is_one_line_in_time(refused: Refused, words: tuple[str, ...]) -> None:
    line = refused(words, "gs://bucket/x", lambda method, path, number: 403)
    assert "got gs://bucket/x: Forbidden" in line


@pytest.mark.parametrize("words", WRITTEN, ids=name)
def test_a_read_only_bucket_is_one_line_in_time(refused: Refused, words: tuple[str, ...]) -> None:
    line = refused(
        words, "gs://bucket/x", lambda method, path, number: 403 if method != "GET" else None
    )
    assert "expected a bucket that can be written, got gs://bucket/x: " in line


def test_a_report_beside_read_only_results_is_refused(gcs: Emulator) -> None:
    gcs.write("x/results.json", b"{}")
    gcs.faults.append(lambda method, path, number: 403 if method != "GET" else None)
    said = CliRunner().invoke(main, ["report", "gs://bucket/x"])
    [line] = said.stderr.strip().splitlines()
    assert said.exit_code == 2 and "results: expected a bucket that can be written" in line


@pytest.mark.parametrize("words", LOCAL, ids=name)
def test_what_cannot_be_in_a_bucket_is_refused(refused: Refused, words: tuple[str, ...]) -> None:
    assert "expected a local path, got 'gs://bucket/x'" in refused(words, "gs://bucket/x")
