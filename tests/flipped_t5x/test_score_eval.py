"""score_eval tasks, packing and the stream of the bridge: what of them needs no T5X."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import seqio

from flipped_core.errors import UserError
from flipped_eval import planning
from flipped_t5x import data, score_eval
from flipped_t5x.converter import PairedFeatureConverter
from flipped_tasks import sources
from flipped_tasks.batches import batches
from flipped_tasks.features import Seq2SeqFeatureConverter
from mixtures.suites import EvalTask

LENGTHS = {"inputs": 96, "targets": 64}
DATASET, TEMPLATE = "super_glue/rte", "does it follow that"


@pytest.fixture
def settings(small_vocab_path: str) -> score_eval.Settings:
    return score_eval.Settings(None, small_vocab_path, tuple(LENGTHS.items()), True, 0)


def _register(name: str, vocab: str) -> str:
    return score_eval.register(name, None, vocab, LENGTHS)


@pytest.mark.parametrize("method", ["direct", "channel", "flipped"])
def test_examples_are_the_pairs_of_our_evaluation(
    method: str, small_vocab_path: str, settings: score_eval.Settings
) -> None:
    name = _register(f"{method}.super_glue_rte.does_it_follow_that_score_eval", small_vocab_path)
    task = seqio.TaskRegistry.get(name)
    assert "validation" in task.splits
    made = list(task.get_dataset(LENGTHS, "validation", shuffle=False).as_numpy_iterator())
    eval_task = EvalTask("nlp14", "rte", DATASET, "validation", TEMPLATE)
    cases = score_eval.cases(eval_task, method, settings)
    expected = [(c, n, pair) for c in cases for n, pair in enumerate(c.pairs)]
    assert len(made) == len(expected) > 20
    for example, (case, choice, (inputs, targets)) in zip(made, expected, strict=True):
        assert example["inputs"].tolist() == list(inputs)
        assert example["targets"].tolist() == list(targets)
        assert example["idx"].tolist() == [int(case.example), choice]
        assert bool(example["is_correct"]) == case.is_right(choice)


def test_names(small_vocab_path: str) -> None:
    whole = seqio.get_mixture_or_task(
        _register("flipped.super_glue_rte_score_eval", small_vocab_path)
    )
    assert len(whole.tasks) == 10
    suite = seqio.get_mixture_or_task(_register("flipped_nlp14_score_eval", small_vocab_path))
    assert len(suite.tasks) == 103 + 2 * 15  # each round of ANLI counts
    assert {tuple(task.splits) for task in suite.tasks} == {("validation",)}
    assert sum(".dev_r" in task.name for task in suite.tasks) == 45
    for wrong, expected in {
        "flipped_nlp15_score_eval": "nearest: 'nlp14'",
        "flipped.super_glue_rte": "expected a name such as",
        "flipped.super_glue_rtf_score_eval": "nearest: .*rte",
        "flipped.super_glue_rte.does_it_folow_that_score_eval": "does_it_follow_that",
    }.items():
        with pytest.raises(UserError, match=expected):
            _register(wrong, small_vocab_path)


def test_a_suite_without_a_dataset_and_with_fewer_examples(small_vocab_path: str) -> None:
    name = "direct_nlp14_score_eval"
    left_out = {"exclude_datasets": ("anli", "super_glue/rte")}
    score_eval.register(name, None, small_vocab_path, LENGTHS, max_examples=3, **left_out)
    tasks = seqio.get_mixture_or_task(name).tasks
    assert len(tasks) == 103 + 2 * 15 - 3 * 15 - 10
    assert not [task.name for task in tasks if "anli" in task.name or "rte" in task.name]
    chosen = seqio.TaskRegistry.get("direct.super_glue_wic.GPT_3_prompt.validation_score_eval")
    made = chosen.get_dataset(LENGTHS, "validation", shuffle=False).as_numpy_iterator()
    found = list(dict.fromkeys(int(example["idx"][0]) for example in made))

    request = planning.Request(("nlp14",), max_examples=3)
    rows = sources.load_numbered("super_glue/wic", "validation", None)
    drawn = planning.ordered_rows(rows, "super_glue/wic", "validation", request)
    assert found == [number for number, _ in drawn[:3]] and found != [0, 1, 2]
    for wrong, message in (
        ({"exclude_datasets": ("anly",)}, "nearest: 'anli'"),
        ({"max_examples": 0}, "max_examples: expected at least 1"),
        ({"split": "validatoin"}, "unknown split of .*nearest: 'validation'"),
    ):
        with pytest.raises(UserError, match=message):
            score_eval.register(name, None, small_vocab_path, LENGTHS, **wrong)


def test_metric_takes_the_best_choice_and_the_first_of_equals() -> None:
    targets = [(3, 0, False), (3, 1, True), (5, 0, True), (5, 1, False), (5, 2, False)]
    found = score_eval.rank_classification(targets, [-2.0, -1.0, -4.0, -4.0, -5.0])
    assert found == {"accuracy": 100.0, "examples": 2.0, "ties": 1.0}
    found = score_eval.rank_classification(targets, ([-1.0, -2.0, -4.0, -3.0, -5.0], {}))
    assert found["accuracy"] == 0.0
    example = {"idx": np.array([4, 1]), "is_correct": np.array(True)}
    assert score_eval.postprocess("text", example, is_target=True) == (4, 1, True)
    assert score_eval.postprocess("text", example, is_target=False) == "text"


def test_packing_is_refused_with_a_reason() -> None:
    with pytest.raises(UserError, match="input with the wrong choice has another length"):
        PairedFeatureConverter(pack=True, use_custom_packing_ops=False)


def test_a_mixture_without_wrong_choices_is_refused(small_vocab_path: str) -> None:
    name = data.mixture("direct.super_glue_rte", None, small_vocab_path)
    task = seqio.TaskRegistry.get(name)
    with pytest.raises(UserError, match="unlikelihood_weight: expected 0"):
        PairedFeatureConverter()(task.get_dataset(LENGTHS, "validation"), LENGTHS)


@dataclasses.dataclass
class Config:
    """The fields of T5X's DatasetConfig that `get_dataset` reads."""

    mixture_or_task_name: str
    seed: int | None = 3
    pack: bool = False
    split: str = "train"
    batch_size: int = 4
    shuffle: bool = True
    use_cached: bool = False
    use_custom_packing_ops: bool = False
    task_feature_lengths: dict[str, int] = dataclasses.field(default_factory=lambda: LENGTHS)


