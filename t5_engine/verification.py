"""Reading everything that a checkpoint holds, to know that it is whole."""

from __future__ import annotations

import numpy as np

from flipped_core.errors import UserError
from t5_engine.weights import OwnWeights, Weights, leaves


def read_all(weights: Weights) -> int:
    """Reads every array, one at a time.

    Args:
      weights: whatever their layout; of a checkpoint of ours the optimizer's state is read too.

    Returns:
      How many arrays there are.

    Raises:
      UserError: an array is missing, damaged, of another shape, or holds a number that is not finite.
    """
    count = 0
    for path in leaves(weights.config):
        _refuse_non_finite("/".join(path), weights.leaf(path))
        count += 1
    if isinstance(weights, OwnWeights):
        for path, opener in weights.optimizer_arrays().items():
            _refuse_non_finite(f"opt_state/{'/'.join(path)}", opener().read())
            count += 1
    return count


def _refuse_non_finite(name: str, array: np.ndarray) -> None:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise UserError(f"{name}: {bad} of {array.size} numbers are not finite")
