"""Each mistake gives one line on stderr and exit code 2, no traceback, and overwrites nothing."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import subprocess
import sys

import pytest
from click.testing import CliRunner

from flipped_cli import errors
from flipped_cli.main import main
from t5_engine import launch

ROOT = pathlib.Path(__file__).resolve().parents[2]
RTE = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0, "label": 1}
TRAIN = ["--gin_file=gin/models/tiny.gin", "--gin_file=gin/recipes/flipped.gin"]
TRAIN += ["--gin_file=gin/runs/train.gin"]


def test_a_message_is_one_short_line_that_steers_no_terminal(capsys):
    assert errors.report("a\nb \x1b[31m" + "c" * 10**6) == 2
    line = one_line(2, *capsys.readouterr())
    assert line.startswith("error: a b \\x1b[31mccc") and len(line) < 2000


def one_line(code: object, stdout: str, stderr: str) -> str:
    """The message, after checking that it is all there is."""
    assert code == 2, (code, stderr)
    assert stderr.count("\n") == 1 and stderr.startswith("error: "), stderr
    assert "Traceback" not in stderr
    return stderr.strip()


def fails(*words: str, given: str | bytes | None = None) -> str:
    result = CliRunner().invoke(main, list(words), input=given, catch_exceptions=False)
    return one_line(result.exit_code, result.stdout, result.stderr)


def render(*more: str, given: str | bytes | None = json.dumps(RTE)) -> str:
    return fails("tasks", "render", *more, given=given)


def script_fails(name: str, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """As `python train.py …`, in this process."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    capsys.readouterr()
    code = errors.run(module.main, list(words))
    captured = capsys.readouterr()
    return one_line(code, captured.out, captured.err)


def test_names() -> None:
    rows = ["--rows", "-"]
    assert "nearest: 'imdb'" in render("--dataset", "imbd", "--template", "x", *rows)
    got = render("--dataset", "super_glue/rte", "--template", "GPT3 style", *rows)
    assert "'GPT3 style'" in got and "'GPT-3 style'" in got
    assert "nearest: 'tasks'" in fails("task", "list")
    assert "'render'" in fails("tasks", "rendr")
    assert "'--dataset'" in render("--datasets", "imdb")
    assert "--all" in render("--dataset", "imdb", *rows)


