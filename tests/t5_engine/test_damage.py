"""Checkpoints after damage: the same numbers, an older checkpoint with a warning, or one line; never other numbers.

    python -m pytest -m slow -s tests/t5_engine/test_damage.py

DAMAGE_SEED sets the seed, which each test prints; DAMAGE_TRIALS multiplies the trials.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import pathlib
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import (
    axes,
    checkpoints,
    checksums,
    exchange,
    huggingface_folder,
    manifest,
    partitioning,
    reporting,
    t5x_format,
    trainer,
    verification,
)
from t5_engine.config import T5Config
from t5_engine.step import make_state, state_shardings
from t5_engine.trainer import TrainConfig
from t5_engine.weights import to_params
from tests.t5_engine import damage
from tests.t5_engine.conftest import VOCAB, random_batch

SEED = int(os.environ.get("DAMAGE_SEED", "20261128"))
TRIALS = int(os.environ.get("DAMAGE_TRIALS", "1"))
PATIENCE = (
    5.0  # seconds of this process's own work; six times as long by the clock, for busy machines
)
CONFIG = T5Config(
    vocab_size=VOCAB,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
STEPS = (2, 4, 6)
NEWEST = STEPS[-1]

pytestmark = pytest.mark.slow


def train_config(folder: pathlib.Path, steps: int) -> TrainConfig:
    return TrainConfig(
        model_dir=str(folder),
        steps=steps,
        learning_rate=1e-2,
        optimizer="adafactor",
        checkpoint_period=2,
        log_period=1,
    )


class Run:
    """A trained run, a working copy of it to damage, and what each of its checkpoints holds."""

    def __init__(self, root: pathlib.Path) -> None:
        self.whole, self.folder = root / "whole", root / "copy"
        batches = functools.partial(map, functools.partial(random_batch, rows=4))
        config = train_config(self.whole, NEWEST)
        trainer.train(config, CONFIG, lambda done: batches(range(done, NEWEST)))
        shutil.copytree(self.whole, self.folder)
        abstract = jax.eval_shape(lambda: make_state(CONFIG, config.transform, config.seed))
        layout = axes.Layout(partitioning.make_mesh(1), axes.rules())
        target = checkpoints.with_shardings(abstract, state_shardings(abstract, CONFIG, layout))
        self._target = target.params, target.opt_state
        self.states = {}
        for step in STEPS:
            shutil.rmtree(self.folder / "checkpoints")
            (self.folder / "checkpoints").mkdir()
            self._restore_step(step)
            self.states[step] = self.resume()
        self.mend()

    def _restore_step(self, step: int) -> None:
        place = self.folder / "checkpoints" / str(step)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.whole / "checkpoints" / str(step), place)

    def mend(self) -> None:
        """Undoes all damage."""
        for step in STEPS:
            self._restore_step(step)
        shutil.copyfile(self.whole / "metrics.jsonl", self.folder / "metrics.jsonl")

    def newest(self) -> pathlib.Path:
        return self.folder / "checkpoints" / str(NEWEST)

    def resume(self, verify: bool = True) -> tuple[int, Any]:
        """(step, parameters, optimizer's state and progress) with which a run would go on, as the trainer asks."""
        store = checkpoints.Checkpoints(self.folder, verify=verify)
        try:
            step = store.resumable()
            assert step is not None
            restored = store.restore(step, *self._target, CONFIG, "adafactor")
            return step, jax.device_get((*restored, store.progress(step)))
        finally:
            store.close()

    def load(self) -> tuple[int, Any]:
        """(step, parameters) of the run's newest checkpoint, as evaluation loads them."""
        params, _, step = exchange.load(self.folder)
        return step, jax.device_get(params)

    def load_step(self) -> tuple[int, Any]:
        """Likewise of the newest step, asked for by name."""
        params, _, step = exchange.load(self.newest())
        return step, jax.device_get(params)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The run's newest checkpoint in the other formats, each with a manifest."""
    root = tmp_path_factory.mktemp("exported")
    weights = exchange.open_checkpoint(run.whole)
    with manifest.new_folder(root / "hf") as folder:
        huggingface_folder.write(weights, folder, shard_bytes=40_000)
    for layout in ("native", "orbax"):
        with manifest.new_folder(root / layout) as folder:
            moments = exchange.moments_of(weights)
            t5x_format.write(weights, folder, layout=layout, moments=moments)
    return {path.name: path for path in root.iterdir()}


def equal(one: Any, other: Any) -> bool:
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)
    return all(jax.tree.leaves(same))


def attempt(read: Callable[[], Any]) -> tuple[Any, UserError | None, str]:
    """(what was read, the error instead, what was printed); fails on a hang, and on a line that is none."""
    err = io.StringIO()
    began, worked = time.monotonic(), time.process_time()
    value = error = None
    with contextlib.redirect_stderr(err):
        try:
            value = read()
        except UserError as one:
            error = one
            assert "\n" not in str(one), str(one)
    assert time.process_time() - worked < PATIENCE and time.monotonic() - began < 6 * PATIENCE
    return value, error, err.getvalue()


def outcome(run: Run, read: Callable[[], tuple[int, Any]], expected: dict[int, Any]) -> str:
    """How a reading ended; raises `AssertionError` where numbers changed, or nobody was told."""
    value, error, told = attempt(read)
    if error is not None:
        return "refused"
    step, found = value
    assert equal(found, expected[step]), f"other numbers at step {step}"
    if step == NEWEST:
        return "same numbers"
    assert f"checkpoint {run.newest()} is not whole" in told and "warning" in told, told
    return "fell back"


