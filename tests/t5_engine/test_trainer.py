"""Training: it learns, resumes bit for bit, starts from a checkpoint, and says what went wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from flipped_errors import UserError
from t5_engine import checkpoints, trainer
from t5_engine.trainer import TrainConfig


@pytest.fixture(scope="module")
def dropping(config):
    """With dropout, so that a resumed run must also continue its random draws."""
    return config.replace(dropout_rate=0.1)


@pytest.fixture
def run(tmp_path):
    return TrainConfig(
        model_dir=str(tmp_path / "run"),
        steps=4,
        learning_rate=3e-3,
        lambda_unlikelihood=1.0,
        optimizer="adafactor",
        checkpoint_period=2,
        log_period=1,
    )


@pytest.fixture
def batches(make_batch):
    def from_step(start):
        step = start
        while True:
            yield make_batch(step, rows=4, wrong=True)
            step += 1

    return from_step


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows_of(run):
    with open(os.path.join(run.model_dir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(run, dropping, batches, tmp_path):
    whole = trainer.train(run, dropping, batches)
    parted = dataclasses.replace(run, model_dir=str(tmp_path / "parted"))
    trainer.train(dataclasses.replace(parted, steps=2), dropping, batches)
    resumed = trainer.train(parted, dropping, batches)
    assert_same(whole, resumed)
    assert int(resumed.step) == 4

    assert [row["step"] for row in rows_of(parted)] == [1, 2, 3, 4]
    timeless = {"examples_per_second", "steps_per_second"}
    for one, other in zip(rows_of(run), rows_of(parted), strict=True):
        for name in one.keys() - timeless:
            assert one[name] == other[name], name
    # A finished run is read, not trained on.
    assert_same(trainer.train(parted, dropping, batches), resumed)


def test_rows_after_the_checkpoint_are_written_once(run, dropping, batches):
    """A run that died after its last checkpoint left rows that the resumed run writes again."""
    trainer.train(dataclasses.replace(run, steps=2), dropping, batches)
    with open(os.path.join(run.model_dir, "metrics.jsonl"), "a") as file:
        file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "lo')
    trainer.train(run, dropping, batches)
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4]
    assert max(row["loss"] for row in rows_of(run)) < 99


def test_training_lowers_the_loss(run, config, make_batch):
    run = dataclasses.replace(
        run, steps=30, learning_rate=1e-2, optimizer="adam", warmup_steps=3, decay="cosine"
    )
    trainer.train(
        dataclasses.replace(run, lambda_unlikelihood=0.0),
        config,
        lambda start: iter([make_batch(0)] * (30 - start)),
    )
    losses = [row["loss"] for row in rows_of(run)]
    assert losses[-1] < 0.5 * losses[0]


def test_initial_checkpoint_gives_parameters_only(run, config, batches, tmp_path):
    trainer.train(dataclasses.replace(run, steps=2), config, batches)
    params, saved_config, step = checkpoints.load(run.model_dir)
    assert (saved_config, step) == (config, 2)
    second = dataclasses.replace(
        run,
        model_dir=str(tmp_path / "second"),
        initial_checkpoint_path=run.model_dir,
        optimizer="adam",
        learning_rate=1e-12,
        steps=1,
    )
    state = trainer.train(second, config, batches)
    assert int(state.step) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params)


def test_checkpoint_of_another_model_is_refused_by_name(run, config, batches, tmp_path):
    trainer.train(dataclasses.replace(run, steps=2), config, batches)
    message = "emb_dim is 16 there and 32 here; mlp_dim is 24 there and 40 here"
    other = config.replace(emb_dim=32, mlp_dim=40)
    with pytest.raises(UserError, match=message):
        trainer.train(run, other, batches)
    elsewhere = dataclasses.replace(
        run, model_dir=str(tmp_path / "new"), initial_checkpoint_path=run.model_dir
    )
    with pytest.raises(UserError, match=message):
        trainer.train(elsewhere, other, batches)
    with pytest.raises(UserError, match="optimizer 'adafactor', this run has 'adam'"):
        trainer.train(dataclasses.replace(run, optimizer="adam"), config, batches)


def test_missing_and_broken_checkpoints_are_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        checkpoints.load(tmp_path / "nowhere")
    about = tmp_path / "checkpoints" / "7" / "about"
    about.mkdir(parents=True)
    (about / "metadata").write_text("{")
    with pytest.raises(UserError, match="expected the JSON"):
        checkpoints.load(tmp_path)


def test_loss_that_is_not_finite_stops_the_run(run, config, batches):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 3:
                batch["decoder_loss_weights"] = np.full_like(batch["decoder_loss_weights"], np.inf)
            yield batch

    with pytest.raises(
        UserError, match=r"loss is (nan|inf) at step 3; the last checkpoint is .*/2\."
    ):
        trainer.train(run, config, poisoned)
    assert checkpoints.load(run.model_dir)[2] == 2


def test_batches_that_end_early_are_named(run, config, batches):
    with pytest.raises(UserError, match="each of 4 steps, got 1"):
        trainer.train(run, config, lambda start: iter([next(batches(start))]))


def test_sigterm_saves_and_ends_with_zero(run, config, batches):
    def interrupted(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(SystemExit) as ended:
        trainer.train(run, config, interrupted)
    assert ended.value.code == 0
    assert checkpoints.load(run.model_dir)[2] == 3


def test_tensorboard_scalars_are_written(run, config, batches):
    trainer.train(dataclasses.replace(run, steps=1), config, batches)
    files = [name for name in os.listdir(run.model_dir) if "tfevents" in name]
    assert files
    with open(os.path.join(run.model_dir, files[0]), "rb") as file:
        assert b"train/loss_ul" in file.read()


def test_impossible_settings_are_refused(run):
    for change in ({"steps": 0}, {"lambda_unlikelihood": -1.0}, {"log_period": 0}):
        with pytest.raises(UserError, match=next(iter(change))):
            dataclasses.replace(run, **change)
