"""The job: what a restart scores, what is refused, and a real model through to the results."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from flipped_errors import UserError
from flipped_eval import jobs, planning, results
from flipped_tasks.datasets import get_dataset
from mixtures import suites
from mixtures.catalog import TRAINING

from .conftest import HashScorer


class Killed(BaseException):
    """Stands for the signal that ends a job."""


class Dying(HashScorer):
    """Dies in the call after `lives` calls."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def score(self, pairs, progress=None):
        if len(self.calls) == self.lives:
            raise Killed
        return super().score(pairs, progress)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((folder / "predictions").rglob("*.json"))


def test_a_killed_job_scores_only_the_rest_and_ends_with_the_same_bytes(tmp_path, run_job):
    whole = HashScorer()
    run_job(tmp_path / "whole", scorer=whole, pairs_together=100)
    with pytest.raises(Killed):
        run_job(tmp_path / "killed", scorer=Dying(4), pairs_together=100)
    done = files(tmp_path / "killed")
    assert 0 < len(done) < len(files(tmp_path / "whole"))
    assert not (tmp_path / "killed" / "results.json").exists()
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    before = {path: path.stat().st_mtime_ns for path in done}

    rest = HashScorer()
    run_job(tmp_path / "killed", scorer=rest, pairs_together=100)
    assert rest.calls == whole.calls[4:]
    assert {path: path.stat().st_mtime_ns for path in done} == before
    one, other = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "killed"))
    assert one == other


def test_a_finished_job_scores_nothing(tmp_path, run_job):
    first = run_job(tmp_path)
    scorer = HashScorer()
    assert run_job(tmp_path, scorer=scorer) == first
    assert scorer.pairs == 0


def test_groups_do_not_change_results(tmp_path, run_job):
    run_job(tmp_path / "a", pairs_together=1)
    run_job(tmp_path / "b")
    one, other = ((tmp_path / name / "results.json").read_bytes() for name in "ab")
    assert one == other


