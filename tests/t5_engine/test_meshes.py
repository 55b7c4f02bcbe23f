"""Meshes over stand-in devices: several GPU nodes and TPU slices, and which rows of a batch each process brings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import partitioning
from t5_engine.axes import DATA, MODEL


@dataclasses.dataclass(frozen=True)
class Device:
    """What of a JAX device decides its place in a mesh."""

    id: int
    process_index: int
    platform: str
    device_kind: str
    slice_index: int = 0
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class WithoutSlices:
    """A device of a backend that has no slices."""

    id: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def gpus(nodes: int, each: int, per_process: int = 1) -> list[Device]:
    return [
        Device(n, n // per_process, "gpu", "NVIDIA H100 80GB HBM3", slice_index=n // each)
        for n in range(nodes * each)
    ]


def tpus(
    slices: int, shape: tuple[int, int, int], kind: str = "TPU v5 lite", cores: int = 1
) -> list[Device]:
    """Slices of chips in z, y, x order, four chips of a 2x2 square to a process, as `jax.devices()` gives them."""
    hosts = shape[0] // 2, shape[1] // 2, shape[2]
    devices = []
    for number in range(slices):
        for z, y, x in itertools.product(*map(range, reversed(shape))):
            host = x // 2 + hosts[0] * (y // 2 + hosts[1] * z)
            process = number * int(np.prod(hosts)) + host
            chip = x + shape[0] * (y + shape[1] * z)
            for core in range(cores):
                identity = (number + 1) * 100_000 + chip * cores + core
                devices.append(Device(identity, process, "tpu", kind, number, (x, y, z), core))
    return sorted(devices, key=lambda device: (device.process_index, device.id))


SEVERAL = {
    "2 nodes of 8 GPUs": gpus(2, 8),
    "4 nodes of 8 GPUs": gpus(4, 8),
    "4 nodes of 4 GPUs": gpus(4, 4),
    "2 nodes of 8 GPUs, a process each": gpus(2, 8, per_process=8),
    "2 slices of v5e:4x4": tpus(2, (4, 4, 1)),
    "4 slices of v5e:4x4": tpus(4, (4, 4, 1)),
    "2 slices of v5e:2x4": tpus(2, (2, 4, 1)),
    "4 slices of v5e:8x8": tpus(4, (8, 8, 1)),
    "2 slices of v4:2x2x2, a device each chip": tpus(2, (2, 2, 2), "TPU v4"),
    "2 slices of v4:2x2x2, two cores a chip": tpus(2, (2, 2, 2), "TPU v4", cores=2),
    "4 slices of v4:2x2x4, two cores a chip": tpus(4, (2, 2, 4), "TPU v4", cores=2),
    "2 slices of v5p:2x2x4": tpus(2, (2, 2, 4), "TPU v5"),
    "2 slices of v6e:4x4": tpus(2, (4, 4, 1), "TPU v6 lite"),
    "3 slices of v5e:2x4": tpus(3, (2, 4, 1)),
    "2 slices of v5p:4x4x4": tpus(2, (4, 4, 4), "TPU v5"),
    "2 nodes of 8 GPUs, processes in another order": [
        dataclasses.replace(device, process_index=(7 * device.id + 3) % 16) for device in gpus(2, 8)
    ],
    "2 nodes of 8 GPUs, slices 5 and 9": [
        dataclasses.replace(device, slice_index=5 + 4 * device.slice_index) for device in gpus(2, 8)
    ],
}
MODEL_SIZES = (1, 2, 8)


def meshes() -> list[Any]:
    return [
        pytest.param(devices, size, id=f"{name}, model {size}")
        for (name, devices), size in itertools.product(SEVERAL.items(), MODEL_SIZES)
        if len(devices) // len(partitioning.devices_by_slice(devices)) % size == 0
    ]


@pytest.mark.parametrize("devices, size", meshes())
def test_rows_of_model_stay_within_a_slice(devices: Sequence[Device], size: int) -> None:
    mesh = partitioning.make_mesh(size, devices)
    assert mesh.axis_names == (DATA, MODEL)
    assert mesh.devices.shape == (len(devices) // size, size)
    assert set(mesh.devices.flat) == set(devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == slices[:, :1]).all()
    # Slice after slice: one block of `data` each.
    assert (np.diff(slices[:, 0]) >= 0).all()


@pytest.mark.parametrize("devices, size", meshes())
def test_rows_of_model_hold_neighbors(devices: Sequence[Device], size: int) -> None:
    for row in partitioning.make_mesh(size, devices).devices:
        if row[0].platform == "gpu":
            assert [device.id for device in row] == [row[0].id + n for n in range(size)]
            continue
        chips = {device.coords for device in row}
        sides = [max(axis) - min(axis) + 1 for axis in zip(*chips, strict=True)]
        assert np.prod(sides) == len(chips), f"{sorted(chips)} is no block of the torus"
        if any(device.core_on_chip for device in devices) and size > 1:
            assert len(chips) == size // 2, "a row holds both cores of its chips"


@pytest.mark.parametrize("devices, size", meshes())
@pytest.mark.parametrize("batch_size", [240, 15])
def test_every_process_brings_the_rows_that_it_holds(
    devices: Sequence[Device], size: int, batch_size: int
) -> None:
    """All processes' rows together are the batch, each example once, and processes with one row agree on it."""
    mesh = partitioning.make_mesh(size, devices)
    held: dict[int, list[int]] = {}
    for number, row in enumerate(mesh.devices):
        for device in row:
            held.setdefault(device.process_index, []).append(number)
    on_row: dict[int, np.ndarray] = {}
    for process, numbers in held.items():
        share = partitioning.host_share(mesh, batch_size, process)
        each = batch_size // share.count
        examples = np.arange(1, batch_size + 1)[share.index * each : (share.index + 1) * each]
        rows = sorted(set(numbers))
        brought = partitioning.pad_rows(share.rows({"examples": examples}), len(rows))["examples"]
        for number, part in zip(rows, np.split(brought, len(rows)), strict=True):
            np.testing.assert_array_equal(on_row.setdefault(number, part), part)
    everything = np.concatenate([on_row[number] for number in range(mesh.shape[DATA])])
    assert sorted(everything[everything > 0]) == list(range(1, batch_size + 1))


