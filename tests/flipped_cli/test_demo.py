"""The demo's commands: each of its gin files is complete, and its trainings are comparable."""

from __future__ import annotations

import pathlib

import pytest

from flipped_cli import demo, gin_config, pretrain
from flipped_cli.runs import TrainRun

TRAININGS = {**demo.TRAININGS, **demo.CHANNEL}


def settings(command) -> TrainRun:
    """What train.py would be called with; it refuses a macro that no file binds."""
    files, bindings = [], []
    for argument in command.arguments[1:]:
        name, _, value = argument.removeprefix("--").partition("=")
        if name == "gin_file":
            files.append(value)
        else:
            bindings.append((name.removeprefix("gin."), value))
    gin_config.load(gin_config.Arguments(tuple(files), tuple(bindings)), TrainRun)
    return gin_config.make(TrainRun)


def training(label: str) -> TrainRun:
    return settings(demo._training(pathlib.Path("compiled"), pathlib.Path("out"), label, seed=3))


@pytest.mark.parametrize("label", TRAININGS)
def test_a_training_of_the_demo_starts_from_the_shipped_checkpoint(label):
    run = training(label)
    assert run.mixture == f"{TRAININGS[label]}_train" and run.seed == 3
    assert pathlib.Path(run.initial_checkpoint_path).name == "pretrained"
    assert (pathlib.Path(run.initial_checkpoint_path) / "model.safetensors").is_file()
    assert run.unlikelihood_weight == (3.0 if label == "flipped" else 0.0)


def test_the_methods_see_equally_many_training_examples():
    examples = {label: training(label).steps * training(label).batch_size for label in TRAININGS}
    # Without its unlikelihood term FLIPPED stays at chance, which takes fewer.
    assert examples.pop("flipped_no_ul") < examples["flipped"]
    assert len(set(examples.values())) == 1


@pytest.mark.parametrize("name", pretrain.RUNS)
def test_a_run_of_the_pre_training_is_complete(name):
    command = pretrain._training(pathlib.Path("out"), name, 5, pathlib.Path("start"))
    run = settings(command)
    assert run.mixture.startswith("world_text") and run.seed == 5
    assert run.model.num_encoder_layers == (2 if name == pretrain.RUNS[0] else 3)
