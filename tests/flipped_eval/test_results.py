"""Files and rows: atomic writes, aggregates by hand, refusals."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from flipped_errors import UserError
from flipped_eval import metrics, results
from mixtures.suites import EvalTask


def unit(
    task: str, template: str, right: list[int], label_set: str = "original", suite: str = "nlp14"
):
    size = len(right)
    return metrics.Unit(
        suite, task, template, label_set, task, "validation", tuple(map(str, range(size))),
        np.zeros(size, int), 1 - np.array(right), np.full(size, 2), ("yes", "no"), ties=1,
    )  # fmt: skip


def find(rows, **names):
    found = [row for row in rows if all(row[name] == value for name, value in names.items())]
    assert len(found) == 1, found
    return found[0]


def test_means_over_templates_and_tasks_by_hand():
    units = [
        unit("cb", "a", [1, 1, 0, 0]),
        unit("cb", "b", [1, 1, 1, 1]),
        unit("rte", "a", [0, 0, 0, 1]),
    ]
    rows = results.rows(units, seed=0, resamples=50)
    of_cb = find(rows, task="cb", template=None, metric="accuracy")
    assert [
        of_cb[name] for name in ("value", "median", "min", "max", "std", "templates", "ties", "n")
    ] == ([0.75, 0.75, 0.5, 1.0, 0.25, 2, 2, 4])
    of_suite = find(rows, task=None, metric="accuracy")
    assert (of_suite["value"], of_suite["tasks"], of_suite["n"]) == (0.5, 2, 8)
    assert of_suite["low"] < 0.5 < of_suite["high"]
    one = find(rows, task="cb", template="a", metric="accuracy")
    assert "std" not in one and one["chance"] == 0.5


def test_mean_over_all_pairs_is_the_mean_over_every_task_and_label_set():
    units = [
        unit("cb", "a", [1, 1, 1, 1], suite="labels"),
        unit("cb", "a", [1, 0, 0, 0], "agree", suite="labels"),
        unit("cb", "a", [1, 1, 0, 0], "right", suite="labels"),
        unit("rte", "a", [1, 1, 1, 1], "agree", suite="labels"),
        unit("rte", "b", [0, 0, 0, 0], "agree", suite="labels"),
    ]
    rows = [row for row in results.rows(units, 0, 20) if row["metric"] == "accuracy"]
    over_all = find(rows, task=None, label_set=results.SUBSTITUTES)
    assert over_all["value"] == pytest.approx((0.25 + 0.5 + 0.5) / 3, abs=1e-6)
    assert (over_all["label_sets"], over_all["tasks"]) == (3, 2)
    assert find(rows, task="cb", label_set=results.SUBSTITUTES)["value"] == 0.375
    assert find(rows, task=None, label_set="original")["value"] == 1.0


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        results.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_json_text_is_the_same_for_the_same_value():
    assert results.to_json({"b": 1, "a": "é"}) == results.to_json({"a": "é", "b": 1})
    with pytest.raises(ValueError):
        results.to_json({"value": float("nan")})


def test_file_names_differ_where_names_do():
    names = ["a/b", "a_b", "a b", "A?", "A!", "x" * 200, "x" * 201, "plain-name_1.0", "é", "..", ""]
    slugs = [results.slug(name) for name in names]
    assert len({slug.lower() for slug in slugs}) == len(slugs)
    assert results.slug("plain-name_1.0") == "plain-name_1.0"
    assert all("/" not in slug and slug not in ("", ".", "..") for slug in slugs)


def test_label_sets_have_files_of_their_own(tmp_path):
    task = EvalTask("labels", "cb", "super_glue/cb", "validation", "can we infer")
    other = EvalTask(
        "labels", "cb", "super_glue/cb", "validation", "can we infer", {"a": "b"}, "agree"
    )
    assert results.prediction_path(tmp_path, task) != results.prediction_path(tmp_path, other)


def test_a_folder_of_another_request_is_refused(tmp_path):
    results.open_run(tmp_path, {"label": "direct", "seed": 0})
    results.open_run(tmp_path, {"label": "direct", "seed": 0})
    with pytest.raises(UserError, match="seed was 0, now 1"):
        results.open_run(tmp_path, {"label": "direct", "seed": 1})


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_results_that_cannot_be_read_are_refused_by_name(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json"):
        results.results_of(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read .*results.json"):
        results.results_of(tmp_path)


def test_predictions_without_a_key_are_not_overwritten(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"examples": []}))
    with pytest.raises(UserError, match="remove the file"):
        results.finished(path, {"weights": "1"})
