"""T5X's T5.1.1: its names and shapes of the parameters, and what becomes ours and theirs of them.

T5X keeps each layer under its own name (`encoder/layers_0`, …; `examples/t5`), or all layers in one array with the
layer as axis 1 (`encoder/encoder`; `examples/scalable_t5`), which also splits the heads, [D, L, N, H] for our
[L, D, N * H], and has a table of relative positions in each layer where T5.1.1 has one a stack.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from flipped_core.errors import UserError
from t5_engine import t5x_adafactor, t5x_files
from t5_engine.config import T5Config
from t5_engine.model import STACKED, STACKS
from t5_engine.weights import (
    Path,
    Weights,
    as_float32,
    layers_of,
    leaves,
    refuse_other_names,
    refuse_other_shape,
)

LAYER_AXIS = 1  # T5X's `param_scan_axis`
_TABLE = ("relpos_bias", "rel_embedding")


class T5XWeights(Weights):
    """The parameters of a T5X checkpoint of either layout, scanned or not, in a folder or a bucket."""

    def __init__(self, path: str | pathlib.Path) -> None:
        """Reads the names and the few shapes that tell the model's size.

        Raises:
          UserError: there is no T5X checkpoint, or not one of a T5.1.1; names the parameter.
        """
        self._tree = t5x_files.read(path)
        self.path = self._tree.path
        self._names = {name[1:] for name in self._tree if name[0] == "target"}
        self.scanned = any(name[:2] == ("encoder", "encoder") for name in self._names)
        self.layout = f"t5x {self._tree.layout}{', scanned' if self.scanned else ''}"
        self.step = t5x_files.step_of(self._tree)
        self._axis = self._layer_axis() if self.scanned else 0
        self.config = self._config()
        self._refuse_other_names()

    def leaf(self, path: Path) -> np.ndarray:
        shape = leaves(self.config)[path].shape
        if path[1:] == _TABLE:
            return self._table(path[0], shape)
        layers = layers_of(self.config, path)
        if layers is None:
            return as_float32(self._array(path, shape), shape, "/".join(path))
        if self.scanned:
            return self._unscanned((path[0], path[0], *path[2:]), shape)
        leaf = np.empty(shape, np.float32)
        for i in range(layers):
            name = (path[0], f"{STACKED}_{i}", *path[2:])
            leaf[i] = _heads_joined(self._array(name, shape[1:]), shape[1:], "/".join(name))
        return leaf

    def moments(self) -> dict[Path, np.ndarray] | None:
        """What Adafactor remembers (see `t5x_adafactor`); None where it is not there or has no counterpart."""
        if self.scanned:
            return None
        arrays = self._tree.below("state", "param_states")
        return t5x_adafactor.moments_in_t5x(arrays, self._shape, fresh=self.step == 0)

    def _array(self, name: Path, shape: tuple[int, ...]) -> np.ndarray:
        """An array of as many numbers as the shape has, whatever its own; another is refused before it is read."""
        stored = self._tree["target", *name]
        if math.prod(stored.shape) != math.prod(shape):
            refuse_other_shape("/".join(name), shape, stored.shape)
        return stored.read()

    def _shape(self, name: Path) -> tuple[int, ...]:
        if name not in self._names:
            raise UserError(
                f"{self.path}: parameter {'/'.join(name)!r} is missing, which every T5.1.1 has"
            )
        return self._tree["target", *name].shape

    def _unscanned(self, name: Path, shape: tuple[int, ...]) -> np.ndarray:
        """An array of all layers, with the layer moved to axis 0 and the heads joined."""
        array = np.moveaxis(self._array(name, shape), self._axis, 0)
        return _heads_joined(array, shape, "/".join(name))

    def _table(self, side: str, shape: tuple[int, ...]) -> np.ndarray:
        """The relative-position table of a stack; those of all layers must be the same."""
        if (name := (side, *_TABLE)) in self._names:
            return as_float32(self._array(name, shape), shape, "/".join(name))
        layers = layers_of(self.config, (side, STACKED)) or 0
        if self.scanned:
            tables = self._unscanned((side, side, *_TABLE), (layers, *shape))
        else:
            names = [(side, f"{STACKED}_{i}", *_TABLE) for i in range(layers)]
            tables = np.stack(
                [as_float32(self._array(name, shape), shape, "/".join(name)) for name in names]
            )
        if (tables != tables[0]).any():
            raise UserError(
                f"{self.path}: each {side} layer has a table of relative positions of its own: this is another "
                "architecture (umT5's), T5.1.1 has one table a stack"
            )
        return tables[0]

    def _layer_axis(self) -> int:
        """Where the layers stand in a scanned array; where the shapes leave it open, T5X's default."""
        width = self._shape(("token_embedder", "embedding"))[-1]
        shape = self._shape(("encoder", "encoder", "pre_mlp_layer_norm", "scale"))
        return LAYER_AXIS if shape[0] == width or len(shape) != 2 else 0

    def _config(self) -> T5Config:
        """The sizes, from the shapes; T5X stores no configuration."""
        vocab_size, emb_dim = _two(self._shape(("token_embedder", "embedding")), "embedding")
        layers = {side: self._count(side) for side in STACKS}
        first = ("encoder",) if self.scanned else (f"{STACKED}_0",)
        table = self._shape(self._table_names("encoder")[0])
        num_heads, buckets = table[0], table[-1]
        query = self._per_layer(("encoder", *first, "attention", "query", "kernel"))
        joined = int(np.prod(query[1:]))
        if joined % num_heads:
            raise UserError(
                f"{self.path}: the query kernel is {joined} wide, which its {num_heads} heads do not divide"
            )
        mlp_dim = self._per_layer(("encoder", *first, "mlp", "wi_0", "kernel"))[-1]
        return T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=num_heads,
            head_dim=joined // num_heads,
            mlp_dim=mlp_dim,
            num_encoder_layers=layers["encoder"],
            num_decoder_layers=layers["decoder"],
            relative_attention_num_buckets=buckets,
        )

    def _per_layer(self, name: Path) -> tuple[int, ...]:
        shape = self._shape(name)
        return shape[: self._axis] + shape[self._axis + 1 :] if self.scanned else shape

    def _count(self, side: str) -> int:
        """How many layers a stack has."""
        if self.scanned:
            return self._shape((side, side, "pre_mlp_layer_norm", "scale"))[self._axis]
        names = {name[1] for name in self._names if name[0] == side}
        count = sum(f"{STACKED}_{i}" in names for i in range(len(names)))
        if not count:
            raise UserError(
                f"{self.path}: expected parameters {side}/{STACKED}_0/… or {side}/{side}/…, found neither"
            )
        return count

    def _table_names(self, side: str) -> list[Path]:
        """The names of a stack's tables: one for all layers, or one in each."""
        if (side, *_TABLE) in self._names:
            return [(side, *_TABLE)]
        if self.scanned:
            return [(side, side, *_TABLE)]
        return [(side, f"{STACKED}_{i}", *_TABLE) for i in range(self._count(side))]

    def _refuse_other_names(self) -> None:
        expected = [name for side in STACKS for name in self._table_names(side)]
        for path in leaves(self.config):
            if path[1:] == _TABLE:
                continue
            if (layers := layers_of(self.config, path)) is None:
                expected.append(path)
            elif self.scanned:
                expected.append((path[0], path[0], *path[2:]))
            else:
                expected += [(path[0], f"{STACKED}_{i}", *path[2:]) for i in range(layers)]
        refuse_other_names(
            self.path,
            ["/".join(name) for name in expected],
            ["/".join(n) for n in sorted(self._names)],
        )


