"""Every file of gin/t5x/, loaded as T5X's programs load it; and the recipe that arrives in T5X's classes."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Iterator

import gin
import jax
import pytest
from flax.traverse_util import flatten_dict

from flipped_core.errors import UserError
from flipped_t5x import checkpoints, requirement

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)
# isort: split
import t5x.eval
import t5x.train
from t5x import gin_utils, models, trainer, utils
from t5x.examples.t5 import network

from t5_engine import config as sizes
from t5_engine import exchange, t5x_format
from t5_engine.model import init_params
from t5_engine.weights import OwnWeights

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gin" / "t5x"
RUNS = {"train.gin", "eval.gin"}
SIZES = sorted(path.name for path in FOLDER.glob("*.gin") if path.name not in RUNS)
GOLDEN = json.loads((ROOT / "tests/t5_engine/golden_parameters.json").read_text(encoding="utf-8"))
RECIPES = sorted(path.stem for path in (ROOT / "gin" / "recipes").glob("*.gin"))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


def _load(monkeypatch: pytest.MonkeyPatch, program: object, files: list[str], vocab: str, **macros):
    monkeypatch.setitem(sys.modules, "__main__", program)  # the program whose function is bound
    bindings = [f"{name} = {value!r}" for name, value in {"VOCAB_PATH": vocab, **macros}.items()]
    gin_utils.parse_gin_flags([str(ROOT)], files, bindings)


def _train(monkeypatch: pytest.MonkeyPatch, recipe: str, size: str, vocab: str) -> None:
    files = ["gin/t5x/train.gin", f"gin/recipes/{recipe}.gin", f"gin/t5x/{size}"]
    _load(monkeypatch, t5x.train, files, vocab, MODEL_DIR="somewhere")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_arrives(
    recipe: str, monkeypatch: pytest.MonkeyPatch, small_vocab_path: str
) -> None:
    _train(monkeypatch, recipe, "tiny.gin", small_vocab_path)
    from flipped_t5x.converter import PairedFeatureConverter
    from flipped_t5x.model import FlippedModel

    model = gin.get_configurable(FlippedModel)()
    assert model._unlikelihood_weight == (3.0 if recipe == "flipped" else 0.0)
    assert (model.FEATURE_CONVERTER_CLS is PairedFeatureConverter) == (recipe == "flipped")
    assert isinstance(model, models.EncoderDecoderModel)
    assert model.module.config.dropout_rate == 0.1
    dataset = gin.get_configurable(utils.DatasetConfig)()
    assert dataset.mixture_or_task_name == f"{recipe}_train"
    assert (dataset.batch_size, dataset.pack) == (240, False)
    assert dict(dataset.task_feature_lengths) == {"inputs": 512, "targets": 128}
    rate = gin.get_bindings(trainer.Trainer)["learning_rate_fn"](0)
    assert float(rate) == pytest.approx(5e-5 if recipe == "flipped" else 1e-4)
    checkpoint = gin.get_configurable(utils.CheckpointConfig)()
    assert (checkpoint.save.period, checkpoint.restore.path) == (1000, None)
    assert gin.query_parameter("TRAIN_STEPS/gin.macro.value") == 5000


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_engines(
    size: str, monkeypatch: pytest.MonkeyPatch, small_vocab_path: str
) -> None:
    _train(monkeypatch, "flipped", size, small_vocab_path)
    found = gin.get_configurable(network.T5Config)()
    engine = (ROOT / "gin" / "models" / size).read_text(encoding="utf-8")
    for field in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim",
                  "num_encoder_layers", "num_decoder_layers", "dtype"):  # fmt: skip
        value = str(getattr(found, field))
        written = re.search(rf"^  {field} = '?(\w+)'?$", engine, flags=re.MULTILINE)
        assert written is not None and written[1] == value, field
    assert tuple(found.mlp_activations) == ("gelu", "linear") and not found.logits_via_embedding


@pytest.mark.parametrize("size", GOLDEN)
def test_parameters_are_the_golden_ones(
    size: str, monkeypatch: pytest.MonkeyPatch, small_vocab_path: str
) -> None:
    """T5X's model of that size, built from its gin file without allocating anything: names, shapes and types."""
    _train(monkeypatch, "flipped", f"{size}.gin", small_vocab_path)
    from flipped_t5x.model import FlippedModel

    model = gin.get_configurable(FlippedModel)()
    shapes = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), (1, 1))
    variables = jax.eval_shape(
        lambda key: model.get_initial_variables(key, shapes), jax.random.PRNGKey(0)
    )
    found: dict[str, str] = {}
    layers: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for path, leaf in flatten_dict(variables["params"]).items():
        layers.get(path[0], set()).update(part for part in path if part.startswith("layers_"))
        name = "/".join("layers_*" if part.startswith("layers_") else part for part in path)
        text = f"{leaf.dtype.name}{list(leaf.shape)}"
        assert found.setdefault(name, text) == text  # the layers are alike
    assert found == GOLDEN[size]["t5x"]
    config = model.module.config
    numbers = (config.num_encoder_layers, config.num_decoder_layers)
    assert tuple(len(names) for names in layers.values()) == numbers


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Random parameters of gin/t5x/tiny.gin's size, of step 4: ours, and T5X's in both layouts."""
    folder = tmp_path_factory.mktemp("exported")
    config = sizes.size("tiny").replace(vocab_size=32128)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    for name in ("ours", "native", "orbax"):
        (folder / name).mkdir()
    exchange.save(folder / "ours", params, config, step=4)
    for layout in ("native", "orbax"):
        t5x_format.write(OwnWeights(folder / "ours"), folder / layout, layout=layout)
    return folder


def test_evaluation(
    monkeypatch: pytest.MonkeyPatch, small_vocab_path: str, exported: pathlib.Path
) -> None:
    _load(
        monkeypatch, t5x.eval, ["gin/t5x/eval.gin", "gin/t5x/tiny.gin"], small_vocab_path,
        MIXTURE_OR_TASK_NAME="direct.super_glue_rte_score_eval",
        CHECKPOINT_PATH=str(exported / "native"), EVAL_OUTPUT_DIR="o",
    )  # fmt: skip
    dataset = gin.get_configurable(utils.DatasetConfig)()
    assert dataset.mixture_or_task_name == "direct.super_glue_rte_score_eval"
    assert dataset.split == "validation"
    values = gin.get_bindings(t5x.eval.evaluate)
    assert values["output_dir"] == "o"
    assert isinstance(values["model"], models.EncoderDecoderModel)
    # The folder above a step stands for its newest.
    assert values["restore_checkpoint_cfg"].path == str(exported / "native" / "checkpoint_4")


def _restored(
    monkeypatch: pytest.MonkeyPatch, vocab: str, path: object, model_dir: str = "somewhere",
    **other: int,
) -> str:  # fmt: skip
    """The path that T5X is given to begin from, for a model in which some sizes may be others."""
    gin.clear_config()
    changes = {f"network.T5Config.{name}": value for name, value in other.items()}
    _load(
        monkeypatch, t5x.train, ["gin/t5x/train.gin", "gin/recipes/flipped.gin", "gin/t5x/tiny.gin"],
        vocab, MODEL_DIR=model_dir, INITIAL_CHECKPOINT_PATH=str(path), **changes,
    )  # fmt: skip
    return gin.get_configurable(utils.RestoreCheckpointConfig)().path


@pytest.mark.parametrize("layout", ["native", "orbax"])
def test_what_a_training_begins_from_is_of_its_model(
    layout: str, monkeypatch: pytest.MonkeyPatch, small_vocab_path: str, exported: pathlib.Path
) -> None:
    step = exported / layout / "checkpoint_4"
    assert _restored(monkeypatch, small_vocab_path, step) == str(step)
    assert _restored(monkeypatch, small_vocab_path, exported / layout) == str(step)
    for change, message in (
        ({"num_encoder_layers": 3}, "of another model: it lacks .* such as encoder/layers_2/"),
        ({"num_encoder_layers": 1}, "has, beyond the model's, .* such as encoder/layers_1/"),
        ({"mlp_dim": 64}, r"mlp/\w+/kernel is \[.*128.*\] there and \[.*64.*\] here"),
    ):
        with pytest.raises(UserError, match=message):
            _restored(monkeypatch, small_vocab_path, step, **change)


def test_what_a_training_begins_from_is_a_checkpoint_of_t5x(
    monkeypatch: pytest.MonkeyPatch, small_vocab_path: str, exported: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(exported)
    (exported / "best").mkdir()
    (exported / "best" / "checkpoint").write_bytes(
        (exported / "native" / "checkpoint_4" / "checkpoint").read_bytes()
    )
    for path, message in (
        ("ours", "no T5X checkpoint at .*flipped ckpt export --to t5x ours OUT"),
        ("nothing", "there is no such folder"),
        ("best", "opens only folders named checkpoint_<step>, got 'best'"),
    ):
        with pytest.raises(UserError, match=message):
            _restored(monkeypatch, small_vocab_path, path)
    # A run that goes on reads its own, and does not look at what it began from.
    (tmp_path / "run" / "checkpoint_2").mkdir(parents=True)
    run = str(tmp_path / "run")
    assert _restored(monkeypatch, small_vocab_path, "nothing", model_dir=run) == "nothing"


def test_a_runs_folder_is_absolute_or_a_bucket(
    monkeypatch: pytest.MonkeyPatch, small_vocab_path: str
) -> None:
    """Orbax, as T5X calls it, takes no relative path."""
    _train(monkeypatch, "flipped", "tiny.gin", small_vocab_path)
    assert gin.get_bindings(t5x.train.train)["model_dir"] == str(
        pathlib.Path("somewhere").absolute()
    )
    assert checkpoints.folder("gs://bucket/run") == "gs://bucket/run"
