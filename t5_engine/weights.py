"""Stored parameters that are read one leaf at a time, whatever the layout in which they are stored.

A leaf is one array of our own tree, with the layers stacked on axis 0: the largest of the XXL model takes 4 GiB in
float32. Who converts or loads a model holds one leaf at a time beside what it has made of the leaves before.
"""

from __future__ import annotations

import abc
import functools
import math
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
from etils import epath

from flipped_core.errors import UserError, nearest, shown, unknown
from t5_engine import checkpoints
from t5_engine.checkpoint_metadata import read_metadata
from t5_engine.config import SIZES, T5Config
from t5_engine.model import STACKED, Params, abstract_params
from t5_engine.stored_arrays import Folder, Opener, Path, orbax_arrays

_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))


class Weights(abc.ABC):
    """The parameters of one stored model.

    Attributes:
      layout: in which they are stored, such as "t5x native".
      path: where they stand.
      config: the model's sizes.
      step: the training step at which they were stored; 0 where the layout knows none.
    """

    layout: str
    path: str
    config: T5Config
    step: int

    @abc.abstractmethod
    def leaf(self, path: Path) -> np.ndarray:
        """One leaf of our tree, float32; `UserError` where it is missing or has another shape."""


class OwnWeights(Weights):
    """A checkpoint of `t5_engine.checkpoints`, or the newest whole one in a run's folder.

    Attributes:
      optimizer: whose state is stored beside the parameters.
    """

    layout = "flipped"

    def __init__(self, path: str | pathlib.Path, *, verify: bool = True) -> None:
        """Finds the checkpoint; reads no array yet.

        Args:
          path: as in `checkpoints.find`.
          verify: whether to compare the checksums of the parameters' files.

        Raises:
          UserError: there is no checkpoint that is whole.
        """
        folder = checkpoints.find(path, verify=verify)
        metadata = read_metadata(folder)
        self.path = str(folder)
        self.config, self.step = metadata.config, metadata.step
        self.optimizer = metadata.optimizer
        self._verify = verify
        self._arrays = orbax_arrays(Folder(f"{folder}/params")) or {}
        names = ["/".join(path) for path in self._arrays]
        refuse_other_names(self.path, ["/".join(path) for path in leaves(self.config)], names)

    def optimizer_arrays(self) -> dict[Path, Opener]:
        """The arrays of the optimizer's state; {} where none is stored.

        Raises:
          UserError: they are not as they were written.
        """
        if self._verify and (why := checkpoints.damage(epath.Path(self.path), ("opt_state",))):
            raise UserError(f"checkpoint {self.path} is not whole: {why}")
        return orbax_arrays(Folder(f"{self.path}/opt_state")) or {}

    def leaf(self, path: Path) -> np.ndarray:
        shape, name = leaves(self.config)[path].shape, "/".join(path)
        stored = self._arrays[path]()
        try:
            refuse_other_shape(name, shape, stored.shape)  # before any memory is asked for
            return as_float32(stored.read(), shape, name)
        except UserError as error:
            raise UserError(
                f"checkpoint {self.path} does not fit its model config: {error}"
            ) from None


@functools.lru_cache(maxsize=32)
def leaves(config: T5Config) -> Mapping[Path, jax.ShapeDtypeStruct]:
    """The shape and type of every leaf of a model's parameters."""
    return types.MappingProxyType(flax.traverse_util.flatten_dict(abstract_params(config)))


def count_parameters(config: T5Config) -> int:
    """The number of a model's parameters."""
    return sum(math.prod(leaf.shape) for leaf in leaves(config).values())


def layers_of(config: T5Config, path: Path) -> int | None:
    """How many layers are stacked in a leaf; None for one that stands alone."""
    if STACKED not in path:
        return None
    return config.num_encoder_layers if path[0] == "encoder" else config.num_decoder_layers


def as_float32(array: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    """`array` as float32 of the shape that the model has.

    Raises:
      UserError: it has another shape, or holds no floating-point numbers; names the parameter.
    """
    if array.dtype not in _FLOATS:
        raise UserError(f"parameter {name!r}: expected floating-point numbers, got {array.dtype}")
    refuse_other_shape(name, shape, array.shape)
    return np.ascontiguousarray(array, dtype=np.float32)


def refuse_other_shape(name: str, expected: Sequence[int], got: Sequence[int]) -> None:
    """A `UserError` that names the parameter whose shape is not the model's."""
    if tuple(expected) != tuple(got):
        raise UserError(f"parameter {name!r}: expected shape {list(expected)}, got {list(got)}")


def refuse_other_names(where: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """A `UserError` that names the first parameter that is missing, else the first that is too many."""
    wanted, there = set(expected), set(found)
    missing = [name for name in expected if name not in there]
    extra = [name for name in found if name not in wanted]
    if missing:
        close = nearest(missing[0], extra, most=1)
        hint = f"; nearest there: {shown(close[0])}" if close else ""
        raise UserError(f"{where}: parameter {missing[0]!r} is missing{_more(missing)}{hint}")
    if extra:
        raise UserError(
            f"{where}: parameter {extra[0]!r} is none of T5.1.1's of this size{_more(extra)}"
        )


def to_params(weights: Weights, shardings: Any = None) -> Params:
    """All parameters on the devices, moved there leaf by leaf.

    Args:
      weights: where they are read from.
      shardings: one sharding, or a tree of them; all on this process's first device where not given.
    """
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        where: Mapping[Path, Any] = dict.fromkeys(leaves(weights.config), one)
    else:
        where = flax.traverse_util.flatten_dict(shardings)
    placed = {}
    for path, sharding in where.items():
        leaf = weights.leaf(path)
        placed[path] = jax.make_array_from_callback(
            leaf.shape, sharding, lambda i, leaf=leaf: leaf[i]
        )
    return flax.traverse_util.unflatten_dict(placed)


def lazy_params(weights: Weights) -> Any:
    """A tree like the parameters, each leaf of which is read when numpy makes an array of it."""
    return flax.traverse_util.unflatten_dict(
        {path: _Lazy(weights, path) for path in leaves(weights.config)}
    )


class _Lazy:
    def __init__(self, weights: Weights, path: Path) -> None:
        self._weights, self._path = weights, path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._weights.leaf(self._path), dtype)


def refuse_other_size(weights: Weights, size: str) -> None:
    """A `UserError` that names the sizes in which the stored model differs from the named one."""
    if size not in SIZES:
        raise unknown("model size", size, SIZES)
    checkpoints.refuse_other_model(weights.path, weights.config, SIZES[size])


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
