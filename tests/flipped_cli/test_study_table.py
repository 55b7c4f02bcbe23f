"""The table of `flipped study`."""

import json

import pytest

from flipped_cli import study_table


def report(folder, seed, values):
    rows = [
        {
            "method": method,
            "suite": suite,
            "task": task,
            "template": None,
            "metric": metric,
            "label_set": label_set,
            "value": value,
            "chance": 0.5,
        }
        for (method, suite, task, metric, label_set), value in values.items()
    ]
    path = folder / f"report_{seed}.json"
    path.write_text(json.dumps({"results": rows}))
    return path


def test_each_figure_is_the_mean_over_seeds_with_its_spread(tmp_path):
    seen = ("direct", "seen", None, "accuracy", "original")
    rte = ("direct", "nlp14", "rte", "accuracy", "original")
    renamed = ("direct", "labels", None, "macro_f1", "all substitutes")
    kept = ("direct", "labels", None, "macro_f1", "original")
    other = ("flipped", "seen", None, "accuracy", "original")
    reports = [
        report(tmp_path, 0, {seen: 0.8, rte: 0.5, renamed: 0.25, kept: 0.7, other: 0.1}),
        report(tmp_path, 1, {seen: 0.9, rte: 0.7, renamed: 0.35, kept: 0.7, other: 0.3}),
    ]
    lines = study_table.render(reports).splitlines()
    assert lines[0].startswith("Mean ± standard deviation over 2 seeds")
    assert "| seen tasks, accuracy | 50.0 | 85.0 ± 7.1 | 20.0 ± 14.1 |" in lines
    assert "| labels renamed, macro F1 over all pairs | 50.0 | 30.0 ± 7.1 | – |" in lines
    assert "| labels as they are, macro F1 | 50.0 | 70.0 ± 0.0 | – |" in lines
    assert "| 14 unseen tasks, accuracy: rte | 50.0 | 60.0 ± 14.1 | – |" in lines
    assert f"| {study_table.DROP}, points | – | 40.0 ± 7.1 | – |" in lines
    shown = next(line for line in lines if line.startswith("- FLIPPED minus DIRECT, seen"))
    assert "-65.0 points" in shown and "(-70.0, -60.0)" in shown


def test_the_interval_over_seeds_is_students():
    from scipy import stats

    values = [3.0, 5.0, 4.0, 8.0, 6.0]
    found = study_table.interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert study_table.interval([2.0])["low"] is None


def test_a_family_is_the_mean_over_its_tasks_and_missing_where_one_is(tmp_path):
    tasks = study_table.FAMILIES["coreference"]
    rows = {
        ("direct", "nlp14", task, "accuracy", "original"): n / 10 for n, task in enumerate(tasks)
    }
    rows[("direct", "nlp14", "rte", "accuracy", "original")] = 0.5
    found = study_table.numbers([report(tmp_path, 0, rows)])["families"]
    assert found["coreference"]["direct"] == [pytest.approx(5.0)]
    assert found["natural language inference"]["direct"] == [None]


def test_the_families_are_the_fourteen_tasks():
    from mixtures.suites import NLP14

    listed = [task for tasks in study_table.FAMILIES.values() for task in tasks]
    assert sorted(listed) == sorted(NLP14)


def test_a_study_is_written_with_its_picture(tmp_path):
    values = {
        (method, "labels", None, "macro_f1", words): value
        for method, both in {"direct": (0.8, 0.5), "flipped": (0.8, 0.7)}.items()
        for words, value in zip(("original", "all substitutes"), both, strict=True)
    }
    seeds = []
    for seed in range(2):
        (folder := tmp_path / f"seed_{seed}").mkdir()
        report(folder, seed, values).rename(folder / "report.json")
        seeds.append(folder)
    study_table.write(tmp_path, seeds)
    assert (tmp_path / study_table.PICTURE).read_bytes()[1:4] == b"PNG"
    numbers = json.loads((tmp_path / study_table.NUMBERS).read_text())
    assert numbers["flipped minus direct"][study_table.RENAMED]["mean"] == pytest.approx(20.0)