def write(
    weights: Weights,
    folder: pathlib.Path,
    *,
    layout: str = "native",
    scanned: bool = False,
    moments: Mapping[Path, np.ndarray] | None = None,
) -> None:
    """Writes `checkpoint_<step>` as T5X does.

    Args:
      weights: what to write; one leaf is in memory at a time (the Orbax layout: all of them).
      folder: exists and is empty; a `model_dir` for T5X.
      layout: "native" or "orbax".
      scanned: the layers in one array, as `scalable_t5` has them, else each under its own name.
      moments: what Adafactor remembers (see `t5x_adafactor`); None stores parameters and step only, and so does
        a scanned checkpoint.

    Raises:
      UserError: an unknown layout, or whatever the weights raise.
    """
    write_tree = t5x_files.writer(layout)
    states = {} if moments is None or scanned else t5x_adafactor.to_t5x(moments)
    write_tree(folder, weights.step, _target(weights, scanned), states)


def parameter_shapes(config: T5Config, scanned: bool = False) -> dict[Path, tuple[int, ...]]:
    """The shape of every parameter under T5X's names."""
    found: dict[Path, tuple[int, ...]] = {}
    for path, leaf in leaves(config).items():
        # An array of zeros that takes no memory: only its way through reshapes matters.
        nothing = np.broadcast_to(np.float32(0), leaf.shape)
        found |= {name: array.shape for name, array in _theirs(config, path, nothing, scanned)}
    return found


def _target(weights: Weights, scanned: bool) -> Iterator[tuple[Path, np.ndarray]]:
    for path, expected in leaves(weights.config).items():
        leaf = weights.leaf(path)
        refuse_other_shape("/".join(path), expected.shape, leaf.shape)
        for name, array in _theirs(weights.config, path, leaf, scanned):
            yield name, np.ascontiguousarray(array)


def _theirs(
    config: T5Config, path: Path, leaf: np.ndarray, scanned: bool
) -> Iterator[tuple[Path, np.ndarray]]:
    """(T5X's name, array) of all that one of our leaves holds; views, no copies."""
    side, layers = path[0], layers_of(config, path)
    if layers is not None and not scanned:
        for i in range(layers):
            yield (side, f"{STACKED}_{i}", *path[2:]), leaf[i]
    elif layers is not None:
        if path[-1] == "kernel" and "mlp" not in path:
            heads = (config.num_heads, config.head_dim)
            kept = (layers, *heads, config.emb_dim) if path[-2] == "out" else (layers, -1, *heads)
            leaf = leaf.reshape(kept)
        yield (side, side, *path[2:]), np.moveaxis(leaf, 0, LAYER_AXIS)
    elif scanned and path[1:] == _TABLE:
        count = layers_of(config, (side, STACKED)) or 0
        each = np.broadcast_to(leaf[:, None], (leaf.shape[0], count, leaf.shape[1]))
        yield (side, side, *_TABLE), each
    else:
        yield path, leaf


def _heads_joined(array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """float32 of the shape [..., N * H, ...] from one that may have the heads apart, [..., N, H, ...]."""
    if array.ndim == len(shape) + 1 and array.size == int(np.prod(shape)):
        array = array.reshape(shape)
    return as_float32(array, shape, name)


def _two(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise UserError(f"parameter {name!r}: expected 2 dimensions, got shape {list(shape)}")
    return shape[0], shape[1]
