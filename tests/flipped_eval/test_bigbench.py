"""BIG-bench through the evaluation: sub-tasks are averaged, every best choice counts."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from flipped_tasks.datasets import get_dataset
from flipped_tasks.prepared import origins, writing
from mixtures import suites


@pytest.fixture
def stored(tmp_path: pathlib.Path) -> str:
    """The 14 tasks with four questions each; in novel_concepts the last two choices are best."""
    for task in suites.bigbench14():
        name = task.dataset.removeprefix("bigbench/")
        scores = {"a": 1, "b": 0, "c": 0} if name != "novel_concepts" else {"a": 0, "b": 1, "c": 1}
        examples = [{"input": f"{name} {n}?", "target_scores": scores} for n in range(4)]
        place = tmp_path / "files" / name
        place.mkdir(parents=True)
        (place / "task.json").write_text(json.dumps({"examples": examples}))
        spec = get_dataset(task.dataset)
        origin = origins.open_origin(spec, f"files:{tmp_path / 'files'}")
        writing.prepare(spec, origin, str(tmp_path / "data"))
    return str(tmp_path / "data")


class LastChoice:
    """Prefers the last choice of each example: pairs come in the order of the choices."""

    def score(self, pairs, progress=None):
        return np.tile(np.array([-3.0, -2.0, -1.0], np.float32), len(pairs) // 3)


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_the_suite_is_scored(tmp_path, stored, run_job, method) -> None:
    found = run_job(
        tmp_path / "out", suites=["bigbench14"], data_dir=stored, method=method, scorer=LastChoice()
    )
    rows = [row for row in found["results"] if row["metric"] == "accuracy"]
    (mean,) = [row for row in rows if row["task"] is None]
    assert mean["tasks"] == 14 and mean["value"] == pytest.approx(1 / 14, abs=1e-5)
    assert mean["chance"] == pytest.approx((13 / 3 + 2 / 3) / 14, abs=1e-5)
    per_task = {row["task"]: row for row in rows if row["task"] and row["template"] is None}
    assert per_task["novel_concepts"]["value"] == 1
    assert per_task["novel_concepts"]["chance"] == pytest.approx(2 / 3, abs=1e-5)
    assert per_task["winowhy"]["value"] == 0
    assert per_task["conceptual_combinations"]["templates"] == 6
    assert per_task["logical_deduction"]["n"] == 12
    counts = {one["task"]: one["several_correct"] for one in found["counts"]}
    assert counts["novel_concepts"] == 4 and counts["winowhy"] == 0
