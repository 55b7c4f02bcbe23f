"""Which device holds which part of an array: one mesh, one table of rules, everything else derived.

The mesh has two axes: `data`, over which the batch is split, and `model`, over which weights are. Each parameter
names its logical axes where it is declared (`t5_engine.layers`); `RULES` maps these names to the mesh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flipped_errors import UserError
from t5_engine.config import T5Config
from t5_engine.model import init_boxed

DATA = "data"
MODEL = "model"

# From a logical axis to a mesh axis; None is "every device has all of it".
RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", DATA),
    ("vocab", MODEL),
    ("joined_kv", MODEL),
    ("mlp", MODEL),
    ("embed", None),
    ("layers", None),
    ("heads", None),  # only of the relative-position tables, which are small
    ("relpos_buckets", None),
)


def make_mesh(model_parallelism: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of (all devices / `model_parallelism`) x `model_parallelism`, axes ("data", "model").

    Args:
      model_parallelism: the number of devices that share one copy of the weights.
      devices: all devices of the process group where not given.
    """
    devices = jax.devices() if devices is None else devices
    if model_parallelism < 1 or len(devices) % model_parallelism:
        raise UserError(
            f"model_parallelism: expected a divisor of the number of devices ({len(devices)}), "
            f"got {model_parallelism}"
        )
    shape = (len(devices) // model_parallelism, model_parallelism)
    # Always with axis types: jax.make_mesh and Mesh have different defaults.
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def param_shardings(config: T5Config, mesh: Mesh) -> dict[str, Any]:
    """A tree like the parameters, of `NamedSharding`.

    Raises:
      UserError: a size is not a multiple of the mesh axis that splits it.
    """
    boxed = jax.eval_shape(lambda key: init_boxed(config, key), jax.random.key(0))
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    shapes = nn.unbox(boxed)

    def sharding(path: Any, shape: jax.ShapeDtypeStruct, spec: PartitionSpec) -> NamedSharding:
        for size, axis in zip(shape.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')}: size {size} "
                    f"is not a multiple of the {mesh.shape[axis]} devices of mesh axis {axis!r}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, shapes, specs)


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer's state, given those of the parameters.

    A leaf that has the path (its end) and the shape of a parameter is laid out like it. All others (counters,
    Adafactor's row and column means, which are vectors) are whole on every device.

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
            shape, found = by_path.get(names[start:], (None, None))
            if shape == leaf.shape:
                return found
        return whole(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def whole(mesh: Mesh) -> NamedSharding:
    """All of the array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Axis 0, the batch, split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def pad_rows(batch: Mapping[str, np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    """The batch with rows of zeros (padding words, weight 0) up to a multiple of `multiple`."""
    rows = len(next(iter(batch.values())))
    missing = -rows % multiple
    if not missing:
        return dict(batch)
    return {
        name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch onto the devices, padded to what the data axis needs."""
    local = max(1, mesh.shape[DATA] // jax.process_count())
    padded = pad_rows(batch, local)
    if jax.process_count() == 1:
        return jax.device_put(padded, by_rows(mesh))
    return {
        name: jax.make_array_from_process_local_data(by_rows(mesh), array)
        for name, array in padded.items()
    }
