"""Which device and which process holds which part of an array: one mesh, and all layouts from `axes.Layout`.

The mesh has two axes: `data`, over which the batch is split, and `model`, over which weights are.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flipped_core.errors import UserError
from t5_engine.axes import DATA, MODEL, Layout
from t5_engine.config import T5Config
from t5_engine.model import init_boxed

Batch = Mapping[str, np.ndarray]
GPU_PLATFORMS = ("gpu", "cuda", "rocm")


def make_mesh(model_parallelism: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of (all devices / `model_parallelism`) x `model_parallelism`, axes ("data", "model").

    `data` spans slices and GPU nodes; a row of `model` stays within one and holds neighbors.

    Args:
      model_parallelism: the number of devices that share one copy of the weights.
      devices: all devices of the process group where not given.

    Raises:
      UserError: `model_parallelism` does not divide the devices of a slice or node, or these are of different sizes.
    """
    devices = jax.devices() if devices is None else devices
    slices = devices_by_slice(devices)
    _check_equal(slices)
    if model_parallelism < 1 or len(devices) % model_parallelism:
        raise UserError(
            f"model_parallelism: expected a divisor of the number of devices ({len(devices)}), "
            f"got {model_parallelism}"
        )
    # Always with axis types: jax.make_mesh and Mesh have different defaults.
    types = (AxisType.Auto,) * 2
    shape = (len(devices) // model_parallelism, model_parallelism)
    if len(slices) == 1 and not _has_single_cores(devices):
        with contextlib.suppress(NotImplementedError):
            return jax.make_mesh(shape, (DATA, MODEL), axis_types=types, devices=devices)
        # No whole axes of the TPUs' torus have the mesh's sizes, such as 2 of 4x8x8: an axis of it is split.
    if len(slices[0]) % model_parallelism:
        raise UserError(
            f"model_parallelism: expected a divisor of {len(slices[0])}, the devices of each {_kind(slices)}, "
            f"got {model_parallelism}"
        )
    arranged = _arranged(model_parallelism, devices, len(slices))
    return Mesh(arranged, (DATA, MODEL), axis_types=types)


def devices_by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each TPU slice, or of each domain of GPUs with fast links (a node, mostly).

    JAX gives both as `slice_index`. A backend without it has one slice, and so have processes on CPUs.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [slices[index] for index in sorted(slices)]


def _check_equal(slices: Sequence[Sequence[jax.Device]]) -> None:
    sizes = [len(one) for one in slices]
    if len(set(sizes)) > 1:
        raise UserError(
            f"{_kind(slices)}s: expected equal numbers of devices in each, got {sizes[0]} and "
            f"{next(size for size in sizes if size != sizes[0])}"
        )


def _kind(slices: Sequence[Sequence[jax.Device]]) -> str:
    return "node" if slices[0][0].platform in GPU_PLATFORMS else "slice"


def _has_single_cores(devices: Sequence[jax.Device]) -> bool:
    """Whether each core of a TPU v4 chip is a device: JAX arranges such chips only when both cores are one."""
    return devices[0].device_kind == "TPU v4" and any(
        getattr(device, "core_on_chip", 0) for device in devices
    )


def _arranged(model_parallelism: int, devices: Sequence[jax.Device], num_slices: int) -> np.ndarray:
    """The devices [data, model] as JAX arranges them, slice after slice along `data`."""
    if _has_single_cores(devices):
        return _arranged_cores(model_parallelism, devices, num_slices)
    per_slice = (len(devices) // num_slices // model_parallelism, model_parallelism)

    def arrange(split: bool) -> np.ndarray:
        if num_slices == 1:
            return mesh_utils.create_device_mesh(
                per_slice, devices, allow_split_physical_axes=split
            )
        return mesh_utils.create_hybrid_device_mesh(
            per_slice, (num_slices, 1), devices, allow_split_physical_axes=split
        )

    try:
        # jax.make_mesh splits axes of the torus on v5e at once.
        return arrange(devices[0].device_kind in ("TPU v5 lite", "TPU v5e"))
    except NotImplementedError:
        return arrange(True)


def _arranged_cores(
    model_parallelism: int, devices: Sequence[jax.Device], num_slices: int
) -> np.ndarray:
    """`_arranged` for chips of two devices: the chips as JAX arranges them, the cores of each side by side."""

    def chip(device: Any) -> tuple[Any, ...]:
        return (getattr(device, "slice_index", None) or 0, *device.coords)

    cores: dict[tuple[Any, ...], list[jax.Device]] = {}
    for device in sorted(devices, key=lambda device: device.core_on_chip):
        cores.setdefault(chip(device), []).append(device)
    number = max(map(len, cores.values()))
    for place, found in cores.items():
        if len(found) != number:
            raise UserError(
                f"devices: expected {number} cores of each chip, got {len(found)} of chip {place[-3:]}"
            )
    # A row of `model` holds whole chips where it can; else the cores of a chip are in rows that follow each other.
    together = math.gcd(model_parallelism, number)
    chips = _arranged(
        model_parallelism // together, [found[0] for found in cores.values()], num_slices
    )
    arranged = np.empty((*chips.shape, number), object)
    for place, first in np.ndenumerate(chips):
        arranged[place] = cores[chip(first)]
    rows, chips_in_row = chips.shape
    apart = number // together
    return (
        arranged.reshape(rows, chips_in_row, apart, together)
        .swapaxes(1, 2)
        .reshape(rows * apart, model_parallelism)
    )


def param_shardings(config: T5Config, layout: Layout | Mesh) -> dict[str, Any]:
    """A tree like the parameters, of `NamedSharding`; a mesh alone stands for its layout without FSDP.

    Raises:
      UserError: the rules leave an axis of a parameter out or map two of them to one mesh axis, or a size is not a
        multiple of the mesh axis that splits it; the parameter is named.
    """
    layout = layout if isinstance(layout, Layout) else Layout(layout)
    boxed = jax.eval_shape(lambda key: init_boxed(config, key), jax.random.key(0))
    names = nn.get_partition_spec(boxed)

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct, axes: PartitionSpec) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return layout.sharding(tuple(axes), f"parameter {name}", leaf.shape)

    return jax.tree_util.tree_map_with_path(sharding, nn.unbox(boxed), names)


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer's state, given those of the parameters.

    A leaf whose path ends with that of a parameter belongs to it. One of the parameter's shape is laid out like it;
    Adafactor's means over the rows or the columns like the dimensions that are left. All others (counters, what
    stands in for a mean that is not kept) are whole on every device.

    Args:
      tree: the state; arrays or `jax.ShapeDtypeStruct`.
      params: the parameters, likewise.
      shardings: the parameters' shardings.
      mesh: the mesh.
    """
    by_path = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            if names[start:] in by_path:
                shape, found = by_path[names[start:]]
                if leaf.shape == shape:
                    return found
                return _of_mean(names[:start], leaf.shape, shape, found) or whole(mesh)
        return whole(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _of_mean(
    place: Sequence[str], shape: tuple[int, ...], of: tuple[int, ...], sharding: NamedSharding
) -> NamedSharding | None:
    """The layout of a factored second moment: a parameter's without the dimension that the mean was taken over.

    optax takes `v_row` over the largest dimension and `v_col` over the second largest, the later one being the larger
    of two equals; of a stack of layers [L, …] it sees one layer.
    """
    if len(of) < 2 or len(shape) != len(of) - 1 or not {"v_row", "v_col"} & set(place):
        return None
    last = len(of) - 2  # the dimensions of a layer are the last two
    larger, smaller = sorted((last, last + 1), key=lambda dim: (of[dim], dim), reverse=True)
    gone = larger if "v_row" in place else smaller
    if shape != tuple(size for dim, size in enumerate(of) if dim != gone):
        return None
    spec = [*sharding.spec, *[None] * (len(of) - len(sharding.spec))]
    del spec[gone]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def whole(mesh: Mesh) -> NamedSharding:
    """All of the array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Axis 0, the batch, split over the data axis."""
    return Layout(mesh).sharding(("batch",), "the batch")


@dataclasses.dataclass(frozen=True)
class HostShare:
    """Which rows of each global batch this process brings.

    It reads share `index` of `count` equal shares of the batch. Where the processes outnumber what divides the batch,
    `parts` of them read the same share and each brings its `part`.
    """

    index: int = 0
    count: int = 1
    part: int = 0
    parts: int = 1

    def rows(self, batch: Batch) -> dict[str, np.ndarray]:
        """This process's rows of its share, padded with weight 0 to as many as the other parts have."""
        if self.parts == 1:
            return dict(batch)
        padded = pad_rows(batch, self.parts)
        size = len(next(iter(padded.values()))) // self.parts
        return {
            name: array[self.part * size : (self.part + 1) * size] for name, array in padded.items()
        }


