"""The pre-trained miniature in the package is what its model card says."""

from __future__ import annotations

import json
import pathlib

import pytest

import flipped_world
from flipped_cli import pretrain
from flipped_tasks.tokens import Vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def card():
    return json.loads(flipped_world.CARD.read_text(encoding="utf-8"))


def test_the_files_have_the_hashes_of_the_card(card):
    assert set(card["sha256"]) == {flipped_world.WEIGHTS.name, flipped_world.VOCABULARY.name}
    for name, expected in card["sha256"].items():
        assert pretrain.sha256(flipped_world.PRETRAINED / name) == expected


def test_the_weights_are_small_enough_to_ship():
    assert flipped_world.WEIGHTS.stat().st_size <= MOST_BYTES


def test_the_model_is_the_one_that_the_demo_trains():
    """`load_for` in training refuses another structure; this names the field."""

    from flipped_cli import gin_config
    from flipped_cli.runs import TrainRun
    from t5_engine import exchange
    from t5_engine.config import STRUCTURE_FIELDS

    bindings = (("MODEL_DIR", "'some'"), ("VOCAB_PATH", "'some'"))
    gin_config.load(
        gin_config.Arguments((str(ROOT / "gin/runs/demo_flipped.gin"),), bindings), TrainRun
    )
    wanted = gin_config.make(TrainRun).model
    found = exchange.open_checkpoint(flipped_world.PRETRAINED).config
    assert {name: getattr(found, name) for name in STRUCTURE_FIELDS} == {
        name: getattr(wanted, name) for name in STRUCTURE_FIELDS
    }


def test_the_vocabulary_fits_the_model():
    from t5_engine import exchange

    rows = Vocabulary.from_file(flipped_world.VOCABULARY).size
    assert rows <= exchange.open_checkpoint(flipped_world.PRETRAINED).config.vocab_size


def test_the_loss_on_the_fixed_sample_is_that_of_the_card(card):
    assert card["sample"] == {"seed": pretrain.SAMPLE_SEED, "texts": pretrain.SAMPLE_TEXTS}
    assert pretrain.sample_loss(flipped_world.PRETRAINED) == pytest.approx(
        card["loss_on_sample"], abs=1e-4
    )


def test_another_model_has_another_loss_on_the_sample(card, tmp_path):
    """The test above can fail: a small change of one parameter shows."""
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(flipped_world.PRETRAINED, tmp_path / "changed")
    tensors = load_file(flipped_world.WEIGHTS)
    name = "decoder.final_layer_norm.weight"
    tensors[name] = (tensors[name] * np.float32(1.1)).astype(np.float32)
    save_file(tensors, tmp_path / "changed" / flipped_world.WEIGHTS.name, {"format": "pt"})
    changed = pretrain.sample_loss(tmp_path / "changed")
    assert abs(changed - card["loss_on_sample"]) > 1e-4


def test_readme_and_card_say_the_same(card):
    text = (flipped_world.PRETRAINED / "README.md").read_text(encoding="utf-8")
    for value in (*card["sha256"].values(), card["command"], str(card["final_loss"])):
        assert value in text
    assert f"{card['steps']:,}" in text


def test_the_package_ships_every_file(tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    shipped = {path.name for path in (tmp_path / "flipped_world" / "pretrained").iterdir()}
    assert shipped == {path.name for path in flipped_world.PRETRAINED.iterdir()}
    assert {
        "README.md",
        *(path.name for path in (flipped_world.WEIGHTS, flipped_world.CARD)),
    } <= shipped
