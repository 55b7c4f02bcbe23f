"""Adafactor's state in T5X and here: the same second moments, under other names.

| T5X, for each parameter | here |
|---|---|
| `state/step` | the counts of updates and of the schedule, one for each layer of a stack |
| `v_row`, `v_col` (factored) or `v` | the same, of all layers on axis 0 |
| `m`, the momentum | none: ours has no momentum, and T5X's is off by default; a `m` in use is refused |

Without a counterpart: T5X's scanned parameters, whose moments are factored by named axes and so in other
arrays; other optimizers of T5X; our Adam.

*Moments*, here, are the arrays under T5X's names, ("encoder", "layers_0", …, "kernel", "v_row").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from flipped_core.errors import UserError
from t5_engine import optimizer
from t5_engine.config import T5Config
from t5_engine.model import STACKED, STACKS, abstract_params
from t5_engine.stored_arrays import Opener, Path
from t5_engine.weights import as_float32

KINDS = ("v_row", "v_col", "v")
MOMENTUM = "m"


def moments_in_t5x(
    arrays: Mapping[Path, Opener],
    shape_of: Callable[[Path], tuple[int, ...]],
    *,
    fresh: bool = False,
) -> dict[Path, np.ndarray] | None:
    """The moments of a T5X checkpoint; None where its state is of another optimizer.

    Args:
      arrays: those below "param_states".
      shape_of: the shape of a parameter, by its path.
      fresh: whether they are of step 0: all zeros, which T5X need not have stored. Later ones are never zero.

    Raises:
      UserError: momentum is in use, or a part of a moment is missing, or it has more numbers than its parameter.
    """
    if not any(path[-1] in ("v_row", "v_col") for path in arrays):
        return None
    for path, opener in arrays.items():
        if path[-1] == MOMENTUM and _in_use(opener):
            raise UserError(
                f"optimizer state {'/'.join(path)!r}: momentum is in use, which our Adafactor does not have"
            )
    moments = {}
    for path, opener in arrays.items():
        if path[-1] not in KINDS:
            continue
        stored, shape = opener(fill_missing=fresh), shape_of(path[:-1])
        if math.prod(stored.shape) > math.prod(shape):  # before any memory is asked for
            raise UserError(
                f"optimizer state {'/'.join(path)!r}: expected at most the {math.prod(shape)} numbers of its "
                f"parameter, got shape {list(stored.shape)}"
            )
        moments[path] = stored.read()
    return moments


def _in_use(opener: Opener) -> bool:
    """Whether a momentum is more than T5X's placeholder, one zero."""
    stored = opener(fill_missing=True)
    return math.prod(stored.shape) > 1 or bool(np.any(stored.read()))


def moments_in_ours(arrays: Mapping[Path, Opener]) -> dict[Path, np.ndarray]:
    """The moments of a checkpoint of ours, from the arrays of its optimizer's state."""
    found: dict[Path, np.ndarray] = {}
    for names, opener in arrays.items():
        group, kind, path = _place(names)
        if kind not in KINDS:
            continue
        array = opener().read()
        if group not in STACKS:
            found[*path, kind] = array
            continue
        for i, layer in enumerate(array):
            found[group, f"{STACKED}_{i}", *path, kind] = layer
    return found


def to_ours(config: T5Config, step: int, moments: Mapping[Path, np.ndarray]) -> Any:
    """The state of our Adafactor, in numpy.

    Raises:
      UserError: a moment is missing or of another shape.
    """

    def find(path: Path, shape: tuple[int, ...]) -> np.ndarray:
        name = "/".join(path)
        if path not in moments:
            raise UserError(f"optimizer state {name!r} is missing")
        return as_float32(moments[path], shape, name)

    def fill(keys: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        group, kind, path = _place([_name(key) for key in keys])
        if kind not in KINDS:
            return np.full(leaf.shape, step, leaf.dtype)
        if group not in STACKS:
            return find((*path, kind), leaf.shape)
        layers = range(leaf.shape[0])
        each = [find((group, f"{STACKED}_{i}", *path, kind), leaf.shape[1:]) for i in layers]
        return np.stack(each)

    # The rate is no part of the state; that there is a schedule is.
    make_state = optimizer.make("adafactor", 1.0).init
    return jax.tree_util.tree_map_with_path(
        fill, jax.eval_shape(make_state, abstract_params(config))
    )


def to_t5x(moments: Mapping[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """T5X's `param_states`: the moments, with its placeholder for "no momentum"."""
    none = {(*path[:-1], MOMENTUM): np.zeros(1, np.float32) for path in moments if path[-1] == "v"}
    return {**moments, **none}


def _place(names: Path | list[str]) -> tuple[str, str, Path]:
    """(the group of parameters, which array of the state, the parameter's path in the group)."""
    for kind in KINDS:
        if kind in names:
            path = tuple(names[names.index(kind) + 1 :])
            # A stack's parameters are named from the root or from the layer on.
            return names[0], kind, path[2:] if path[:2] == (names[0], STACKED) else path
    return names[0], names[-1], ()


def _name(key: Any) -> str:
    """A step of a path through a tree, of a dictionary, a named tuple or a tuple."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
