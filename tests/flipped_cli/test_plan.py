"""`flipped plan`: on virtual devices, its mistakes, and with the TPU compiler where that is installed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from t5_engine import config
from t5_engine.model import abstract_params

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ("--model", "tiny", "--batch_size", "6", "--inputs_length", "16", "--targets_length", "8")


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
    assert report["mesh"] == {"data": 2, "model": 2}
    assert report["packed"] and report["rows_with_padding"] % 2 == 0
    assert report["row_lengths"]["inputs"] >= 16 and report["mean_lengths"]["inputs"] <= 16
    step = report["programs"]["train step"]
    assert step["fits"] is None and step["seconds"] is None and "not known" in report["not_known"]
    assert step["collectives"]["all-reduce"]["count"] > 0
    assert step["memory"]["peak"] >= step["memory"]["temporary"]
    assert step["between_slices"] == {}


def test_what_crosses_the_network_between_slices() -> None:
    """The model axis stays within a slice: only gradients cross, each device's share of them."""
    words = (*SMALL, "--topology", "v5e:2x2*2", "--model_parallelism", "4", "--virtual", "--json")
    result = _plan(*words, "--method", "direct", "--only", "train")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["mesh"] == {"data": 2, "model": 4} and report["slices"] == 2
    step = report["programs"]["train step"]
    crossing = sum(one["bytes"] for one in step["between_slices"].values())
    inside = sum(one["bytes"] for one in step["collectives"].values()) - crossing
    # A quarter of each gradient in float32; encoder and decoder sum theirs of the shared embedding one by one.
    tiny = config.size("tiny").replace(vocab_size=report["model"]["vocab_size"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(tiny)))
    embedding = tiny.vocab_size * tiny.emb_dim
    assert crossing == pytest.approx(parameters + embedding, rel=0.01)
    assert inside > 0


def test_gpus_get_a_proposal() -> None:
    result = _plan(*SMALL, "--topology", "h100:2*2", "--only", "train", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    assert "compiling with --gin.MODEL_PARALLELISM=1" in result.stderr
    proposed = "Proposed: --gin.MODEL_PARALLELISM=1 --gin.FSDP=True --gin.REMAT=minimal"
    assert proposed in result.stdout and "float32" in result.stdout
    assert "time and MFU are not known" in " ".join(result.stdout.split())
    assert "between nodes, into all chips of a node" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology", "v7:2x2"), "unknown topology 'v7:2x2'"),
        (("--topology", "v5e:2x2", "--model", "xll"), "unknown model size 'xll'"),
        (("--topology", "v5e:2x2", "--method", "fliped"), "nearest: 'flipped'"),
        (("--topology", "v5e:2x2", "--model_parallelism", "3"), "divisor of the 4 chips"),
        (
            ("--topology", "v5e:2x2*2", "--model_parallelism", "8"),
            "model_parallelism: expected a divisor of the 4 chips of each slice of v5e:2x2*2, got 8",
        ),
        (
            ("--topology", "h100:8*2", "--model_parallelism", "16"),
            "model_parallelism: expected a divisor of the 8 chips of each node of h100:8*2, got 16",
        ),
        (("--topology", "v5p-63"), "unknown accelerator type 'v5p-63'; nearest: 'v5p-64'"),
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
    words = (
        "--batch_size",
        "2400",
        "--inputs_length",
        "512",
        "--targets_length",
        "128",
        "--only",
        "train",
    )
    words += ("--no_pack",)
    result = _plan("--model", "tiny", *words, "--topology", "v5e:2x2", "--quick", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    step, change = report["programs"]["train step"], report["smallest_change_that_fits"]
    assert step["fits"] is False and step["memory"]["peak"] > report["chip_memory"]
    lines = result.stderr.strip().splitlines()
    assert lines[-1] == f"does not fit; compiling with {change} …"


@pytest.mark.slow
def test_the_tpu_compiler_for_two_slices() -> None:
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    words = ("--topology", "v5litepod-4*2", "--model_parallelism", "2", "--fsdp", "--quick")
    result = _plan(*SMALL, *words, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["topology"] == "v5e:2x2*2" and report["mesh"] == {"data": 4, "model": 2}
    step = report["programs"]["train step"]
    assert step["fits"] is True and step["seconds"] > 0
    assert step["between_slices"]["all-reduce"]["bytes"] > 0


def test_planned_slices_are_arranged_as_real_ones() -> None:
    """The TPU compiler's devices of two slices, in the mesh that training makes of them."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    code = (
        "from t5_engine import partitioning, topologies\n"
        "devices = topologies.topology('v4:2x2x2*2').devices\n"
        "mesh = partitioning.make_mesh(8, devices)\n"
        "print(len(devices), [sorted({device.slice_index for device in row}) for row in mesh.devices])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "16 [[0], [1]]\n", result.stderr


def test_a_mesh_that_no_whole_axes_of_the_torus_give() -> None:
    """2 of 4x8x8: `jax.make_mesh` refuses it, on a real pod too."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed (extra: plan)")
    code = (
        "from t5_engine import partitioning, topologies\n"
        "mesh = partitioning.make_mesh(2, topologies.topology('v5p:4x8x8').devices)\n"
        "pair = [device.coords for device in mesh.devices[0]]\n"
        "print(dict(mesh.shape), sum(abs(a - b) for a, b in zip(*pair)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "{'data': 128, 'model': 2} 1\n", result.stderr
