"""What must be the same of a run that was killed and of one that was left alone."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import jax
import numpy as np

from t5_engine import checkpoints
from t5_engine.reporting import TIMES
from tests.t5_engine import killed_program


def read_ids(folder: pathlib.Path) -> list[Any]:
    """[step, ids] of each batch that was read, as often as it was."""
    file = folder / "ids.jsonl"
    # The last line of a killed process may be torn; the one that follows begins behind it.
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same_run(folder: pathlib.Path, expected_folder: pathlib.Path, params: Any) -> None:
    """Final parameters and metrics are equal to the last bit; each step has read the same examples."""
    found, _, step = checkpoints.load(folder)
    assert step == killed_program.STEPS
    jax.tree.map(np.testing.assert_array_equal, found, params)
    rows, expected = (
        [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        for where in (folder, expected_folder)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert {k: v for k, v in row.items() if k not in TIMES} == {
            k: v for k, v in wanted.items() if k not in TIMES
        }
    read = collections.defaultdict(set)
    for step, ids in read_ids(folder):
        read[step].add(tuple(ids))
    assert {step: {tuple(ids)} for step, ids in read_ids(expected_folder)} == read