def host_share(mesh: Mesh, batch_size: int, process: int | None = None) -> HostShare:
    """The rows that a process brings to a batch of `batch_size` on that mesh.

    Processes whose devices hold the same rows, as when one copy of the weights spans several, bring the same ones.

    Args:
      mesh: over all processes.
      batch_size: of all processes together.
      process: this one where not given.
    """
    process = jax.process_index() if process is None else process
    rows_of: dict[int, list[int]] = {}
    for row, devices in enumerate(mesh.devices):
        for device in devices:
            held = rows_of.setdefault(device.process_index, [])
            if row not in held:
                held.append(row)
    groups = sorted({tuple(rows) for rows in rows_of.values()})
    counts = _device_counts(mesh)
    if len(counts) > 1:
        raise UserError(
            f"processes: expected equal numbers of devices in each, got {counts[0]} and {counts[1]}"
        )
    if sum(map(len, groups)) != mesh.shape[DATA] or len({len(group) for group in groups}) > 1:
        raise UserError(
            f"model_parallelism: expected devices of equal numbers of whole processes, got "
            f"{mesh.shape[MODEL]} for processes with {counts[0]} devices"
        )
    mine = groups.index(tuple(rows_of[process]))
    count = math.gcd(batch_size, len(groups))
    index, part = divmod(mine, len(groups) // count)
    return HostShare(index, count, part, len(groups) // count)


def _device_counts(mesh: Mesh) -> list[int]:
    """How many devices a process has, each number once."""
    processes = collections.Counter(device.process_index for device in mesh.devices.flat)
    return sorted(set(processes.values()))


def pad_rows(batch: Batch, multiple: int) -> dict[str, np.ndarray]:
    """The batch with rows of zeros (padding words, weight 0) up to a multiple of `multiple`."""
    rows = len(next(iter(batch.values())))
    missing = -rows % multiple
    if not missing:
        return dict(batch)
    return {
        name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }


def put_batch(batch: Batch, mesh: Mesh, microbatches: int = 1) -> dict[str, jax.Array]:
    """This process's rows of a batch onto the devices, padded so that each gets as many, in equal microbatches."""
    held = [row for row, devices in enumerate(mesh.devices) if _is_ours(devices)]
    padded = pad_rows(batch, len(held) * microbatches)
    if jax.process_count() == 1:
        return jax.device_put(padded, by_rows(mesh))
    return {
        name: jax.make_array_from_process_local_data(by_rows(mesh), array)
        for name, array in padded.items()
    }


def put_whole_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has whole onto the devices, of which each gets its rows.

    Args:
      batch: arrays of a multiple of the data axis's rows.
      mesh: over all processes.
    """
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), by_rows(mesh))
    return {
        name: jax.make_array_from_callback(array.shape, by_rows(mesh), array.__getitem__)
        for name, array in batch.items()
    }


def _is_ours(devices: np.ndarray) -> bool:
    return any(device.process_index == jax.process_index() for device in devices)