@pytest.mark.parametrize("kind", damage.KINDS)
def test_no_damage_to_a_checkpoint_changes_numbers(run: Run, kind: str, capsys: Any):
    draw = random.Random(f"{SEED} {kind}")
    states = {step: state for step, (_, state) in run.states.items()}
    params = {step: state[0] for step, state in states.items()}
    readings = {
        "resume": (run.resume, states),
        "load": (run.load, params),
        "load the step": (run.load_step, params),
    }
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _ in range(200 * TRIALS):
        what = damage.KINDS[kind](draw, run.newest())
        if draw.random() < 0.2:
            older = run.folder / "checkpoints" / str(STEPS[-2])
            what += "; " + damage.KINDS[kind](draw, older)
        for name, (read, expected) in readings.items():
            try:
                counts[name][outcome(run, read, expected)] += 1
            except Exception as error:
                raise AssertionError(f"{name} after {what}") from error
        run.mend()
    with capsys.disabled():
        print(
            f"\nseed {SEED}, {200 * TRIALS} × {kind}: { ({k: dict(v) for k, v in counts.items()}) }"
        )


@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("layout", ["hf", "native", "orbax"])
def test_no_damage_to_an_export_changes_numbers(
    run: Run, exported: dict[str, pathlib.Path], layout: str, kind: str, tmp_path: Any, capsys: Any
):
    draw = random.Random(f"{SEED} {layout} {kind}")
    expected = run.states[NEWEST][1][0]

    def read(folder: pathlib.Path) -> Any:
        weights = exchange.open_checkpoint(folder)
        return jax.device_get(to_params(weights)), exchange.moments_of(weights)

    whole = read(exported[layout])
    assert equal(whole[0], expected)
    counts: collections.Counter[str] = collections.Counter()
    for i in range(67 * TRIALS):
        folder = tmp_path / str(i)
        shutil.copytree(exported[layout], folder)
        what = damage.KINDS[kind](draw, folder)
        found, error, _ = attempt(functools.partial(read, folder))
        assert error is not None or equal(found, whole), what
        counts["same numbers" if error is None else "refused"] += 1
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\nseed {SEED}, {67 * TRIALS} × {kind}, {layout}: {dict(counts)}")


def metadata_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files but the long ones that hold arrays."""
    return [path for path in damage.files_below(folder) if path.stat().st_size < 40_000]


def test_fuzzed_metadata_of_a_checkpoint(run: Run, capsys: Any):
    """Of every other one the checksums are written anew, so that the readers behind them meet the damage too."""
    draw = random.Random(f"{SEED} metadata")
    counts: collections.Counter[str] = collections.Counter()
    states = {step: state for step, (_, state) in run.states.items()}
    for trial in range(1200 * TRIALS):
        path = draw.choice(metadata_of(run.newest()))
        path.write_bytes(damage.mutated(draw, path.read_bytes()))
        signed = trial % 2 and path.name != checksums.FILE
        try:
            if signed:
                checksums.write(run.newest())
                _, error, _ = attempt(run.resume)
                attempt(functools.partial(run.resume, verify=False))
                attempt(run.load)
                attempt(functools.partial(everything, run.newest()))
                counts["signed, refused" if error else "signed, read"] += 1
            else:
                counts[outcome(run, run.resume, states)] += 1
                attempt(run.load_step)
        except Exception as error:
            raise AssertionError(f"trial {trial}, {path}, signed {signed}") from error
        run.mend()
    with capsys.disabled():
        print(f"\nseed {SEED}, {1200 * TRIALS} mutated files of checkpoints: {dict(counts)}")


def everything(folder: pathlib.Path) -> Any:
    """Reads all that `flipped ckpt` reads."""
    weights = exchange.open_checkpoint(folder, verify=False)
    verification.read_all(weights)
    return jax.device_get(to_params(weights)), exchange.moments_of(weights)


@pytest.mark.parametrize("layout", ["hf", "native", "orbax"])
def test_fuzzed_metadata_of_an_export(
    exported: dict[str, pathlib.Path], layout: str, tmp_path: pathlib.Path, capsys: Any
):
    draw = random.Random(f"{SEED} metadata {layout}")
    counts: collections.Counter[str] = collections.Counter()
    for i in range(200 * TRIALS):
        folder = tmp_path / str(i)
        shutil.copytree(exported[layout], folder)
        path = draw.choice(metadata_of(folder))
        path.write_bytes(damage.mutated(draw, path.read_bytes()))
        try:
            if i % 2:
                (folder / manifest.FILE).unlink(missing_ok=True)
            _, error, _ = attempt(functools.partial(everything, folder))
            attempt(functools.partial(exchange.load, folder))
        except Exception as failed:
            raise AssertionError(f"trial {i}, {path}") from failed
        counts["refused" if error else "read"] += 1
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\nseed {SEED}, {200 * TRIALS} mutated files of {layout}: {dict(counts)}")


def test_fuzzed_metrics(run: Run, capsys: Any):
    """After any damage, the rows that are left have each step once, and those that follow come behind them."""
    draw = random.Random(f"{SEED} metrics")
    whole = (run.whole / reporting.METRICS_FILE).read_bytes()
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(400 * TRIALS):
        file = run.folder / reporting.METRICS_FILE
        lines = whole.split(b"\n")
        at = draw.randrange(len(lines) - 1)
        lines[at] = damage.mutated(draw, lines[at])
        file.write_bytes(b"\n".join(lines))
        done = draw.choice(STEPS)
        _, error, told = attempt(functools.partial(reporting._drop_after, file, done))
        assert error is None
        rows = [reporting._step_of(line) for line in file.read_bytes().splitlines()]
        assert None not in rows and rows == sorted(set(rows)) and max(rows, default=0) <= done
        counts["dropped with a warning" if told else "all rows read"] += 1
    with capsys.disabled():
        print(f"\nseed {SEED}, {400 * TRIALS} mutated metrics.jsonl: {dict(counts)}")
