"""Any mesh, of devices or of processes, gives one device's losses, parameters and scores."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import partitioning
from tests.t5_engine.conftest import FAST_COMPILATION

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5
ONE = (1, 1, False, 1)

# (devices, model parallelism, FSDP, microbatches): pure data, pure model, mixed and FSDP
ALL = [
    (2, 1, False, 1),
    (2, 2, False, 1),
    (2, 1, True, 1),
    (4, 1, False, 1),
    (4, 4, False, 1),
    (4, 2, False, 3),
    (4, 1, True, 1),
    (8, 1, False, 1),
    (8, 8, False, 1),
    (8, 2, False, 1),
    (8, 1, True, 2),
    (8, 4, True, 1),
]


def start(folder, request, devices):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.t5_engine.mesh_program", str(folder)]
    return subprocess.Popen(
        [*command, json.dumps(request)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def in_processes(folder, count, devices_each, layout, **more):
    """What each of `count` processes says."""
    folder.mkdir()
    port = free_port()
    started = [
        start(
            folder, {"layouts": [layout], "processes": [port, count, index], **more}, devices_each
        )
        for index in range(count)
    ]
    return [answer(process) for process in started]


def load(folder, layout, packed=False):
    devices, model, fsdp, microbatches = layout
    name = f"{'packed_' * packed}{devices}_{model}_{int(fsdp)}_{microbatches}.npz"
    with np.load(folder / name) as arrays:
        losses, *leaves = (arrays[name] for name in arrays.files)
    return losses, leaves


def assert_like_one_device(folder, layout, one, packed=False):
    losses, leaves = load(folder, layout, packed)
    np.testing.assert_allclose(losses, one[0], atol=TOLERANCE)
    for ours, theirs in zip(leaves, one[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, what was told) of one device and 4 x 2 with FSDP."""
    folder = tmp_path_factory.mktemp("mesh")
    request = {
        "layouts": [ONE, (8, 2, True, 1)],
        "packed": [(8, 2, True, 2)],
        "restore_on": [(1, 1, False), (2, 1, False), (4, 4, True)],
        "score": True,
    }
    return folder, answer(start(folder, request, 8))


def test_eight_devices_equal_one(trained):
    folder, told = trained
    assert told["devices"] == 8 and told["examples"] == [15, 15, 15]
    assert told["shard"] == [2, 32, 68]  # [L, D / data, F / model]
    assert_like_one_device(folder, (8, 2, True, 1), load(folder, ONE))
    assert_like_one_device(folder, (8, 2, True, 2), load(folder, ONE), packed=True)
    np.testing.assert_allclose(told["scores"], told["scores_of_one"], atol=1e-4)


def test_a_checkpoint_gives_the_same_numbers_on_any_mesh(trained):
    assert trained[1]["restored"] == [True, True, True]


def test_two_processes_equal_one(trained, tmp_path):
    """Each brings its own rows; FSDP spans both. Damage that one of them finds is known to both."""
    layout = (4, 2, True, 1)
    told, other = in_processes(tmp_path / "two", 2, 2, layout, damage=True, packed=[layout])
    assert told["damage"] is None and "expected CRC-32" in other["damage"]
    for one in (told, other):
        assert (one["resumable"], one["loaded"]) == (2, "2")
    assert told["devices"] == 4 and told["examples"] == [15, 15]
    for packed in (False, True):
        assert_like_one_device(tmp_path / "two", layout, load(trained[0], ONE), packed)


@pytest.mark.slow
def test_every_layout_equals_one_device(trained, tmp_path):
    answer(start(tmp_path, {"layouts": ALL, "packed": [ONE, *ALL]}, 8))
    for layout in ALL:
        assert_like_one_device(tmp_path, layout, load(trained[0], ONE))
    for layout in [ONE, *ALL]:
        assert_like_one_device(tmp_path, layout, load(trained[0], ONE), packed=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, devices_each, layout",
    [(4, 1, (4, 1, True, 1)), (4, 2, (8, 4, False, 2)), (2, 1, (2, 2, False, 1))],
    ids=["4 processes", "4, a copy of the weights on two of them", "2 with one copy"],
)
def test_several_processes_equal_one(trained, tmp_path, count, devices_each, layout):
    in_processes(tmp_path / "several", count, devices_each, layout, packed=[layout])
    for packed in (False, True):
        assert_like_one_device(tmp_path / "several", layout, load(trained[0], ONE), packed)


def test_a_batch_of_240_is_padded_with_weight_zero(make_batch):
    batch = make_batch(0, rows=240)
    padded = partitioning.pad_rows(batch, 32)
    assert {len(array) for array in padded.values()} == {256}
    assert padded["decoder_loss_weights"][240:].sum() == 0
    tokens = batch["encoder_input_tokens"]
    np.testing.assert_array_equal(padded["encoder_input_tokens"][:240], tokens)


COMMUNICATION = """
import jax
from t5_engine import partitioning
from t5_engine.checkpoints import with_shardings
from t5_engine.step import compiled_step, make_step
from tests.t5_engine.conftest import random_batch
from tests.t5_engine.mesh_program import CONFIG, TRANSFORM, fresh, layout_of, shardings_of
layout = layout_of(8, 1, True)
shardings = shardings_of(layout)
rows = partitioning.by_rows(layout.mesh)
batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
         for name, array in random_batch(0, rows=16, inputs=37, targets=29).items()}
step = compiled_step(make_step(CONFIG, TRANSFORM, layout), shardings)
print(step.lower(with_shardings(jax.eval_shape(fresh), shardings), batch).compile().as_text())
"""


def test_with_fsdp_weights_travel_and_activations_do_not():
    """Left to itself, the compiler splits D and sends activations of all examples to every device."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", COMMUNICATION]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sent = re.findall(r"= (\S*f32\[.*) (?:all-gather|all-reduce)\(", done.stdout)
    shapes = [shape for line in sent for shape in re.findall(r"f32\[([\d,]+)\]", line)]
    sizes = [[int(size) for size in shape.split(",")] for shape in shapes]
    assert [1, 128, 136] in sizes or [128, 136] in sizes  # a kernel, gathered
    # 16 examples of 37 and 29 words; the gradient of a stack's position bias, [N, T, T], has no examples.
    rows = [size for size in sizes if {16 * 37, 16 * 29} & set(size)]
    rows += [size for size in sizes if 16 in size and {37, 29} & set(size)]
    assert not rows


def test_impossible_meshes_are_named():
    with pytest.raises(UserError, match="model_parallelism: expected a divisor"):
        partitioning.make_mesh(len(jax.devices()) + 1)