@pytest.mark.parametrize("method", ["direct", "flipped"])
@pytest.mark.parametrize("done", [0, 2])
def test_t5x_meets_the_batches_of_our_engine(
    method: str, done: int, small_vocab_path: str, tmp_path: pathlib.Path
) -> None:
    """From the start, and after a checkpoint in the run's folder."""
    if done:
        (tmp_path / f"checkpoint_{done}").mkdir()
        (tmp_path / f"checkpoint_{done + 5}.tmp").mkdir()  # not whole
    name = data.mixture(f"{method}_train", None, small_vocab_path)
    converter = PairedFeatureConverter if method == "flipped" else Seq2SeqFeatureConverter
    found = data.get_dataset(Config(name), 0, 1, converter, model_dir=str(tmp_path))
    ours = batches(name, LENGTHS, 4, 3, start_step=done)
    for theirs, _ in zip(found.as_numpy_iterator(), range(3), strict=False):
        mine = next(ours)
        for key, value in theirs.items():
            np.testing.assert_array_equal(value, mine[key], err_msg=key)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"microbatches": 3}, "microbatches: expected a divisor of the batch size 4, got 3"),
        ({"microbatches": 0}, "microbatches: expected a whole number of at least 1, got 0"),
        ({"steps": "many"}, "steps: expected a whole number of at least 1, got 'many'"),
    ],
)
def test_numbers_that_t5x_would_stumble_over_late(
    wrong: dict[str, object], message: str, small_vocab_path: str, tmp_path: pathlib.Path
) -> None:
    name = data.mixture("direct.super_glue_rte", None, small_vocab_path)
    with pytest.raises(UserError, match=message):
        data.get_dataset(
            Config(name), 0, 1, Seq2SeqFeatureConverter, model_dir=str(tmp_path), **wrong
        )


def test_a_stream_without_seed_is_refused(small_vocab_path: str, tmp_path: pathlib.Path) -> None:
    name = data.mixture("direct.super_glue_rte", None, small_vocab_path)
    with pytest.raises(UserError, match="seed: expected a number"):
        data.get_dataset(
            Config(name, seed=None), 0, 1, Seq2SeqFeatureConverter, model_dir=str(tmp_path)
        )


def test_seqios_own_converter_packs_direct(small_vocab_path: str, tmp_path: pathlib.Path) -> None:
    name = data.mixture("direct_train", None, small_vocab_path)
    found = data.get_dataset(
        Config(name, pack=True), 0, 1, seqio.EncDecFeatureConverter, model_dir=str(tmp_path)
    )
    batch = next(found.as_numpy_iterator())
    assert batch["encoder_segment_ids"].max() > 1
