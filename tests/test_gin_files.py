"""Every shipped gin file can be read, says what it is for, and its names resolve."""

from __future__ import annotations

import pathlib
import re

import gin
import pytest

from flipped_cli import gin_config
from flipped_cli.runs import EvalRun, TrainRun
from flipped_core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALL_FILES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "gin").rglob("*.gin"))
# Those of gin/t5x/ bind T5X's classes: tests/flipped_t5x/test_gin_files.py loads them as T5X's programs do.
FILES = [name for name in ALL_FILES if not name.startswith("gin/t5x/")]
RECIPES = [name for name in FILES if name.startswith("gin/recipes/")]
MODELS = [name for name in FILES if name.startswith("gin/models/")]
RUNS = [name for name in FILES if name.startswith("gin/runs/")]
VALUES = {"DROPOUT_RATE": "0.1"}


def _load(files: list[str], *bindings: tuple[str, str]) -> None:
    evaluates = any("eval" in name for name in files)
    gin_config.load(
        gin_config.Arguments(tuple(files), bindings), EvalRun if evaluates else TrainRun
    )


def _bindings(name: str) -> list[tuple[str, str]]:
    """A value for each macro that the file leaves to the user."""
    needed = re.findall(r"^(\w+) = %gin\.REQUIRED", _closure(name), flags=re.MULTILINE)
    return [(macro, repr(f"some/{macro.lower()}")) for macro in dict.fromkeys(needed)]


