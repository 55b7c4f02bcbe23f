"""The table of `flipped study`."""

import json

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
