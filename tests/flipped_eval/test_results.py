"""Files and rows: atomic writes, aggregates by hand, refusals."""

from __future__ import annotations

import os

import numpy as np
import pytest

from flipped_core import files
from flipped_core.errors import UserError
from flipped_eval import aggregates, metrics, results, run_files


def unit(
    task: str, template: str, right: list[int], label_set: str = "original", suite: str = "nlp14"
):
    size = len(right)
    return metrics.Unit(
        suite, task, template, label_set, task, "validation", tuple(map(str, range(size))),
        np.array([[True, False]] * size), 1 - np.array(right), np.full(size, 2), ("yes", "no"), ties=1,
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
    rows = aggregates.rows(units, seed=0, resamples=50)
    of_cb = find(rows, task="cb", template=None, metric="accuracy")
    assert [
        of_cb[name] for name in ("value", "median", "min", "max", "std", "templates", "ties", "n")
    ] == ([0.75, 0.75, 0.5, 1.0, 0.25, 2, 2, 4])
    of_suite = find(rows, task=None, metric="accuracy")
    assert (of_suite["value"], of_suite["tasks"], of_suite["n"]) == (0.5, 2, 8)
    assert of_suite["low"] < 0.5 < of_suite["high"]
    one = find(rows, task="cb", template="a", metric="accuracy")
    assert "std" not in one and "templates_low" not in one and one["chance"] == 0.5


def test_the_interval_over_templates_is_that_of_their_values():
    units = [unit("cb", "a", [1, 1, 0, 0]), unit("cb", "b", [1, 1, 1, 1]), unit("rte", "a", [1, 0])]
    rows = aggregates.rows(units, seed=0, resamples=2000)
    of_cb = find(rows, task="cb", template=None, metric="accuracy")
    assert (of_cb["templates_low"], of_cb["templates_high"]) == (0.5, 1.0)
    of_suite = find(rows, task=None, metric="accuracy")
    assert (of_suite["templates_low"], of_suite["templates_high"]) == (0.5, 0.75)


def test_mean_over_all_pairs_and_the_drop_from_the_original_words():
    units = [
        unit("cb", "a", [1, 1, 1, 1], suite="labels"),
        unit("cb", "a", [1, 0, 0, 0], "agree", suite="labels"),
        unit("cb", "a", [1, 1, 0, 0], "right", suite="labels"),
        unit("rte", "a", [1, 1, 1, 1], suite="labels"),
        unit("rte", "a", [1, 1, 1, 1], "agree", suite="labels"),
        unit("rte", "b", [0, 0, 0, 0], "agree", suite="labels"),
    ]
    rows = [row for row in aggregates.rows(units, 0, 200) if row["metric"] == "accuracy"]
    over_all = find(rows, task=None, label_set=aggregates.SUBSTITUTES)
    assert over_all["value"] == pytest.approx((0.25 + 0.5 + 0.5) / 3, abs=1e-6)
    assert (over_all["label_sets"], over_all["tasks"]) == (3, 2)
    assert over_all["drop"] == pytest.approx((0.75 + 0.5 + 0.5) / 3, abs=1e-6)
    assert over_all["drop_low"] < over_all["drop"] < over_all["drop_high"]
    assert find(rows, task="cb", label_set=aggregates.SUBSTITUTES)["value"] == 0.375
    one = find(rows, task="cb", label_set="agree", template=None)
    assert one["drop"] == 0.75 and one["drop_high"] <= 1
    assert find(rows, task=None, label_set="original")["value"] == 1.0
    assert "drop" not in find(rows, task="cb", label_set="original", template=None)


def test_a_drop_between_equal_predictions_is_exactly_nothing():
    """The pairs share their examples, so the interval of no difference has no width."""
    units = [
        unit("cb", "a", [1, 0, 1, 0], name, suite="labels")
        for name in ("original", "agree", "right")
    ]
    row = find(
        aggregates.rows(units, 0, 50),
        task=None,
        label_set=aggregates.SUBSTITUTES,
        metric="accuracy",
    )
    assert (row["drop"], row["drop_low"], row["drop_high"]) == (0, 0, 0)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="cannot write .*results.json: No space left on device"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_json_text_is_the_same_for_the_same_value():
    assert files.to_json({"b": 1, "a": "é"}) == files.to_json({"a": "é", "b": 1})
    with pytest.raises(ValueError):
        files.to_json({"value": float("nan")})


def test_a_folder_of_another_request_is_refused(tmp_path):
    model = {"label": "direct", "weights": "a"}
    run_files.open_run(tmp_path, {"seed": 0}, [model], {"direct": "runs/a"})
    run_files.open_run(tmp_path, {"seed": 0}, [model, model | {"label": "other"}], {})
    assert run_files.check_run(tmp_path, {"seed": 0}, []) == [model, model | {"label": "other"}]
    with pytest.raises(UserError, match="seed was 0, now 1"):
        run_files.open_run(tmp_path, {"seed": 1}, [model], {})
    with pytest.raises(UserError, match='weights of \'direct\' was "a", now "b"'):
        run_files.open_run(tmp_path, {"seed": 0}, [model | {"weights": "b"}], {})


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1}'])
def test_results_that_cannot_be_read_are_refused_by_name(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json"):
        results.results_of(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read .*results.json"):
        results.results_of(tmp_path)


def test_results_of_some_weights(tmp_path, run_job):
    found = run_job(
        tmp_path, suites=["super_glue/rte:MNLI crowdsource"], methods=["direct", "flipped"]
    )
    weights = found["runs"][0]["weights"]
    of_one = results.of_weights(found, weights)
    assert {row["method"] for row in of_one["results"]} == {"direct"}
    assert of_one["run"]["weights"] == weights and of_one["run"]["data"] == "embedded"
    assert results.of_weights(found, "others") is None


def test_the_confusion_counts_every_prediction(tmp_path, run_job):
    found = run_job(tmp_path, suites=["super_glue/cb:can we infer"])
    [count] = found["counts"]
    assert count["confusion"]["words"] == ["Yes", "No", "Maybe"]
    matrix = np.array(count["confusion"]["matrix"])
    assert matrix.sum() == 12
    [line] = results.predictions_of(tmp_path)
    right = [choices[0] for choices in line.right]
    assert matrix[right[0], line.predicted[0]] > 0
    assert matrix.sum(axis=1).tolist() == np.bincount(right, minlength=3).tolist()


def test_the_worst_examples_are_those_in_which_a_wrong_choice_leads_by_most(tmp_path, run_job):
    run_job(tmp_path, suites=["super_glue/cb:can we infer"], max_examples=40, pairs_together=30)
    worst = files.read_json(tmp_path / "examples.json")["worst"]
    assert len(worst) == 3 and len({one["example"] for one in worst}) == 3
    leads = [one["lead"] for one in worst]
    assert leads == sorted(leads, reverse=True) and leads[-1] > 0
    for one in worst:
        assert one["predicted"] != one["correct"]
        lead = one["scores"][one["predicted"]] - one["scores"][one["correct"]]
        assert one["lead"] == pytest.approx(lead, abs=2e-3)
        assert one["inputs"] and one["choices"] == ["Yes", "No", "Maybe"]
    scores = {}
    for path in (tmp_path / "scores").iterdir():
        for text in path.read_text().splitlines():
            line = files.json.loads(text)
            if "choice" in line:
                scores.setdefault(line["example"], []).append((line["logprob"], line["right"]))
    all_leads = sorted(
        (max(s for s, right in own if not right) - max(s for s, right in own if right) for own in scores.values()),
        reverse=True,
    )  # fmt: skip
    assert leads == pytest.approx(all_leads[:3], abs=1e-3)
