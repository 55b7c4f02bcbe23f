"""Parameters in memory that the exporters take for stored ones, and trees compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from t5_engine.config import T5Config
from t5_engine.weights import Path, Weights


class InMemory(Weights):
    """A tree of parameters."""

    layout, path = "memory", "memory"

    def __init__(self, config: T5Config, params: Mapping[str, Any], step: int = 0) -> None:
        self.config, self.step = config, step
        self._leaves = flatten_dict(dict(params))

    def leaf(self, path: Path) -> np.ndarray:
        return np.asarray(self._leaves[path])


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Both trees have the same names, types and bits."""
    mine, other = (flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    assert set(mine) == set(other)
    for name, value in mine.items():
        a, b = np.asarray(value), np.asarray(other[name])
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name
