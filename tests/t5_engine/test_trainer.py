"""Training: it learns, resumes bit for bit, starts from a checkpoint, and says what went wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import checkpoints, huggingface_folder, processes, t5x_format, trainer
from t5_engine.reporting import TIMES, Reporter
from t5_engine.run_settings import TrainConfig
from tests.t5_engine.stored import InMemory


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
        unlikelihood_weight=1.0,
        optimizer="adafactor",
        checkpoint_period=2,
        log_period=1,
        pack=False,
    )


@pytest.fixture
def packed(run):
    """In rows of one shape, to compile once."""
    lengths = {"inputs": 16, "targets": 8}
    return dataclasses.replace(run, pack=True, pack_lengths=lengths, pack_rows=(8,))


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


@pytest.mark.parametrize("form", ["run", "packed"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(
    form, dropping, batches, tmp_path, request
):
    run = request.getfixturevalue(form)
    whole = trainer.train(run, dropping, batches)
    parted = dataclasses.replace(run, model_dir=str(tmp_path / "parted"))
    trainer.train(dataclasses.replace(parted, steps=2), dropping, batches)
    resumed = trainer.train(parted, dropping, batches)
    assert_same(whole, resumed)
    assert int(resumed.step) == 4

    assert [row["step"] for row in rows_of(parted)] == [1, 2, 3, 4]
    for one, other in zip(rows_of(run), rows_of(parted), strict=True):
        for name in one.keys() - set(TIMES):
            assert one[name] == other[name], name
    # A finished run is read, not trained on.
    assert_same(trainer.train(parted, dropping, batches), resumed)


def test_a_padded_run_resumes_packed(run, packed, config, batches, tmp_path):
    """Up to rounding it ends as it would have."""
    run = dataclasses.replace(run, log_period=2)
    whole = trainer.train(run, config, batches)
    parted = dataclasses.replace(run, model_dir=str(tmp_path / "parted"))
    trainer.train(dataclasses.replace(parted, steps=2), config, batches)
    resumed = trainer.train(
        dataclasses.replace(packed, model_dir=parted.model_dir, log_period=2), config, batches
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), resumed.params, whole.params
    )
    for row, expected in zip(rows_of(parted), rows_of(run), strict=True):
        for name in expected.keys() - set(TIMES) - {"padding_share"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name


def test_rows_that_a_later_batch_overflows_end_the_run_in_one_line(packed, config, make_batch):
    def growing(start):
        for step in range(start, 40):
            yield make_batch(step, rows=4 if step < 17 else 40, wrong=True)

    packed = dataclasses.replace(packed, steps=40)
    with pytest.raises(UserError, match="PACK_ROWS: expected at least the .* rows .*, got 8 at"):
        trainer.train(packed, config, growing)
    assert checkpoints.load(packed.model_dir)[2] == 16


def test_rows_after_the_checkpoint_are_written_once(run, dropping, batches):
    """A run that died after its last checkpoint left rows that the resumed run writes again."""
    trainer.train(dataclasses.replace(run, steps=2), dropping, batches)
    with open(os.path.join(run.model_dir, "metrics.jsonl"), "a") as file:
        file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "lo')
    trainer.train(run, dropping, batches)
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4]
    assert max(row["loss"] for row in rows_of(run)) < 99


def test_a_folder_that_the_caller_holds_is_not_held_again(run, config, batches, monkeypatch):
    """Of several processes only the first has the lock; one that asked again would wait for the others forever."""
    monkeypatch.setattr(processes, "hold", lambda *_: pytest.fail("held again"))
    once = dataclasses.replace(run, steps=1)
    assert int(trainer.train(once, config, batches, hold=processes.Hold(None)).step) == 1


def test_training_lowers_the_loss(run, config, make_batch):
    run = dataclasses.replace(
        run, steps=30, learning_rate=1e-2, optimizer="adam", warmup_steps=3, decay="cosine"
    )
    trainer.train(
        dataclasses.replace(run, unlikelihood_weight=0.0),
        config,
        lambda start: iter([make_batch(0)] * (30 - start)),
    )
    losses = [row["loss"] for row in rows_of(run)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("layout", ["hf", "t5x"])
def test_training_begins_from_any_layout(run, config, params, batches, tmp_path, layout):
    """The public checkpoints, from which the recipe starts, are T5X's."""
    folder = tmp_path / layout
    folder.mkdir()
    write = {"hf": huggingface_folder.write, "t5x": t5x_format.write}[layout]
    write(InMemory(config, params, 7), folder)
    begun = dataclasses.replace(
        run, initial_checkpoint_path=str(folder), optimizer="adam", learning_rate=1e-12, steps=1
    )
    state = trainer.train(begun, config, batches)
    assert int(state.step) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params)


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


def test_loss_that_is_not_finite_stops_the_run(run, config, batches):
    """It names the step, the tasks of the batch and the last good checkpoint."""

    def poisoned(start):
        for step, batch in enumerate(batches(start), start + 1):
            batch["example_ids"] = np.array([b"a/1", b"b/2", b"a/3", b"c/4"], object)
            if step == 3:
                batch["decoder_loss_weights"] = np.full_like(batch["decoder_loss_weights"], np.inf)
            yield batch

    expected = r"loss is (nan|inf) at step 3, with a batch of 50% a, 25% b, 25% c; last good checkpoint: .*/2\. "
    with pytest.raises(UserError, match=expected) as caught:
        trainer.train(run, config, poisoned, lambda name: name.decode().partition("/")[0])
    assert "\n" not in str(caught.value)
    assert checkpoints.load(run.model_dir)[2] == 2