def _closure(name: str) -> str:
    """The file's text with that of all files that it includes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text + "".join(
        _closure(n) for n in re.findall(r"^include '([^']+)'", text, re.MULTILINE)
    )


def _companions(name: str) -> list[str]:
    """The files that must stand before this one: a run may leave model and recipe to the user."""
    text = _closure(name)
    used = set(re.findall(r"%([A-Z][A-Z_0-9]*)", text))
    bound = set(re.findall(r"^([A-Z][A-Z_0-9]*) =", text, flags=re.MULTILINE))
    model = ["gin/models/tiny.gin"] if "@config.T5Config()" in text else []
    recipe = ["gin/recipes/flipped.gin"] if used - bound or model else []
    return [] if not used - bound else [*model, *recipe]


@pytest.mark.parametrize("name", ALL_FILES)
def test_file_says_how_it_is_run(name: str) -> None:
    head = (ROOT / name).read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for field in ("Command:", "Devices:", "Hours:", "Score:"):
        assert field in head, f"{name} does not say {field}"


@pytest.mark.parametrize("name", FILES)
def test_file_resolves(name: str) -> None:
    bindings = _bindings(name)
    _load([*_companions(name), name], *bindings)
    values = {m: gin.query_parameter(f"{m}/gin.macro.value") for m in gin_config.macros()}
    assert values or name in MODELS
    assert {macro: repr(values[macro]) for macro, _ in bindings} == dict(bindings)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_values(name: str) -> None:
    """Values of the model cards of direct_3B and flipped_3B."""
    _load([name])
    values = {m: gin.query_parameter(f"{m}/gin.macro.value") for m in gin_config.macros()}
    method = pathlib.Path(name).stem
    assert values["MIXTURE_OR_TASK_NAME"] == f"{method}_train"
    assert values["TASK_FEATURE_LENGTHS"] == {"inputs": 512, "targets": 128}
    assert (values["TRAIN_STEPS"], values["BATCH_SIZE"]) == (5000, 240)
    assert values["OPTIMIZER"] == "adafactor"
    assert values["LEARNING_RATE"] == (5e-5 if method == "flipped" else 1e-4)
    assert values["DROPOUT_RATE"] == 0.1
    assert values["UNLIKELIHOOD_WEIGHT"] == (3.0 if method == "flipped" else 0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_binds_macros_only(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [x for x in text.splitlines() if x and not x.startswith(("#", " "))]
    assert all(re.match(r"[A-Z][A-Z_0-9]* = ", line) for line in lines)


@pytest.mark.parametrize("name", MODELS)
def test_model_is_the_engines(name: str) -> None:
    """The sizes in gin are those that the engine has by the same name."""
    from t5_engine import config

    gin_config.load(
        gin_config.Arguments(("gin/recipes/direct.gin", name), (("DROPOUT_RATE", "0.25"),))
    )
    model = gin.get_configurable(config.T5Config)()
    assert isinstance(model, config.T5Config)
    assert model.dropout_rate == 0.25
    size = pathlib.Path(name).stem
    if size in config.SIZES:
        expected = config.SIZES[size]
        for field in ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers"):
            assert getattr(model, field) == getattr(expected, field), field


def test_train_gets_the_values_of_its_files() -> None:
    _load(
        ["gin/models/tiny.gin", "gin/recipes/flipped.gin", "gin/runs/train.gin"],
        ("MODEL_DIR", "'a'"),
        ("VOCAB_PATH", "'b'"),
        ("TrainRun.steps", "7"),
    )
    run = gin_config.make(TrainRun)
    assert (run.model_dir, run.steps, run.batch_size) == ("a", 7, 240)
    assert run.model.emb_dim == 64
    assert type(run) is TrainRun


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ([("TRAIN_STPES", "3")], r"unknown gin macro 'TRAIN_STPES'; nearest: 'TRAIN_STEPS'"),
        ([("TrianRun.steps", "3")], r"unknown gin binding 'TrianRun'; nearest: 'TrainRun'"),
        (
            [("TrainRun.stepz", "3")],
            r"unknown parameter of TrainRun 'stepz'; nearest: 'steps'",
        ),
        ([("TRAIN_STEPS", "%STEPSS")], r"unknown gin macro 'STEPSS'; nearest: .*STEPS"),
        ([("LENGTH_BUCKETS", "[(1, 2)")], r"--gin.LENGTH_BUCKETS: not gin syntax"),
        ([("VOCAB_PATH", "%gin.REQUIRED")], r"required gin binding is missing: --gin.VOCAB_PATH=…"),
    ],
)
def test_mistakes_are_one_line(bindings: list[tuple[str, str]], expected: str) -> None:
    given = [("MODEL_DIR", "'a'"), ("VOCAB_PATH", "'b'"), *bindings]
    with pytest.raises(UserError, match=expected) as caught:
        _load(["gin/models/tiny.gin", "gin/recipes/flipped.gin", "gin/runs/train.gin"], *given)
    assert "\n" not in str(caught.value)


def test_missing_required_macros_are_named_together() -> None:
    with pytest.raises(UserError, match=r"--gin.CHECKPOINT_PATH=… --gin.EVAL_OUTPUT_DIR=…"):
        _load(["gin/runs/eval.gin"])


def test_missing_file_and_bad_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"unknown gin file 'gin/runs/trian.gin'; nearest: 'gin/ru"):
        _load(["gin/runs/trian.gin"])
    for number, (text, expected) in enumerate(
        {
            "from __gin__ import dynamic_registration\nfrom flipped_cli import runs\n"
            "runs.TrianRun.steps = 3\n": "unknown name in flipped_cli.runs 'TrianRun'.*'TrainRun'",
            "from __gin__ import dynamic_registration\nruns.TrainRun.steps = 3\n": "imported by no",
            "from __gin__ import dynamic_registration\nfrom flipped_cli import runz\n": "runz",
            "STEPS == 3\n": "not gin syntax",
            "include 'nowhere.gin'\n": "nowhere.gin",
        }.items()
    ):
        file = tmp_path / f"{number}.gin"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=expected) as caught:
            _load([str(file)])
        assert "\n" not in str(caught.value)
        assert file.name in str(caught.value)


def test_files_are_found_from_any_folder_without_a_word(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    _load(["gin/recipes/direct.gin", "gin/models/tiny.gin"])
    assert "Path not found" not in caplog.text and "BATCH_SIZE" in gin_config.macros()


def test_command_line() -> None:
    words = [
        "--gin_file=a.gin",
        "--gin_file",
        "b.gin",
        "--gin.MODEL_DIR=/some/where",
        "--data_dir=d",
    ]
    words += [
        "--gin.TRAIN_STEPS=5",
        "--gin.LEARNING_RATE=1e-3",
        '--gin.LABEL="x y"',
        "--gin.A=@f()",
    ]
    parsed = gin_config.parse_arguments(words, "usage")
    assert parsed.gin_files == ("a.gin", "b.gin")
    assert parsed.bindings == (
        ("MODEL_DIR", "/some/where"),
        ("DATA_DIR", "d"),
        ("TRAIN_STEPS", "5"),
        ("LEARNING_RATE", "1e-3"),
        ("LABEL", '"x y"'),
        ("A", "@f()"),
    )
    for bad in ([], ["--gin_fil=a.gin"], ["a.gin"], ["--gin_file=a.gin", "--gin.X"]):
        with pytest.raises(UserError):
            gin_config.parse_arguments(bad, "usage")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", ["xl", "xxl", "tiny"])
def test_one_macro_of_the_recipe_sets_the_type_of_activations(recipe: str, size: str) -> None:
    from flipped_cli.runs import TrainRun

    files = (f"gin/models/{size}.gin", recipe, "gin/runs/train.gin")
    paths = (("MODEL_DIR", "'m'"), ("VOCAB_PATH", "'v'"))
    for given, dtype in (((), "float32"), ((("DTYPE", "'bfloat16'"),), "bfloat16")):
        gin_config.load(gin_config.Arguments(files, (*paths, *given)), TrainRun)
        assert gin_config.make(TrainRun).model.dtype == dtype
