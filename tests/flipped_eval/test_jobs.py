"""The job: what a restart scores, what is refused, what is told of what could not be run."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re

import numpy as np
import pytest

from flipped_core import locks
from flipped_core.errors import UserError
from flipped_eval import keys, planning, results, scoring, shards
from flipped_eval.planning import Request
from flipped_tasks.datasets import get_dataset
from mixtures import suites
from mixtures.catalog import TRAINING

from .conftest import HashScorer

MADE = (results.RESULTS, results.PREDICTIONS, results.EXAMPLES)
RTE = "super_glue/rte:MNLI crowdsource"


def made(folder: pathlib.Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in MADE]


def lines(folder: pathlib.Path) -> list[dict]:
    found = []
    for path in sorted((folder / "scores").iterdir()):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


class Stopped(BaseException):
    """Stands for what ends a job."""


class Dying(HashScorer):
    """Dies in the call after `lives` calls."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def score(self, pairs, progress=None):
        if len(self.calls) == self.lives:
            raise Stopped
        return super().score(pairs, progress)


def test_a_stopped_job_scores_only_the_rest_and_ends_with_the_same_bytes(tmp_path, run_job):
    job = {
        "methods": ["direct", "flipped"], "suites": ["super_glue/rte", "super_glue/cb", "labels"],
        "pairs_together": 100, "resamples": 20, "exclude_datasets": ["imdb", "paws/labeled_final"],
    }  # fmt: skip
    whole = HashScorer()
    run_job(tmp_path / "whole", scorer=whole, **job)
    assert len(whole.calls) > 8
    for lives in (0, 3, len(whole.calls) - 1):
        folder = tmp_path / str(lives)
        with pytest.raises(Stopped):
            run_job(folder, scorer=Dying(lives), **job)
        assert not (folder / "results.json").exists()
        assert not list(folder.rglob("*.tmp"))
        rest = HashScorer()
        run_job(folder, scorer=rest, **job)
        assert rest.calls == whole.calls[lives:]
        assert made(folder) == made(tmp_path / "whole")


def test_a_finished_job_scores_nothing(tmp_path, run_job):
    first = run_job(tmp_path)
    scorer = HashScorer()
    assert run_job(tmp_path, scorer=scorer) == first
    assert scorer.pairs == 0


def test_the_size_of_chunks_does_not_change_results(tmp_path, run_job):
    run_job(tmp_path / "a", pairs_together=1)
    run_job(tmp_path / "b")
    assert made(tmp_path / "a")[:2] == made(tmp_path / "b")[:2]


def test_there_is_one_record_for_each_choice_and_none_twice(tmp_path, run_job):
    found = run_job(tmp_path, pairs_together=100)
    records = [line for line in lines(tmp_path) if "choice" in line]
    names = {(line["unit"], line["example"], line["choice"]) for line in records}
    assert len(names) == len(records)
    choices = sum(sum(line.choices) for line in results.predictions_of(tmp_path))
    assert len(records) == choices > 0
    units = [line for line in lines(tmp_path) if "about" in line]
    assert {"weights", "data", "tokenizer", "method", "template"} <= set(units[0]["about"])
    assert found["request"]["data"] == "embedded"


@pytest.mark.parametrize("torn", [b'{"unit": "ab', b"\0\0\0", b'{"unit": "ab", "end": {}}\n{"un'])
def test_a_torn_end_of_a_shard_is_not_there(tmp_path, run_job, torn):
    job = {"suites": ["super_glue/rte"], "max_examples": 40, "pairs_together": 100}
    run_job(tmp_path / "whole", **job)
    with pytest.raises(Stopped):
        run_job(tmp_path / "torn", scorer=Dying(1), **job)
    shard = tmp_path / "torn" / "scores" / "scores-00000.jsonl"
    shard.write_bytes(shard.read_bytes() + torn)
    run_job(tmp_path / "torn", **job)
    assert made(tmp_path / "torn")[:2] == made(tmp_path / "whole")[:2]
    assert shard.read_bytes().endswith(torn), "nothing is written behind a torn line"


