"""T5X's program and ours take over each other's runs: the losses are those of a run that nobody interrupted.

Both are started as a user starts them. T5X is on no registry; where it is not installed these tests are skipped.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import jax
import numpy as np
import pytest

from flipped_t5x import requirement
from t5_engine import config as sizes
from t5_engine import exchange, t5x_format
from t5_engine.model import init_params
from t5_engine.weights import OwnWeights, to_params

try:
    requirement.prepare()
except requirement.T5XMissing as _error:
    pytest.skip(str(_error), allow_module_level=True)

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]
HALF, STEPS = 3, 6
TERMS = ("loss", "loss_lm", "loss_ul")
SETTINGS = {
    "MIXTURE_OR_TASK_NAME": "flipped.imdb",
    "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 24},
    "BATCH_SIZE": 4,
    "DROPOUT_RATE": 0.0,
    "LEARNING_RATE": 1e-2,
    "CHECKPOINT_PERIOD": HALF,
    "LOG_PERIOD": 1,
}


def _run(*words: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _train(program: list[str], files: list[str], folder: pathlib.Path, **settings: object) -> None:
    values = {**SETTINGS, "MODEL_DIR": str(folder), **settings}
    bindings = [f"--gin.{name}={value!r}" for name, value in values.items()]
    _run(*program, *(f"--gin_file=gin/{name}.gin" for name in files), *bindings)


def _ours(folder: pathlib.Path, vocab: str, **settings: object) -> dict[int, list[float]]:
    """Trains with train.py; the terms of the loss by step, of all runs in the folder."""
    files = ["models/tiny", "recipes/flipped", "runs/train"]
    _train(["train.py"], files, folder, VOCAB_PATH=vocab, **settings)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: [row[name] for name in TERMS] for row in rows}


def _t5x(folder: pathlib.Path, vocab: str, **settings: object) -> dict[int, list[float]]:
    """Trains with T5X; the terms by step."""
    import tensorflow as tf

    files = ["t5x/train", "recipes/flipped", "t5x/tiny"]
    _train(["-m", "t5x.train"], files, folder, VOCAB_PATH=vocab, **settings)
    found: dict[int, dict[str, float]] = {}
    for path in (folder / "train").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag in TERMS:
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(event.step, {})[value.tag] = number
    return {step: [terms[name] for name in TERMS] for step, terms in found.items()}


def _assert_same(found: Mapping[int, list[float]], whole: Mapping[int, list[float]], *steps: int):
    assert sorted(found) == list(steps)
    for step in steps:
        print(step, found[step], whole[step])
        np.testing.assert_allclose(found[step], whole[step], rtol=1e-4, err_msg=f"step {step}")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, small_vocab_path: str) -> pathlib.Path:
    """Random parameters, of step 7, as a T5X checkpoint: what both begin from."""
    folder = tmp_path_factory.mktemp("start")
    config = sizes.size("tiny").replace(vocab_size=32128)
    (folder / "ours").mkdir()
    exchange.save(folder / "ours", init_params(config, jax.random.key(1)), config, step=7)
    (folder / "t5x").mkdir()
    t5x_format.write(OwnWeights(folder / "ours"), folder / "t5x", layout="native")
    return folder / "t5x" / "checkpoint_7"


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, small_vocab_path: str, start: pathlib.Path
) -> tuple[pathlib.Path, dict[int, list[float]]]:
    """Our run of all steps, which nobody interrupted: (its folder, its losses)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    found = _ours(folder, small_vocab_path, TRAIN_STEPS=STEPS, INITIAL_CHECKPOINT_PATH=str(start))
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[STEPS][0] < 0.99 * found[1][0], "it must have learned something"
    return folder, found


def test_a_run_of_t5x_goes_on_in_ours(
    whole: tuple[pathlib.Path, dict[int, list[float]]], start: pathlib.Path, small_vocab_path: str,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    folder = tmp_path / "in_t5x"
    found = _t5x(folder, small_vocab_path, TRAIN_STEPS=HALF, INITIAL_CHECKPOINT_PATH=str(start))
    _assert_same(found, whole[1], 1, 2, 3)
    # Of what it began from it took the weights, and neither the step nor the optimizer's state.
    begun = exchange.open_checkpoint(folder / "checkpoint_0")
    assert begun.step == 0 and not any(np.any(a) for a in exchange.moments_of(begun).values())
    given = exchange.open_checkpoint(start)
    for mine, theirs in zip(_leaves(begun), _leaves(given), strict=True):
        np.testing.assert_array_equal(mine, theirs)

    taken = tmp_path / "taken"
    _run("-m", "flipped_cli.main", "ckpt", "import", "--from", "t5x", str(folder), str(taken))
    _assert_same(_ours(taken, small_vocab_path, TRAIN_STEPS=STEPS), whole[1], 4, 5, 6)


def _leaves(weights: exchange.Weights) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(to_params(weights))]


def test_a_run_of_ours_goes_on_in_t5x(
    whole: tuple[pathlib.Path, dict[int, list[float]]],
    small_vocab_path: str,
    tmp_path: pathlib.Path,
) -> None:
    half = whole[0] / "checkpoints" / str(HALF)
    given = tmp_path / "given"
    _run(
        "-m", "flipped_cli.main", "ckpt", "export", "--to", "t5x", "--layout", "orbax",
        str(half), str(given),
    )  # fmt: skip
    _assert_same(_t5x(given, small_vocab_path, TRAIN_STEPS=STEPS), whole[1], 4, 5, 6)
