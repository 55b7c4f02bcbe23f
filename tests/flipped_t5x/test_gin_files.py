"""Every file of gin/t5x/, loaded as T5X's programs load it; and the recipe that arrives in T5X's classes."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator

import gin
import pytest

from flipped_t5x import requirement

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)
# isort: split
import t5x.eval
import t5x.train
from t5x import gin_utils, models, trainer, utils
from t5x.examples.t5 import network

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gin" / "t5x"
RUNS = {"train.gin", "eval.gin"}
SIZES = sorted(path.name for path in FOLDER.glob("*.gin") if path.name not in RUNS)
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


def test_evaluation(monkeypatch: pytest.MonkeyPatch, small_vocab_path: str) -> None:
    _load(
        monkeypatch, t5x.eval, ["gin/t5x/eval.gin", "gin/t5x/tiny.gin"], small_vocab_path,
        MIXTURE_OR_TASK_NAME="direct.super_glue_rte_score_eval", CHECKPOINT_PATH="c",
        EVAL_OUTPUT_DIR="o",
    )  # fmt: skip
    dataset = gin.get_configurable(utils.DatasetConfig)()
    assert dataset.mixture_or_task_name == "direct.super_glue_rte_score_eval"
    assert dataset.split == "validation"
    values = gin.get_bindings(t5x.eval.evaluate)
    assert values["output_dir"] == "o"
    assert isinstance(values["model"], models.EncoderDecoderModel)
