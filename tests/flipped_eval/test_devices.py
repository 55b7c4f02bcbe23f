"""A job does not depend on devices or processes, whatever the kind of checkpoint; what ends one process ends all."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from flipped_eval import results
from flipped_tasks.sources import load_numbered
from flipped_tasks.tokens import Vocabulary
from t5_engine import exchange, huggingface_folder, t5x_format
from t5_engine.config import T5Config
from t5_engine.model import init_params
from tests.t5_engine.conftest import FAST_COMPILATION
from tests.t5_engine.test_partitioning import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = 80  # five blocks, three chunks


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, small_vocab_path) -> list[str]:
    """One of ours, one of T5X's, one of Hugging Face's, with weights of their own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = T5Config(
        vocab_size=Vocabulary.from_file(small_vocab_path).size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    for seed, name in enumerate(("ours", "t5x", "hf")):
        made, out = folder / f"{name}_made", folder / name
        made.mkdir()
        params = jax.jit(lambda key: init_params(config, key))(jax.random.key(seed))
        exchange.save(made, params, config, step=3)
        if name == "ours":
            made.rename(out)
            continue
        out.mkdir()
        write = t5x_format.write if name == "t5x" else huggingface_folder.write
        write(exchange.open_checkpoint(made), out)
    return [str(folder / name) for name in ("ours", "t5x", "hf")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """Rows of RTE, and of nothing else."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(
        folder, [row for _, row in load_numbered("super_glue/rte", "validation", None)][:ROWS]
    )
    return folder


def write_rows(folder: pathlib.Path, rows: list[Any]) -> None:
    file = folder / "super_glue__rte" / "validation.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Job:
    """`flipped eval` of some checkpoints into `output`, as one process or as two of two devices each."""

    def __init__(
        self, output: pathlib.Path, checkpoints: list[str], vocab: str, data: pathlib.Path
    ):
        self.data = data
        self.words = [
            "eval", "--checkpoint", *checkpoints, "--method", "direct", "--vocab", vocab,
            "--inputs_length", "512", "--targets_length", "128", "--eos",
            "--suite", "super_glue/rte:MNLI crowdsource", "super_glue/wic:same_sense", "--output", str(output),
        ]  # fmt: skip

    def start(
        self,
        *words: str,
        data: pathlib.Path | None = None,
        fault: str = "none 0",
        devices: int = 2,
    ) -> Any:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.flipped_eval.job_program", *fault.split()]
        return subprocess.Popen(
            [*command, *self.words, "--data_dir", str(data or self.data), *words],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def alone(self, **special: Any) -> tuple[int, str, str]:
        """(exit code, what it printed, its errors) of one process of one device."""
        return ended(self.start(**({"devices": 1} | special)))

    def together(self, *of_each: dict[str, Any]) -> list[tuple[int, str, str]]:
        """Those of two processes; `of_each` are what is special of them."""
        address = f"127.0.0.1:{free_port()}"
        started = [
            self.start(
                "--coordinator_address", address, "--process_count", "2", "--process_id", str(index), **special
            )
            for index, special in enumerate(of_each or ({}, {}))
        ]  # fmt: skip
        return [ended(process) for process in started]


def ended(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def scores(folder: pathlib.Path) -> dict[tuple[str, str, int], float]:
    found = {}
    for file in sorted((folder / "scores").iterdir()):
        for line in map(json.loads, file.read_text().splitlines()):
            if "choice" in line:
                key = line["unit"], line["example"], line["choice"]
                assert key not in found
                found[key] = line["logprob"] / line["tokens"]
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory, checkpoints, small_vocab_path, data) -> tuple[pathlib.Path, str, str]:
    """The folder of a job of one device, what it printed, its errors."""
    folder = tmp_path_factory.mktemp("one") / "out"
    code, told, errors = Job(folder, checkpoints, small_vocab_path, data).alone()
    assert code == 2 and errors.startswith("error: tasks that could not be run"), errors
    return folder, told, errors


def assert_same_results(one: pathlib.Path, two: pathlib.Path) -> None:
    expected, found = scores(one), scores(two)
    assert expected.keys() == found.keys() and len(found) == 3 * 2 * ROWS
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), atol=1e-4)
    for name in (results.PREDICTIONS, results.RESULTS):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_give_the_results_of_one(
    tmp_path, checkpoints, small_vocab_path, data, one, devices
):
    job = Job(tmp_path / "several", checkpoints, small_vocab_path, data)
    assert job.alone(devices=devices)[0] == 2
    assert_same_results(one[0], tmp_path / "several")


def test_a_job_killed_on_one_device_is_finished_on_two(
    tmp_path, checkpoints, small_vocab_path, data, one
):
    job = Job(tmp_path / "out", checkpoints, small_vocab_path, data)
    assert job.alone(fault="kill 4")[0] == -signal.SIGKILL
    before = scores(tmp_path / "out")
    assert 0 < len(before) < len(scores(one[0]))
    assert job.alone(devices=2)[0] == 2
    assert_same_results(one[0], tmp_path / "out")
    assert before.items() <= scores(tmp_path / "out").items()


def test_two_processes_give_the_results_of_one(tmp_path, checkpoints, small_vocab_path, data, one):
    """They share one copy of the weights. A task without rows is named by the first only; the exit code is of both."""
    folder, told, errors = one
    job = Job(tmp_path / "two", checkpoints, small_vocab_path, data)
    job.words += ["--model_parallelism", "4"]
    [first, other] = job.together()
    assert (first[0], other[0]) == (2, 2)
    assert first[2] == errors and other[2] == ""
    assert first[1].splitlines()[-5:] == told.splitlines()[-5:]
    assert "left to score" in first[1] and "left to score" not in other[1]
    assert_same_results(folder, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_job_of_two_that_was_killed_goes_on(
    tmp_path, checkpoints, small_vocab_path, data, one, killed
):
    """Whichever process was killed: the other does not wait for it, and the next two come to the same results."""
    job = Job(tmp_path / "two", checkpoints, small_vocab_path, data)
    faults = [{"fault": "kill 4"} if index == killed else {} for index in range(2)]
    ends = job.together(*faults)
    assert ends[killed][0] == -signal.SIGKILL and ends[1 - killed][0] != 0
    assert 0 < len(scores(tmp_path / "two")) < len(scores(one[0]))
    assert not (tmp_path / "two" / results.RESULTS).exists()
    assert [code for code, *_ in job.together()] == [2, 2]
    assert_same_results(one[0], tmp_path / "two")


@pytest.mark.slow
def test_what_fails_in_one_process_ends_both_with_its_line(
    tmp_path, checkpoints, small_vocab_path, data
):
    other_rows = tmp_path / "other"
    other_rows.mkdir()
    write_rows(
        other_rows, [row for _, row in load_numbered("super_glue/rte", "train", None)][:ROWS]
    )
    out = tmp_path / "out"
    job = Job(out, checkpoints[:1], small_vocab_path, data)

    def told(*of_each: dict[str, Any]) -> list[str]:
        found = job.together(*of_each)
        assert [code for code, *_ in found] == [2, 2], found
        assert all(errors.count("\n") == 1 for *_, errors in found)
        return [errors.removeprefix("error: ").strip() for *_, errors in found]

    first, other = told({}, {"data": tmp_path / "nowhere"})
    assert other == f"data_dir: expected a folder, there is none at {tmp_path / 'nowhere'}"
    assert first.startswith("process 1 of 2 on ") and first.endswith(f": {other}")
    first, other = told({}, {"data": other_rows})
    assert first == other and "process 1 of 2 on " in first
    assert ": its rows and templates are not those of process 0" in first
    assert not out.exists()
    first, other = told({"fault": "full 4"}, {})
    assert "cannot write" in first and "No space left on device" in first
    assert other.startswith("process 0 of 2 on ") and other.endswith(f": {first}")
    assert len(scores(out)) == 128  # two chunks, after run.json and plan.json


@pytest.mark.slow
def test_a_failure_of_the_scorer_in_one_process_ends_both(
    tmp_path, checkpoints, small_vocab_path, data
):
    job = Job(tmp_path / "out", checkpoints[:1], small_vocab_path, data)
    first, other = job.together({}, {"fault": "broken 1"})
    assert first[0] == other[0] == 1
    assert "RuntimeError: out of memory here" in other[2]
    assert first[2].startswith("error: process 0 of 2 on ") and first[2].count("\n") == 1