@pytest.mark.parametrize(
    "devices",
    [
        tpus(1, (4, 4, 1)),
        tpus(1, (2, 4, 1)),
        tpus(1, (2, 2, 4), "TPU v4"),
        tpus(1, (4, 4, 4), "TPU v5"),
        gpus(1, 8),
        [WithoutSlices(n, n // 4) for n in range(8)],
    ],
    ids=["v5e:4x4", "v5e:2x4", "v4:2x2x4", "v5p:4x4x4", "8 GPUs", "two processes of 4 CPU devices"],
)
@pytest.mark.parametrize("size", [1, 4])
def test_one_slice_is_arranged_as_by_jax(devices: Sequence[Any], size: int) -> None:
    ours = partitioning.make_mesh(size, devices)
    theirs = jax.make_mesh(
        (len(devices) // size, size), (DATA, MODEL), axis_types=ours.axis_types, devices=devices
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "devices, size, message",
    [
        (gpus(2, 8), 16, "expected a divisor of 8, the devices of each node, got 16"),
        (gpus(2, 12), 8, "expected a divisor of 12, the devices of each node, got 8"),
        (tpus(2, (4, 4, 1)), 32, "expected a divisor of 16, the devices of each slice, got 32"),
        (
            tpus(2, (2, 2, 2), "TPU v4", cores=2),
            32,
            "expected a divisor of 16, the devices of each slice, got 32",
        ),
        (gpus(2, 8)[:12], 2, "nodes: expected equal numbers of devices in each, got 8 and 4"),
        (
            tpus(2, (4, 4, 1))[4:],
            1,
            "slices: expected equal numbers of devices in each, got 12 and 16",
        ),
        # Unequal nodes are the cause, whatever else does not fit.
        (gpus(2, 8)[:12], 8, "nodes: expected equal numbers of devices in each, got 8 and 4"),
        (gpus(2, 8)[:15], 4, "nodes: expected equal numbers of devices in each, got 8 and 7"),
        (gpus(4, 1), 2, "expected a divisor of 1, the devices of each node, got 2"),
        (gpus(1, 8), 0, r"expected a divisor of the number of devices \(8\), got 0"),
        (
            [
                d
                for d in tpus(2, (2, 2, 2), "TPU v4", cores=2)
                if d.core_on_chip == 0 or any(d.coords)
            ],
            1,
            r"devices: expected 2 cores of each chip, got 1 of chip \(0, 0, 0\)",
        ),
    ],
)
def test_what_no_mesh_can_be_made_of(devices: Sequence[Device], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        partitioning.make_mesh(size, devices)


def test_processes_with_different_numbers_of_devices_are_refused() -> None:
    """A process for each GPU of one node, and one for all of the other."""
    devices = [
        dataclasses.replace(device, process_index=min(device.id, 8)) for device in gpus(2, 8)
    ]
    mesh = partitioning.make_mesh(1, devices)
    with pytest.raises(UserError, match="processes: expected equal .* in each, got 1 and 8"):
        partitioning.host_share(mesh, 240, 0)


def test_a_row_that_ends_within_a_process_is_refused() -> None:
    """9 devices to a row, of processes with 4 each, in one domain of 72 GPUs."""
    devices = [Device(n, n // 4, "gpu", "NVIDIA GB200") for n in range(72)]
    mesh = partitioning.make_mesh(9, devices)
    with pytest.raises(UserError, match="model_parallelism: .*got 9 for processes with 4 devices"):
        partitioning.host_share(mesh, 240, 0)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_planner_keeps_rows_within_its_virtual_nodes(size: int) -> None:
    """Virtual devices know of no nodes; the planner counts them off by eight (`hlo.Program.between_slices`)."""
    mesh = partitioning.make_mesh(size, [WithoutSlices(n) for n in range(32)])
    nodes = np.vectorize(lambda device: device.id // 8)(mesh.devices)
    assert (nodes == nodes[:, :1]).all()


def test_the_scorer_of_an_evaluation_has_the_same_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    from flipped_eval import jobs

    devices = gpus(2, 8)
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    assert jobs._Engine(None, 4).mesh == partitioning.make_mesh(4, devices)
    assert jobs._Engine(None, 4).mesh.devices.shape == (4, 4)


def test_parameters_are_laid_out_on_several_slices() -> None:
    from t5_engine import config

    mesh = partitioning.make_mesh(2, tpus(2, (4, 4, 1)))
    shardings = jax.tree.leaves(partitioning.param_shardings(config.size("tiny"), mesh))
    assert {sharding.mesh for sharding in shardings} == {mesh}