def test_shares_of_many_tasks_name_the_largest():
    ids = [f"task{i}/{j}".encode() for i in range(8) for j in range(i + 1)] + [0, b""]
    told = trainer._shares(ids, lambda name: name.decode().partition("/")[0])
    assert told == (
        ", with a batch of 22% task7, 19% task6, 17% task5, 14% task4, 11% task3, 17% 3 others"
    )
    assert trainer._shares(None, bytes.decode) == ""


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


def test_the_host_never_waits_for_the_newest_step(run, config, batches, monkeypatch):
    """Step N is on its way before the metrics of step N - 1 are waited for."""
    events = []
    real = jax.device_get

    def compiled_step(step, shardings):
        def start(state, batch):
            events.append(("start", sum(e[0] == "start" for e in events)))
            metrics = dict.fromkeys(("loss", "loss_lm", "loss_ul", "accuracy", "grad_norm"), 1.0)
            tokens = {"tokens": 4.0, "input_tokens": 4.0, "useful_tokens": 8.0}
            return state, {**metrics, **tokens, "examples": 1.0}

        return start

    def device_get(tree):
        if isinstance(tree, dict) and "grad_norm" in tree:
            events.append(("read", sum(e[0] == "read" for e in events)))
        return real(tree)

    monkeypatch.setattr(trainer, "compiled_step", compiled_step)
    monkeypatch.setattr(jax, "device_get", device_get)
    trainer.train(dataclasses.replace(run, steps=6, checkpoint_period=100), config, batches)
    starts, reads = (
        {number: place for place, (kind, number) in enumerate(events) if kind == wanted}
        for wanted in ("start", "read")
    )
    assert len(starts) == len(reads) == 6
    assert all(starts[n + 1] < reads[n] for n in range(5))
    assert all(reads[n] < starts[n + 2] for n in range(4))


METRICS = {"loss": 2.0, "loss_ul": 0.0, "accuracy": 0.5}
METRICS |= {"tokens": 30.0, "input_tokens": 50.0, "useful_tokens": 80.0}


def reporter(folder, **settings):
    return Reporter(folder, **{"first_step": 0, "steps": 4, "period": 4, "label": "x", **settings})


def step_of(report, step, **changes):
    known = {"learning_rate": 0.1, "positions": 100, "flops": 5e9, "input_seconds": 0.25}
    report.step(step, {**METRICS, "examples": 8.0, "loss": float(step)}, **known, **changes)


def test_speeds_times_padding_and_mfu_are_logged(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 10.0])
    stopped = types.SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 0.0)
    monkeypatch.setattr("t5_engine.reporting.time", stopped)
    report = reporter(tmp_path, nominal_rate=4e9)
    for step in range(1, 5):
        step_of(report, step)
        if step == 2:
            report.saved(1.0)
    report.close()
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["loss"] == 2.5 and row["padding_share"] == pytest.approx(0.2)
    assert row["examples_per_second"] == 3.2 and row["tokens_per_second"] == 32
    assert (row["input_seconds"], row["checkpoint_seconds"], row["step_seconds"]) == (0.25, 1, 2)
    assert row["mfu"] == pytest.approx(4 * 5e9 / 10 / 4e9)


def test_a_row_over_an_interruption_is_that_of_the_whole(tmp_path):
    for name in ("whole", "parted"):
        (tmp_path / name).mkdir()
        report = reporter(tmp_path / name)
        for step in range(1, 5):
            if name == "parted" and step == 3:
                unreported = json.loads(json.dumps(report.unreported))
                report.close()
                report = reporter(tmp_path / name, first_step=2, unreported=unreported)
            step_of(report, step, examples_by_dataset={"imdb": step, f"odd{step % 2}": 1})
        report.close()
    whole, parted = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("whole", "parted")
    )
    assert whole["examples_by_dataset"] == {"imdb": 10, "odd0": 2, "odd1": 2}
    assert {k: v for k, v in whole.items() if k not in TIMES} == {
        k: v for k, v in parted.items() if k not in TIMES
    }


def test_a_trace_names_the_blocks(run, config, batches, tmp_path):
    run = dataclasses.replace(run, steps=3, profile=(1, 1), log_period=3)
    trainer.train(run, config, batches)
    [trace] = (tmp_path / "run" / trainer.PROFILE_FOLDER).rglob("*.xplane.pb")
    content = trace.read_bytes()
    for block in (b"encoder", b"self_attention", b"cross_attention", b"mlp", b"loss", b"optimizer"):
        assert block in content, block
    late = dataclasses.replace(run, profile=(5, 1), model_dir=str(tmp_path / "late"))
    with pytest.raises(UserError, match="profile: 5 steps to let pass leave none to trace"):
        trainer.train(late, config, batches)


def test_tensorboard_scalars_are_written(run, config, batches):
    trainer.train(dataclasses.replace(run, steps=1), config, batches)
    files = [name for name in os.listdir(run.model_dir) if "tfevents" in name]
    assert files
    with open(os.path.join(run.model_dir, files[0]), "rb") as file:
        assert b"train/loss_ul" in file.read()


def test_impossible_settings_are_refused(run):
    for change in (
        {"steps": 0},
        {"unlikelihood_weight": -1.0},
        {"log_period": 0},
        {"microbatches": 0},
        {"profile": (0, 1)},
    ):
        with pytest.raises(UserError, match=next(iter(change)).upper()):
            dataclasses.replace(run, **change)