@pytest.mark.parametrize(
    "change",
    [{"weights": 1}, {"seed": 1}, {"lengths": {"inputs": 64, "targets": 32}}, {"max_examples": 9},
     {"input_eos": False}, {"method": "flipped", "label": "direct"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path, run_job, change):
    run_job(tmp_path, suites=[RTE])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(UserError, match="another run"):
        run_job(tmp_path, suites=[RTE], **change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def test_what_is_added_to_a_folder_does_not_score_the_old_again(tmp_path, run_job):
    run_job(tmp_path, suites=["labels"])
    scorer = HashScorer()
    added = run_job(tmp_path, suites=["labels", RTE], methods=["direct", "flipped"], scorer=scorer)
    assert {run["label"] for run in added["runs"]} == {"direct", "flipped"}
    scored = {(row["method"], row["suite"]) for row in added["results"]}
    assert scored == {(m, s) for m in ("direct", "flipped") for s in ("labels", "chosen")}
    once = run_job(
        tmp_path / "once",
        suites=["labels", RTE],
        methods=["direct", "flipped"],
        scorer=HashScorer(),
    )
    assert added == once
    alone = HashScorer()
    run_job(tmp_path / "alone", suites=["labels"], scorer=alone)
    everything = sum(sum(line.choices) for line in results.predictions_of(tmp_path))
    assert scorer.pairs == everything - alone.pairs


def test_other_rows_of_a_dataset_never_meet_the_old_scores(tmp_path, run_job, monkeypatch):
    run_job(tmp_path, suites=[RTE])
    before = results.predictions_of(tmp_path)
    load = planning.load_numbered

    def other(*names):
        return [(n, row | {"premise": f"{row['premise']} indeed"}) for n, row in load(*names)]

    monkeypatch.setattr(planning, "load_numbered", other)
    scorer = HashScorer()
    run_job(tmp_path, suites=[RTE], scorer=scorer)
    assert scorer.pairs == 24
    after = results.predictions_of(tmp_path)
    assert [line.data for line in after] != [line.data for line in before]
    with pytest.raises(UserError, match="another version of super_glue/rte"):
        monkeypatch.setattr(planning, "load_numbered", load)
        run_job(tmp_path, suites=[RTE], methods=["flipped"])


def test_predictions_follow_the_scores(tmp_path, run_job):
    run_job(tmp_path, suites=[RTE])
    scores: dict[str, list[float]] = {}
    for line in lines(tmp_path):
        if "choice" in line:
            scores.setdefault(line["example"], []).append(line["logprob"])
    [line] = results.predictions_of(tmp_path)
    assert [*line.predicted] == [int(np.argmax(scores[example])) for example in line.examples]
    assert [*line.examples] == sorted(scores, key=int)


def test_examples_of_a_sample_are_the_same_under_all_templates(tmp_path, run_job):
    run_job(tmp_path, suites=["super_glue/rte"], max_examples=5)
    found = results.predictions_of(tmp_path)
    ids = {line.examples for line in found}
    assert len(found) == 10 and len(ids) == 1
    assert ids != {("0", "1", "2", "3", "4")}


def test_each_template_gets_its_number_of_examples_where_it_cannot_use_all_rows(tmp_path, run_job):
    """Half of copa's templates are for causes or for effects only."""
    found = run_job(tmp_path, suites=["super_glue/copa"], max_examples=2)
    assert [count["scored"] for count in found["counts"]] == [2] * 12
    assert found["dropped"]["not_two_parts"] > 0
    assert all(count["rows"] == 2 + sum(count["dropped"].values()) for count in found["counts"])


def only_causes(dataset, split, data_dir=None):
    rows = planning_load(dataset, split, data_dir)
    if dataset == "super_glue/copa":
        rows = [(n, row) for n, row in rows if row["question"] == "cause"]
    return rows[:0] if dataset == "super_glue/wic" else rows


planning_load = planning.load_numbered


def test_a_template_without_examples_is_named_and_the_averages_say_so(
    tmp_path, run_job, monkeypatch
):
    monkeypatch.setattr(planning, "load_numbered", only_causes)
    told: list[str] = []
    found = run_job(
        tmp_path, suites=["super_glue/copa", "super_glue/cb:can we infer"], announce=told.append
    )
    effects = [one for one in found["not_run"] if one["task"] == "super_glue/copa"]
    assert len(effects) == 2 and not any(one["whole_task"] for one in effects)
    assert all("no example can be used (" in one["why"] for one in effects)
    assert all("not_two_parts" in one["why"] for one in effects)
    assert any("…As a result, C1 or C2?: not run: no example" in line for line in told)
    assert any("warning: dropped" in line for line in told)
    row = next(
        row for row in found["results"] if row["task"] == "super_glue/copa" and not row["template"]
    )
    assert (row["templates"], row["templates_missing"]) == (10, 2)
    assert results.missing_tasks(found) == []


def test_a_task_without_examples_does_not_stop_the_others_and_is_missed_aloud(
    tmp_path, run_job, monkeypatch
):
    monkeypatch.setattr(planning, "load_numbered", only_causes)
    found = run_job(tmp_path, suites=["super_glue/wic", "super_glue/cb:can we infer"])
    [mean] = [
        row for row in found["results"] if row["task"] is None and row["metric"] == "accuracy"
    ]
    assert (mean["tasks"], mean["tasks_missing"]) == (1, ["super_glue/wic"])
    assert results.missing_tasks(found) == ["chosen super_glue/wic: the split has no rows"]


def test_rows_that_cannot_be_read_do_not_stop_the_other_tasks(tmp_path, run_job, monkeypatch):
    def load(dataset, split, data_dir=None):
        if dataset == "super_glue/wic":
            raise UserError("cannot read wic")
        return planning_load(dataset, split, data_dir)

    monkeypatch.setattr(planning, "load_numbered", load)
    both = ["super_glue/wic", "super_glue/cb:can we infer"]
    found = run_job(tmp_path, suites=both)
    assert results.missing_tasks(found) == ["chosen super_glue/wic: cannot read wic"]
    with pytest.raises(UserError, match="cannot read wic"):
        run_job(tmp_path / "none", suites=both[:1])
    monkeypatch.setattr(planning, "load_numbered", planning_load)
    scorer = HashScorer()
    found = run_job(tmp_path, suites=both, scorer=scorer)
    assert found["not_run"] == [] and scorer.pairs == 2 * 12 * 10


def test_a_template_that_a_late_row_breaks_is_named(tmp_path, run_job, monkeypatch):
    """A row beyond those that planning looks at lacks a column that one template reads."""
    rows = [(n, dict(row)) for n, row in planning_load("super_glue/rte", "validation")]
    del rows[40][1]["hypothesis"]
    monkeypatch.setattr(planning, "load_numbered", lambda *names: rows)
    monkeypatch.setattr(get_dataset("super_glue/rte").__class__, "check_row", lambda *_: None)
    with pytest.raises(UserError, match="hypothesis"):
        results_of = run_job(tmp_path, suites=[RTE], max_examples=None, pairs_together=16)
        raise UserError(results_of["not_run"][0]["why"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["results"] == [] and found["not_run"][0]["whole_task"]


def test_length_normalized_ranking_divides_by_target_tokens(tmp_path, run_job):
    class PerToken(HashScorer):
        """-1 for each token, and a little for the length, so that the longest choice wins per token."""

        def score(self, pairs, progress=None):
            return np.array(
                [-len(targets) + 0.01 * len(targets) ** 2 for _, targets in pairs], np.float32
            )

    run_job(tmp_path, scorer=PerToken(), label="sum")
    normalized = HashScorer()
    run_job(tmp_path, scorer=normalized, label="mean", length_normalize=True)
    assert normalized.pairs == 0, "the scores are the same, only the ranking differs"
    found = {name: [] for name in ("sum", "mean")}
    for line in results.predictions_of(tmp_path):
        found[line.method].append(line)
    tokens = {}
    for line in lines(tmp_path):
        if "choice" in line:
            tokens.setdefault((line["unit"], line["example"]), []).append(line["tokens"])
    plan = json.loads((tmp_path / "plan.json").read_text())["units"]
    keys_of = {(u["template"], u["label_set"], u["task"]): u["key"] for u in plan}
    differing = 0
    for one, two in zip(found["sum"], found["mean"], strict=True):
        key = keys_of[two.template, two.label_set, two.task]
        for example, by_sum, by_mean in zip(
            one.examples, one.predicted, two.predicted, strict=True
        ):
            lengths = tokens[key, example]
            assert lengths[by_sum] == min(lengths) and lengths[by_mean] == max(lengths)
            differing += by_sum != by_mean
    assert differing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fliped"}, "unknown method 'fliped'; nearest: 'flipped'"),
        ({"suites": ["nlp15"]}, "unknown suite or dataset 'nlp15'; nearest: 'nlp14'"),
        ({"suites": ["imbd"]}, "unknown suite or dataset 'imbd'; nearest: 'imdb'"),
        ({"suites": ["super_glue/rte:does it folow that"]}, "template of 'super_glue/rte' .*'does it follow that'"),
        ({"suites": []}, "expected a list"),
        ({"templates": "some"}, "TEMPLATES: expected 'original' or 'all', got 'some'"),
        ({"lengths": {"inputs": 64}}, "lengths"),
        ({"max_examples": 0}, "at least 1"),
        ({"method": "flipped", "length_normalize": True}, "length_normalize"),
        ({"methods": ["direct", "direct"]}, "labels: expected a name of its own"),
        ({"methods": []}, "at least one checkpoint"),
        ({"params": None}, "checkpoint"),
        ({"params": None, "checkpoint": "nowhere/at/all"}, "no checkpoint at .*nowhere/at/all"),
        ({"vocab_path": "nowhere.model"}, "nowhere.model"),
        ({"splits": {"imdb": "tset"}}, "unknown split of 'imdb' 'tset'; nearest: 'test'"),
        ({"splits": {"piqa": "test"}}, "unknown dataset in splits"),
        ({"exclude_datasets": ["imbd"]}, "nearest: 'imdb'"),
        ({"label_sets": "nowhere.yaml"}, "cannot read label sets"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line_and_nothing_is_written(tmp_path, run_job, change, message):
    with pytest.raises(UserError, match=message) as error:
        run_job(tmp_path / "out", **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_label_sets_of_ones_own(tmp_path, run_job):
    file = tmp_path / "sets.yaml"
    entry = (
        '- {dataset: super_glue/rte, template: MNLI crowdsource, words: ["Yes", "No"], sets: {%s}}'
    )
    file.write_text(entry % 'tea_coffee: ["Tea", "Coffee"]')
    found = run_job(tmp_path / "out", label_sets=str(file))
    assert {row["label_set"] for row in found["results"] if row["template"]} == {
        "original",
        "tea_coffee",
    }
    file.write_text(entry % 'tea: ["Tea"]')
    with pytest.raises(UserError, match=r"set 'tea': expected 2 words, got 1: \['Tea'\]"):
        run_job(tmp_path / "other", label_sets=str(file))


class FullDisk(HashScorer):
    """Fills the disk in its third call."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.monkeypatch = monkeypatch

    def score(self, pairs, progress=None):
        if len(self.calls) == 2:
            self.monkeypatch.setattr(os, "fsync", full)
        return super().score(pairs, progress)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path, run_job, monkeypatch):
    run_job(tmp_path / "whole", pairs_together=100)
    with pytest.raises(
        UserError, match="cannot write .*scores-00000.jsonl: No space left"
    ) as error:
        run_job(tmp_path / "full", pairs_together=100, scorer=FullDisk(monkeypatch))
    assert "\n" not in str(error.value)
    kept = shards.done(tmp_path / "full")
    assert kept.ended or kept.examples
    with pytest.raises(UserError, match="cannot write .*: No space left"):
        run_job(tmp_path / "full", pairs_together=100)
    monkeypatch.undo()
    rest = HashScorer()
    run_job(tmp_path / "full", pairs_together=100, scorer=rest)
    assert made(tmp_path / "full") == made(tmp_path / "whole")
    everything = sum(sum(line.choices) for line in results.predictions_of(tmp_path / "full"))
    assert rest.pairs < everything


def test_scores_that_are_no_numbers_stop_the_job(tmp_path, run_job):
    class Broken(HashScorer):
        def score(self, pairs, progress=None):
            return np.full(len(pairs), np.nan)

    with pytest.raises(UserError, match="direct: the model gives .*nan.* expected numbers"):
        run_job(tmp_path, suites=[RTE], scorer=Broken())
    assert not (tmp_path / "results.json").exists()


def test_the_plan_is_told_before_anything_is_written(tmp_path, run_job):
    told = []
    found = run_job(
        tmp_path / "out", suites=["super_glue/rte"], tell_plan=told.append, plan_only=True
    )
    assert found == {} and not (tmp_path / "out").exists()
    [one] = told
    total = one.plan.total()
    assert (total.templates, total.examples, total.choices, total.exact) == (10, 120, 240, True)
    run_job(tmp_path / "out", suites=["super_glue/rte"])
    pairs = {
        (line["unit"], line["example"], line["choice"])
        for line in lines(tmp_path / "out")
        if "choice" in line
    }
    assert len(pairs) == total.choices
    run_job(tmp_path / "out", suites=["super_glue/rte"], tell_plan=told.append)
    assert told[1].waiting.choices == 0 and told[1].plan.total().choices == 240
    run_job(
        tmp_path / "all", suites=[RTE], max_examples=None, tell_plan=told.append, plan_only=True
    )
    assert not told[2].plan.total().exact
    rows = len(planning_load("super_glue/rte", "validation"))
    assert told[2].plan.total().examples == pytest.approx(rows, rel=0.2)


def test_a_second_job_in_the_folder_is_refused_and_may_look_at_the_plan(tmp_path, run_job):
    with locks.hold(tmp_path / "out", "output_dir"):
        with pytest.raises(UserError, match="output_dir .* is in use by"):
            run_job(tmp_path / "out", suites=[RTE])
        told: list[object] = []
        assert run_job(tmp_path / "out", suites=[RTE], tell_plan=told.append, plan_only=True) == {}
        assert len(told) == 1
    assert not (tmp_path / "out").exists()


def test_a_job_whose_folder_was_taken_over_writes_no_more(tmp_path, run_job, monkeypatch):
    def lost(self: locks.Lock) -> None:
        raise UserError("now belongs to another process")

    monkeypatch.setattr(locks.Lock, "check", lost)
    with pytest.raises(UserError, match="now belongs to another process"):
        run_job(tmp_path / "out", suites=[RTE])
    assert not list((tmp_path / "out").glob("scores/*"))


def test_the_time_left_is_told(tmp_path, run_job):
    told: list[str] = []
    run_job(tmp_path, pairs_together=100, announce=told.append)
    assert all(
        re.match(
            r"\[ *\d+%(, \d+ s left)?\] direct: labels \w+: \d templates with 6 label sets, ", line
        )
        for line in told
    )
    assert told[-1].startswith("[100%") and "s left" in told[1]


def test_tasks_of_a_split_stand_together():
    tasks = planning.select_tasks(Request(("nlp14", "labels", "seen")))
    places = [(task.suite, task.dataset, task.split) for task in tasks]
    changes = sum(one != other for one, other in zip(places, places[1:], strict=False))
    assert changes == len(set(places)) - 1
    assert {task.task for task in tasks if task.suite == "nlp14"} == set(suites.NLP14)


def test_a_dataset_may_be_named_instead_of_a_suite():
    both = planning.select_tasks(Request(("super_glue/rte", RTE)))
    assert len(both) == 10 and {task.split for task in both} == {"validation"}
    assert {task.task for task in both} == {"super_glue/rte"}
    [one] = planning.select_tasks(Request((RTE,)))
    assert (one.suite, one.template) == ("chosen", "MNLI crowdsource")
    assert {t.split for t in planning.select_tasks(Request(("imdb",)))} == {"test"}


def test_seen_suite_reads_rows_that_training_does_not():
    tasks = suites.seen("all")
    assert {task.dataset for task in tasks} == set(TRAINING) - {"app_reviews"}
    assert {task.split for task in tasks} == {"validation", "test"}
    assert all(
        task.split == "validation"
        for task in tasks
        if "validation" in get_dataset(task.dataset).splits
    )
    assert len(tasks) == 131  # 132 templates train FLIPPED; app_reviews has one of them
    assert {task.dataset for task in suites.seen()} == {task.dataset for task in tasks}
    with pytest.raises(UserError, match="unknown templates 'some'"):
        suites.seen("some")


def test_fingerprint_sees_values_names_shapes_and_types():
    base = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.float32(1)}}
    same = {"b": {"c": np.float32(1)}, "a": np.zeros((2, 3), np.float32)}
    assert keys.fingerprint(base) == keys.fingerprint(same)
    others = [
        base | {"a": np.ones((2, 3), np.float32)},
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"a": np.zeros((2, 3), np.int32)},
        {"d": base["a"], "b": base["b"]},
    ]
    assert len({keys.fingerprint(each) for each in [base, *others]}) == 5


def test_small_splits_share_a_chunk_and_large_ones_are_cut(tmp_path, run_job):
    scorer = HashScorer()
    run_job(tmp_path / "few", scorer=scorer, suites=["labels"], max_examples=2)
    assert len(scorer.calls) == 1
    scorer = HashScorer()
    run_job(tmp_path / "many", scorer=scorer, suites=[RTE], max_examples=None, pairs_together=64)
    assert {len(call) for call in scorer.calls[:-1]} == {2 * scoring.ROWS_A_BLOCK * 2}