def test_rows(tmp_path: pathlib.Path) -> None:
    words = ["--dataset", "super_glue/rte", "--template", "GPT-3 style", "--rows"]
    good = json.dumps(RTE)
    missing = {k: v for k, v in RTE.items() if k != "premise"}
    got = render(*words, "-", given=f"{good}\n{json.dumps(missing)}\n")
    assert "line 2" in got and "'premise'" in got
    got = render(*words, "-", given=json.dumps(RTE | {"label": 7}))
    assert "line 1" in got and "7" in got and "expected one of 0, 1" in got
    got = render(*words, "-", given=f"{good}\n{good[:20]}\n")
    assert "line 2" in got and "not JSON" in got
    assert "expected a JSON object, got list" in render(*words, "-", given="[1]\n")
    got = render(*words, "-", given=b'{"premise": "\xff"}\n')
    assert "line 1: expected UTF-8, got another byte at 13" in got
    (tmp_path / "rows.jsonl").write_text(good, encoding="utf-8")
    assert "rows.jsonl" in render(*words, str(tmp_path / "row.jsonl"))
    assert "cannot be read" in render(*words, str(tmp_path))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.encode())[:-12])
    assert "cut.jsonl.gz" in render(*words, str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain")
    assert "no.jsonl.gz" in render(*words, str(tmp_path / "no.jsonl.gz"))


def test_vocabulary(tmp_path: pathlib.Path) -> None:
    words = ["--dataset", "super_glue/rte", "--template", "GPT-3 style", "--rows", "-", "--vocab"]
    assert "nowhere.model" in render(*words, str(tmp_path / "nowhere.model"))
    (tmp_path / "bad.model").write_bytes(b"no vocabulary")
    assert "bad.model" in render(*words, str(tmp_path / "bad.model"))


def test_gin_arguments(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    base = [*TRAIN, f"--gin.MODEL_DIR={folder}"]
    vocab = "--gin.VOCAB_PATH=nowhere.model"
    for words, expected in (
        ([], "no gin file given"),
        (["--gin_file=gin/runs/trian.gin"], "gin/runs/train.gin"),
        (base, "--gin.VOCAB_PATH=…"),
        ([*base, vocab, "--gin.TRAIN_STEPZ=3"], "nearest: 'TRAIN_STEPS'"),
        ([*base, vocab, "--gin.TrainRun.step=3"], "'steps'"),
        ([*base, vocab, "--gin.TrianRun.steps=3"], "'TrainRun'"),
        ([*base, vocab], "nowhere.model"),
        ([*base, vocab, "--data_dir=nowhere"], "data_dir"),
        ([*base, vocab, "--gin.T5Config.dtype=float16"], "float16"),
        ([*base, vocab, "--gin.MIXTURE_OR_TASK_NAME=fliped_train"], "'flipped_train'"),
        (
            [*base, vocab, "--gin.TASK_FEATURE_LENGTHS={'input': 3}"],
            "TASK_FEATURE_LENGTHS: expected {'inputs': …",
        ),
    ):
        assert expected in script_fails("train", *words, capsys=capsys)
        assert not folder.exists()


def test_evaluation_arguments(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    output = tmp_path / "eval"
    base = ["--gin_file=gin/runs/eval.gin", f"--gin.EVAL_OUTPUT_DIR={output}"]
    here = [*base, f"--gin.CHECKPOINT_PATH={tmp_path}"]
    vocab = "--gin.VOCAB_PATH=nowhere.model"
    assert "no checkpoint at" in script_fails("eval", *here, capsys=capsys)
    (tmp_path / "checkpoints").mkdir()
    for words, expected in (
        (base, "--gin.CHECKPOINT_PATH=…"),
        ([*base, f"--gin.CHECKPOINT_PATH={tmp_path / 'nowhere'}"], "checkpoint_path"),
        (here, "no checkpoint at"),
        ([*here, f"--gin.EVAL_OUTPUT_DIR={tmp_path}"], "another folder"),
        ([*here, vocab, "--gin.METHOD=fliped"], "nearest: 'flipped'"),
    ):
        assert expected in script_fails("eval", *words, capsys=capsys)
        assert not output.exists()


def test_another_run_in_the_folder_is_refused(tmp_path: pathlib.Path) -> None:
    from flipped_cli import provenance
    from flipped_cli.runs import TrainRun
    from flipped_core.errors import UserError
    from t5_engine.config import T5Config

    run = TrainRun(
        model_dir=str(tmp_path),
        mixture="direct_train",
        model=T5Config(),
        lengths={"inputs": 8, "targets": 4},
        steps=10,
        batch_size=2,
        learning_rate=1,
        vocab_path=str(tmp_path / "v.model"),
    )
    (tmp_path / "v.model").write_bytes(b"pieces")
    provenance.open_run(dataclasses.replace(run, mixture="channel_train"), "gin")
    provenance.open_run(run, "gin")  # nothing has been trained there yet
    (tmp_path / provenance.CHECKPOINTS / "10").mkdir(parents=True)
    provenance.open_run(dataclasses.replace(run, steps=20, data_dir="d", fsdp=True), "gin")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="its mixture is 'direct_train', got 'flipped_train'"):
        provenance.open_run(dataclasses.replace(run, mixture="flipped_train"), "other")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("script", ["train", "eval"])
def test_the_scripts_exit_with_2(script: str) -> None:
    """The real processes, as a shell sees them; nothing heavy is imported before the flags are read."""
    command = [sys.executable, f"{script}.py", "--gin_file=gin/runs/nowhere.gin"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "unknown gin file" in one_line(result.returncode, result.stdout, result.stderr)
    usage = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert usage.returncode == 0 and f"python {script}.py" in usage.stdout


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    for words in (["-m", "flipped_cli.main", "tasks", "list"], ["eval.py", "--help"]):
        with open("/dev/full", "w") as full:
            command = [sys.executable, *words]
            result = subprocess.run(
                command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert result.returncode == 2
        assert result.stderr == "error: cannot write what is printed: No space left on device\n"


def test_a_missing_process_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """The launch files start a job again unless it ended with 2."""
    code = errors.run(lambda _: launch.start("127.0.0.1:9", 2, 1, timeout=0.5), [])
    assert code == 75
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: process 0 of 2, the coordinator at"), err
