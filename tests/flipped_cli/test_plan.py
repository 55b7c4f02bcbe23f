"""`flipped plan`: on virtual devices, its mistakes, and with the TPU compiler where that is installed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ("--model", "tiny", "--batch_size", "6", "--inputs", "16", "--targets", "8")


def _plan(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flipped_cli.main", "plan", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_virtual_devices() -> None:
    words = (*SMALL, "--topology", "v5e:2x2", "--model_parallelism", "2", "--virtual", "--json")
    result = _plan(*words, "--only", "train")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["mesh"] == {"data": 2, "model": 2} and report["rows_with_padding"] == 6
    step = report["programs"]["train step"]
    assert step["fits"] is None and step["seconds"] is None and "not known" in report["not_known"]
    assert step["collectives"]["all-reduce"]["count"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology", "v7:2x2"), "unknown topology 'v7:2x2'"),
        (("--topology", "v5e:2x2", "--model", "xll"), "unknown model size 'xll'"),
        (("--topology", "v5e:2x2", "--method", "fliped"), "nearest: 'flipped'"),
        (("--topology", "v5e:2x2", "--model_parallelism", "3"), "divisor of the 4 chips"),
        (("--topology", "v5e:2x2", "--remat", "ful"), "got 'ful'; nearest: 'full'"),
        (("--topology", "v5e:2x2", "--microbatches", "0"), "microbatches: expected at least 1"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str) -> None:
    result = _plan(*SMALL, *words)
    assert result.returncode == 2 and said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_tpu_compiler() -> None:
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    result = _plan(*SMALL, "--topology", "v5e:2x2", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    step = report["programs"]["train step"]
    assert step["fits"] is True and step["seconds"] >= step["seconds_once"] > 0 < step["mfu"] < 1


@pytest.mark.slow
def test_what_the_tpu_compiler_refuses_is_tried_with_changes() -> None:
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    words = ("--batch_size", "2400", "--inputs", "512", "--targets", "128", "--only", "train")
    result = _plan("--model", "tiny", *words, "--topology", "v5e:2x2", "--quick", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    step, change = report["programs"]["train step"], report["smallest_change_that_fits"]
    assert step["fits"] is False and step["memory"]["peak"] > report["chip_memory"]
    lines = result.stderr.strip().splitlines()
    assert lines[-1] == f"does not fit; compiling with {change} …"


def test_a_mesh_that_no_whole_axes_of_the_torus_give() -> None:
    """2 of 4x8x8: `jax.make_mesh` refuses it, on a real pod too."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    code = (
        "from t5_engine import partitioning, planning\n"
        "mesh = partitioning.make_mesh(2, planning.machine('v5p:4x8x8').devices)\n"
        "pair = [device.coords for device in mesh.devices[0]]\n"
        "print(dict(mesh.shape), sum(abs(a - b) for a, b in zip(*pair)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "{'data': 128, 'model': 2} 1\n", result.stderr