@pytest.mark.parametrize(
    "change",
    [{"weights": 1}, {"seed": 1}, {"lengths": {"inputs": 64, "targets": 32}}, {"max_examples_per_task": 9},
     {"method": "flipped"}, {"input_eos": False}, {"label": "other"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path, run_job, change):
    run_job(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(UserError, match="another run"):
        run_job(tmp_path, **change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_other_rows_under_the_same_request_are_refused(tmp_path, run_job, monkeypatch):
    run_job(tmp_path)
    load = planning.load_numbered
    monkeypatch.setattr(planning, "load_numbered", lambda *names: load(*names)[::-1])
    with pytest.raises(UserError, match="holds predictions for other rows"):
        run_job(tmp_path)


def test_another_suite_is_added_to_the_same_folder(tmp_path, run_job):
    run_job(tmp_path, suites=["labels"])
    added = run_job(tmp_path, suites=["seen"])
    assert {row["suite"] for row in added["results"]} == {"labels", "seen"}


def test_predictions_hold_every_example(tmp_path, run_job):
    found = run_job(tmp_path)
    file = json.loads(files(tmp_path)[0].read_text())
    assert len(file["examples"]) == 12
    for example in file["examples"]:
        assert len(example["logprobs"]) == len(example["choices"])
        assert example["predicted"] == int(np.argmax(example["logprobs"]))
    assert {"weights", "rows", "template", "tokenizer", "lengths", "method"} <= set(file["key"])
    assert found["run"]["data"] == "embedded"


def test_examples_of_a_sample_are_the_same_under_all_templates(tmp_path, run_job):
    run_job(tmp_path, suites=["nlp14"], max_examples_per_task=5,
            exclude_datasets=[name for name, _ in suites.NLP14.values() if name != "super_glue/rte"])  # fmt: skip
    ids = {
        tuple(example["id"] for example in json.loads(path.read_text())["examples"])
        for path in files(tmp_path)
    }
    assert len(files(tmp_path)) == 10 and len(ids) == 1
    assert ids != {("0", "1", "2", "3", "4")}


def test_length_normalized_ranking_divides_by_target_tokens(tmp_path, run_job):
    class PerToken(HashScorer):
        """-1 for each token, and a little for the length, so that the longest choice wins per token."""

        def score(self, pairs, progress=None):
            return np.array(
                [-len(targets) + 0.01 * len(targets) ** 2 for _, targets in pairs], np.float32
            )

    run_job(tmp_path / "sum", scorer=PerToken())
    run_job(tmp_path / "mean", scorer=PerToken(), length_normalize=True)
    for path, other in zip(files(tmp_path / "sum"), files(tmp_path / "mean"), strict=True):
        sums, means = (json.loads(each.read_text())["examples"] for each in (path, other))
        for one, two in zip(sums, means, strict=True):
            assert one["logprobs"] == two["logprobs"]
            assert one["predicted"] == int(np.argmax(one["logprobs"]))
            assert two["logprobs"][two["predicted"]] == min(two["logprobs"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fliped"}, "unknown method 'fliped'; nearest: 'flipped'"),
        ({"suites": ["nlp15"]}, "unknown suite 'nlp15'; nearest: 'nlp14'"),
        ({"suites": "nlp14"}, "expected a list"),
        ({"suites": []}, "expected a list"),
        ({"templates": "some"}, "unknown templates"),
        ({"lengths": {"inputs": 64}}, "lengths"),
        ({"max_examples_per_task": 0}, "at least 1"),
        ({"method": "flipped", "length_normalize": True}, "length_normalize"),
        ({"params": None}, "checkpoint"),
        ({"params": None, "checkpoint": "nowhere/at/all"}, "no checkpoint at .*nowhere/at/all"),
        ({"vocab_path": "nowhere.model"}, "vocab_path: cannot read nowhere.model"),
        ({"splits": {"imdb": "tset"}}, "unknown split of 'imdb' 'tset'; nearest: 'test'"),
        ({"splits": {"piqa": "test"}}, "unknown dataset in splits"),
        ({"exclude_datasets": ["imbd"]}, "nearest: 'imdb'"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(tmp_path, run_job, change, message):
    with pytest.raises(UserError, match=message) as error:
        run_job(tmp_path / "out", **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tasks_of_a_split_stand_together():
    tasks = planning.select_tasks(["nlp14", "labels", "seen"])
    places = [(task.dataset, task.split) for task in tasks]
    changes = sum(one != other for one, other in zip(places, places[1:], strict=False))
    assert changes == len(set(places)) - 1
    assert {task.task for task in tasks if task.suite == "nlp14"} == set(suites.NLP14)


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
    with pytest.raises(UserError, match="unknown templates"):
        suites.seen("some")


def test_fingerprint_sees_values_names_shapes_and_types():
    base = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.float32(1)}}
    same = {"b": {"c": np.float32(1)}, "a": np.zeros((2, 3), np.float32)}
    assert planning.fingerprint(base) == planning.fingerprint(same)
    others = [
        base | {"a": np.ones((2, 3), np.float32)},
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"a": np.zeros((2, 3), np.int32)},
        {"d": base["a"], "b": base["b"]},
    ]
    assert len({planning.fingerprint(each) for each in [base, *others]}) == 5


def test_a_real_model_from_its_checkpoint_to_results(tmp_path, small_vocab_path):
    import jax

    from flipped_tasks.tokens import Vocabulary
    from t5_engine import checkpoints, model
    from t5_engine.config import T5Config
    from t5_engine.scorer import Scorer

    size = Vocabulary.from_file(small_vocab_path).size
    config = T5Config(
        vocab_size=size,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    params = model.init_params(config, jax.random.key(0))
    saved = checkpoints.Checkpoints(tmp_path / "run")
    saved.save(3, params, {"count": np.zeros(())}, config, "none")
    saved.close()
    found = jobs.evaluate(
        method="flipped",
        suites=["labels"],
        output_dir=str(tmp_path / "out"),
        vocab_path=small_vocab_path,
        checkpoint=str(tmp_path / "run"),
        max_examples_per_task=3,
        lengths={"inputs": 128, "targets": 32},
        exclude_datasets=["imdb", "paws/labeled_final", "super_glue/cb"],
        scorer_options={"batch_size": 16},
        resamples=20,
    )
    assert found["run"]["label"] == "flipped" and found["run"]["model"]["emb_dim"] == 16
    written = [json.loads(path.read_text()) for path in files(tmp_path / "out")]
    file = next(file for file in written if file["label_set"] == "original")
    logprobs = [score for example in file["examples"] for score in example["logprobs"]]
    assert all(-1000 < score < 0 for score in logprobs)
    # The same pairs, one at a time.
    names = ("dataset", "template", "label_set")
    task = next(t for t in suites.labels() if all(getattr(t, name) == file[name] for name in names))
    alone = Scorer(config, params, batch_size=1)
    request = found["run"]
    [planned] = planning.make_plan([task], request, pathlib.Path("x"), None)
    [[(_, built)]] = jobs._groups([planned], Vocabulary.from_file(small_vocab_path), request, 1)
    expected = [float(alone.score([pair])[0]) for case in built.cases for pair in case.pairs]
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)
    assert results.results_of(tmp_path / "out") == json.loads(results.to_json(found))
