"""Settings from gin, the command line and run.json: one declaration, one check, one line for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import click
import pytest
from click.testing import CliRunner
from etils import epath

from flipped_cli import gin_config, provenance
from flipped_cli.options import run_of, settings_options
from flipped_cli.runs import EvalRun, TrainRun
from flipped_core import settings
from flipped_core.errors import UserError
from flipped_eval.recipes import read_run
from t5_engine.config import T5Config

TRAIN = ("gin/models/tiny.gin", "gin/recipes/direct.gin", "gin/runs/train.gin")
EVAL = ("gin/runs/eval.gin",)


def of_train(*words: str, files: tuple[str, ...] = TRAIN) -> TrainRun:
    """The run of a command line, `NAME=VALUE` as typed behind `--gin.`."""
    required = ["--gin.MODEL_DIR=runs/a", "--gin.VOCAB_PATH=v.model"]
    line = [f"--gin_file={file}" for file in files] + required + [f"--gin.{w}" for w in words]
    gin_config.load(gin_config.parse_arguments(line, ""), TrainRun)
    return gin_config.make(TrainRun)


def of_eval(*words: str) -> EvalRun:
    required = ["--gin.CHECKPOINT_PATH=runs/a", "--gin.EVAL_OUTPUT_DIR=out"]
    line = [f"--gin_file={file}" for file in EVAL] + required + [f"--gin.{w}" for w in words]
    gin_config.load(gin_config.parse_arguments(line, ""), EvalRun)
    return gin_config.make(EvalRun)


def of_options(*words: str) -> EvalRun:
    """The run of `flipped eval`'s options."""
    found = []

    @click.command()
    @settings_options(EvalRun)
    def command(**given: Any) -> None:
        found.append(run_of(EvalRun, given))

    line = ["--checkpoint", "runs/a", "--output", "out", *words]
    CliRunner().invoke(command, line, catch_exceptions=False, standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("text", ["false", "FALSE", "False", "'false'"])
def test_false_is_false_however_it_is_written(text: str) -> None:
    assert of_eval(f"LENGTH_NORMALIZE={text}").length_normalize is False
    assert of_train(f"FSDP={text}", f"INPUT_EOS={text}").input_eos is False


def test_booleans_in_gin_files(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "own.gin"
    for text in ("true", "TRUE", "True"):
        file.write_text(f"\ufeffFSDP = {text}  # a comment\nINPUT_EOS={text}\n")
        assert of_train(files=(*TRAIN, str(file))).fsdp is True
    file.write_text("FSDP = false\nTrainRun.input_eos = FALSE\nDATA_DIR = 'a = true'\n")
    run = of_train(files=(*TRAIN, str(file)))
    assert (run.fsdp, run.input_eos, run.data_dir) == (False, False, "a = true")
    file.write_text("FSDP = yes\n")
    with pytest.raises(
        UserError, match="own.gin: not gin syntax: a text needs quotes, line 1: FSDP = yes"
    ):
        of_train(files=(*TRAIN, str(file)))


def test_true_in_lower_case_is_true() -> None:
    assert of_eval("LENGTH_NORMALIZE=true", "PLAN_ONLY=TRUE").length_normalize is True
    assert of_train("T5Config.unroll_layers=true").model.unroll_layers is True


def test_whole_valued_floats_are_integers() -> None:
    run = of_train("TRAIN_STEPS=1e1", "BATCH_SIZE=4.0", "SEED=3.")
    assert (run.steps, run.batch_size, run.seed) == (10, 4, 3)
    assert all(type(value) is int for value in (run.steps, run.batch_size, run.seed))
    run = of_train("TASK_FEATURE_LENGTHS={'inputs': 64.0, 'targets': 16}", "PROFILE=(10., 5)")
    assert run.lengths == {"inputs": 64, "targets": 16} and run.profile == (10, 5)
    assert type(of_train("LEARNING_RATE=1").learning_rate) is float
    assert of_options("--max_examples", "1e1", "--seed", "2.0").max_examples == 10


@pytest.mark.parametrize(
    "text",
    ["20261128", "1e3", "2026.10", "007", "True", "0x10", "1_000", "[old] runs", "-5", "a=b"],
)
def test_paths_and_names_stay_texts(text: str) -> None:
    run = of_train(f"MODEL_DIR={text}", f"TrainRun.data_dir={text}")
    assert run.model_dir == run.data_dir == text
    assert of_eval(f"LABEL={text}" if text[0] != "[" else f"LABEL='{text}'").label == (text,)
    assert of_eval(f"EVAL_OUTPUT_DIR={text}").output_dir == text
    if text[0] != "-":
        assert of_options("--vocab", text, "--label", text).vocab_path == text


@pytest.mark.parametrize("text", ["20261128", "1e3", "2026.10", "0x10", "1_000", "True"])
def test_paths_in_gin_files_stay_as_they_are_spelled(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "own.gin"
    included = tmp_path / "included.gin"
    included.write_text(f"OTHER = {text}\n")
    file.write_text(
        f"include '{included}'\nDATA_DIR =  {text}  # a date\nINITIAL_CHECKPOINT_PATH = %OTHER\n"
    )
    run = of_train(files=(*TRAIN, str(file)))
    assert run.data_dir == run.initial_checkpoint_path == text
    file.write_text("DATA_DIR = 5\n")
    assert of_train("DATA_DIR=6.0", files=(*TRAIN, str(file))).data_dir == "6.0"
    file.write_text("DATA_DIR = 5\n")
    assert of_train("TrainRun.data_dir=x", files=(*TRAIN, str(file))).data_dir == "x"


def test_tilde_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    paths = [
        one
        for cls in (TrainRun, EvalRun)
        for one in settings.declared(cls).values()
        if one.setting.path
    ]
    assert {"model_dir", "vocab_path", "data_dir", "checkpoint_path", "task_modules"} < {
        one.name for one in paths
    }
    for one in paths:
        found = settings.checked(one, "~/a/b")
        assert found in ("/home/me/a/b", ("/home/me/a/b",)), one.name
    assert of_train("MODEL_DIR=~/r1").model_dir == "/home/me/r1"
    assert of_eval("CHECKPOINT_PATH=['~/a', 'b']").checkpoint_path == ("/home/me/a", "b")
    assert of_options("--module", "~/x.py").task_modules == ("/home/me/x.py",)
    with pytest.raises(UserError, match="no such user"):
        of_train("MODEL_DIR=~nobody_of_this_name/r1")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("BATCH_SIZE=24O", "BATCH_SIZE: expected a whole number of at least 1, got '24O'"),
        ("SEED=1.5", "SEED: expected a whole number of at least 0, got 1.5"),
        ("SEED=-1", "SEED: expected a whole number of at least 0, got -1"),
        ("SEED=None", "SEED: expected a whole number of at least 0, got None"),
        ("SEED=1e300", "SEED: expected a whole number .*, got 1e[+]300"),
        ("TRAIN_STEPS=true", "TRAIN_STEPS: expected a whole number of at least 1, got 'true'"),
        ("LEARNING_RATE=1e-4x", "LEARNING_RATE: expected a number above 0, got '1e-4x'"),
        ("LEARNING_RATE=0", "LEARNING_RATE: expected a number above 0, got 0"),
        ("LEARNING_RATE=1e999", "LEARNING_RATE: expected a number above 0, got inf"),
        ("LEARNING_RATE=nan", "LEARNING_RATE: expected a number above 0, got 'nan'"),
        ("FSDP=yes", "FSDP: expected True or False, got 'yes'"),
        ("FSDP=1", "FSDP: expected True or False, got 1"),
        ("MODEL_DIR=", "MODEL_DIR: expected a path, got ''"),
        ("MODEL_DIR=None", "MODEL_DIR: expected a path, got None"),
        ("DECAY=Linear", "DECAY: expected 'constant' or .*, got 'Linear'; nearest: 'linear'"),
        ("MIXTURE_RATES=3", "MIXTURE_RATES: expected 'recipe' or .*, got '3'"),
        ("TASK_FEATURE_LENGTHS=64", "TASK_FEATURE_LENGTHS: expected {'inputs': …, .*got 64"),
        ("TASK_FEATURE_LENGTHS={'inputs': 64}", "TASK_FEATURE_LENGTHS: expected .*got {'inputs': 64}"),
        ("LENGTH_BUCKETS=[(1, 2), 3]", "LENGTH_BUCKETS: expected a list of pairs .*, got "),
        ("PROFILE=(1, 0)", "PROFILE: expected .*, got [(]1, 0[)]"),
        ("DROPOUT_RATE=1", "DROPOUT_RATE: expected a number of at least 0 below 1, got 1"),
        ("T5Config.emb_dim=64.5", "T5Config.emb_dim: expected a whole number of at least 1, got 64.5"),
        ("TrainRun.steps=x", "TRAIN_STEPS: expected a whole number of at least 1, got 'x'"),
        ("SEED=%SEED", "gin macro SEED: expected a value, got a reference to itself"),
        ("BATCH_SIZE=%TRAIN_STEPS", None),
        ("TrainRun.model=3", "TrainRun.model: expected @T5Config[(][)], got 3"),
        ("EXCLUDE_TEMPLATES=['qasc']", "EXCLUDE_TEMPLATES: expected {'NAME': …}.*, got "),
    ],
)  # fmt: skip
def test_anything_else_is_one_line(word: str, message: str | None) -> None:
    if message is None:
        of_train(word)
        return
    with pytest.raises(UserError, match=f"^{message}") as caught:
        of_train(word)
    assert "\n" not in str(caught.value)


def test_options_name_themselves() -> None:
    for words, message in (
        (("--batch_size", "24O"), "--batch_size: expected a whole number of at least 1 or None, got '24O'"),
        (("--coordinator_timeout", "inf"), "--coordinator_timeout: expected a number above 0 .*, got inf"),
        (("--inputs_length", "1", "--targets_length", "8"), "--inputs_length and --targets_length: expected .*, got "),
        (("--templates", "orignal"), "--templates: expected .*, got 'orignal'; nearest: 'original'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{message}"):
            of_options(*words)


def test_macros_in_a_circle(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "circle.gin"
    for text, chain in (
        ("SEED = %SEED\n", "%SEED -> %SEED"),
        ("SEED = %A\nA = %B\nB = %A\n", "%A -> %B -> %A"),
        ("LENGTH_BUCKETS = [(%A, 1)]\nA = [%LENGTH_BUCKETS]\n", "%LENGTH_BUCKETS -> %A -> %LENGTH"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match="gin macro .*: expected a value") as caught:
            of_train(files=(*TRAIN, str(file)))
        assert chain in str(caught.value) and "\n" not in str(caught.value)


def test_a_macro_that_nothing_reads_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "own.gin"
    file.write_text("TRAIN_STPES = 5\n")
    with pytest.raises(UserError, match="unknown gin macro 'TRAIN_STPES'; nearest: 'TRAIN_STEPS'"):
        of_train(files=(*TRAIN, str(file)))
    file.write_text(
        "HALF = 5\nTRAIN_STEPS = %HALF\nMAX_EXAMPLES = 3\n"
    )  # the last is an evaluation's
    assert of_train(files=(*TRAIN, str(file))).steps == 5


def test_gin_options_and_python_make_equal_runs() -> None:
    words = ("SUITES=['a', 'b:c']", "SPLITS={'imdb': 'train'}", "INPUT_EOS=false", "METHOD=direct",
             "TASK_FEATURE_LENGTHS={'inputs': 9, 'targets': 8}", "PLAN_ONLY=True")  # fmt: skip
    options = ("--suite", "a", "--suite", "b:c", "--split", "imdb=train", "--no_eos", "--method",
               "direct", "--inputs_length", "9", "--targets_length", "8", "--plan")  # fmt: skip
    run = EvalRun(
        checkpoint_path=("runs/a",),
        output_dir="out",
        suites=("a", "b:c"),
        splits={"imdb": "train"},
        input_eos=False,
        method=("direct",),
        lengths={"inputs": 9, "targets": 8},
        plan_only=True,
    )
    assert of_eval(*words) == of_options(*options) == run
    assert of_eval() == of_options()


def test_every_setting_is_declared_whole() -> None:
    """A line of documentation, a macro of its own, and a default that passes its own check."""
    for cls in (TrainRun, EvalRun):
        declared = settings.declared(cls)
        assert set(declared) == {field.name for field in dataclasses.fields(cls)}
        macros = [one.setting.macro for one in declared.values() if one.setting.macro]
        assert len(macros) == len(set(macros)) >= len(declared) - 1
        for one in declared.values():
            assert one.setting.doc.strip().endswith((".", "…", "gin/models.", "}.")), one.name
            if not one.required:
                assert settings.checked(one, one.default) == one.default, one.name


def test_choices_are_those_of_the_code_that_takes_them() -> None:
    from flipped_cli import runs
    from flipped_eval import request
    from flipped_tasks import methods
    from mixtures import suites
    from t5_engine import optimizer, run_settings

    assert runs.METHODS == tuple(methods.METHODS)
    assert request.TEMPLATE_CHOICES == suites.TEMPLATE_CHOICES
    for name in run_settings.OPTIMIZERS:
        optimizer.make(name, 1.0)
    for name in run_settings.DECAYS:
        optimizer.schedule(1.0, decay=name, steps=2)


@pytest.mark.parametrize("name", ["LENGTH_BUCKETS=[(8, 4)]", "LENGTH_WINDOW=2"])
def test_packed_rows_take_no_buckets(name: str) -> None:
    message = f"PACK: expected False with {name.partition('=')[0]}, "
    with pytest.raises(UserError, match=message):
        of_train(name)
    assert of_train(name, "PACK=False").pack is False


def written(tmp_path: pathlib.Path, **changes: Any) -> TrainRun:
    vocabulary = tmp_path / "v.model"
    vocabulary.write_bytes(b"pieces")
    run = of_train(f"MODEL_DIR={tmp_path}", f"VOCAB_PATH={vocabulary}")
    run = dataclasses.replace(run, **changes)
    provenance.open_run(run, "gin")
    (tmp_path / provenance.CHECKPOINTS / "1").mkdir(parents=True, exist_ok=True)
    return run


def test_run_json_gives_back_the_run(tmp_path: pathlib.Path) -> None:
    changes: dict[str, Any] = {
        "pack": False,
        "length_buckets": ((1, 2), (3, 4)),
        "exclude_templates": {"qasc": ("a",)},
        "task_modules": ("x.py",),
    }
    run = written(tmp_path, **changes)
    recipe = read_run(epath.Path(tmp_path / "run.json"), partial=False)
    assert recipe["vocab_path"] == "spiece.model"  # the copy beside it
    assert (tmp_path / "spiece.model").read_bytes() == b"pieces"
    local = {
        "vocab_path",
        *(
            name
            for name, one in settings.declared(TrainRun).items()
            if one.setting.resume is settings.Resume.LOCAL
        ),
    }
    assert {n: v for n, v in recipe.items() if n not in local} == {
        field.name: getattr(run, field.name)
        for field in dataclasses.fields(run)
        if field.name not in local
    }


def test_a_resumed_run_may_change_what_does_not_decide_its_numbers(tmp_path: pathlib.Path) -> None:
    run = written(tmp_path)
    model = dataclasses.replace(run.model, remat="full", unroll_layers=False)
    free: dict[str, Any] = {"steps": 9, "microbatches": 2, "fsdp": True, "log_period": 7}
    provenance.open_run(dataclasses.replace(run, model=model, **free), "gin")
    for changes in (
        {"seed": 1},
        {"model": dataclasses.replace(model, emb_dim=128)},
        {"z_loss": 1e-4},
    ):
        with pytest.raises(UserError, match=f"holds another run: its {next(iter(changes))} is"):
            provenance.open_run(dataclasses.replace(run, **changes), "gin")


OLD = {
    "batch_size": 240, "data_dir": None, "decay": "constant", "initial_checkpoint_path": None,
    "input_eos": True, "learning_rate": 0.0001, "length_buckets": None, "length_window": 1,
    "lengths": {"inputs": 512, "targets": 128}, "mixture": "direct_train", "mixture_rates": "recipe",
    "optimizer": "adafactor", "seed": 0, "steps": 5000, "task_modules": [],
    "unlikelihood_weight": 0.0, "vocab_path": "v.model", "warmup_steps": 0, "z_loss": 0.0,
}  # fmt: skip


def test_run_files_of_older_versions_resume(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `exclude_templates` and the settings that are recorded since."""
    run = of_train(f"MODEL_DIR={tmp_path}")
    model = {k: v for k, v in run.model.to_dict().items() if k != "matching_init"}
    text = json.dumps({"recipe": {**OLD, "model": model}, "versions": {}, "git_commit": None})
    (tmp_path / "run.json").write_text(text)
    (tmp_path / provenance.CHECKPOINTS / "1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.model").write_bytes(b"pieces")
    provenance.open_run(run, "gin")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="its exclude_templates is None, got {'qasc': "):
        provenance.open_run(dataclasses.replace(run, exclude_templates={"qasc": ("a",)}), "gin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": "many"}, "run.json: batch_size: expected a whole number .*, got 'many'"),
        ({"stepz": 3}, "run.json: unknown field 'stepz'; nearest: 'steps'"),
        ({"lengths": [1, 2]}, "run.json: lengths: expected {'inputs': …"),
        ({"model": {"emb_dims": 3}}, "unknown field 'emb_dims'; nearest: 'emb_dim'"),
        (
            {"model": {"emb_dim": "wide"}},
            "run.json: model: T5Config: emb_dim: expected a whole number .*, got 'wide'",
        ),
        ({"mixture": 5}, "run.json: mixture: expected a name, got 5"),
        (
            {"model": {"emb_dim": "x"}},
            "run.json: model: T5Config: emb_dim: expected a whole number",
        ),
        ({"input_eos": None}, "run.json: input_eos: expected True or False, got None"),
        ({"vocab_path": ["v"]}, r"run.json: vocab_path: expected a path, got \['v'\]"),
    ],
)
def test_a_run_file_with_odd_fields_is_one_line(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {**OLD, **change}}))
    with pytest.raises(UserError, match=message) as caught:
        read_run(epath.Path(tmp_path / "run.json"), partial=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', "{", "\udcff"])
def test_a_run_file_that_is_none_is_one_line(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="run.json") as caught:
        read_run(epath.Path(tmp_path / "run.json"), partial=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "old, new", [('"seed": 0', '"seed": 1'), ('"inputs": 512', '"inputs": 112'), ("}", "")]
)
def test_a_damaged_run_file_is_no_other_run_and_does_not_keep_a_run_from_resuming(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    run = written(tmp_path)
    file = tmp_path / "run.json"
    good = file.read_text()
    assert old in good
    file.write_text(good.replace(old, new, 1))
    with pytest.raises(UserError, match="run.json: not what was written there"):
        read_run(epath.Path(file), partial=True)
    provenance.open_run(run, "gin")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "run.json: not what was written there" in line
    assert file.read_text() == good


def test_the_model_is_a_setting_too() -> None:
    run = of_train("T5Config.vocab_size=64.0", "DROPOUT_RATE=0")
    assert run.model == dataclasses.replace(run.model, vocab_size=64, dropout_rate=0.0)
    assert type(run.model.vocab_size) is int and type(run.model) is T5Config
