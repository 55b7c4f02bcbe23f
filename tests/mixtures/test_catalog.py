"""The catalog against the table of usable templates, and against real rows."""

import random

import pytest

from flipped_tasks import promptsource, sources
from flipped_tasks.datasets import get_dataset, template_names, usable_templates
from flipped_tasks.rendering import Dropped, compile_template
from mixtures import catalog

# Usable = answer choices, and the rendered target is always one of them (promptsource 0.2.3).
TRAINING = {
    "commonsense_qa": 3, "dream": 2, "quail": 13, "quartz": 8, "social_i_qa": 5, "wiqa": 3, "cosmos_qa": 12,
    "qasc": 8, "quarel": 5, "sciq": 5, "amazon_polarity": 9, "app_reviews": 2, "imdb": 10, "rotten_tomatoes": 10,
    "yelp_review_full": 7, "ag_news": 7, "dbpedia_14": 4, "glue/mrpc": 5, "glue/qqp": 6, "paws/labeled_final": 11,
}  # fmt: skip
EVALUATION = {
    "anli": 15, "super_glue/cb": 15, "super_glue/rte": 10, "super_glue/wsc.fixed": 10, "winogrande/winogrande_xl": 6,
    "super_glue/wic": 10, "super_glue/copa": 12, "hellaswag": 8, "story_cloze/2016": 6, "piqa": 7,
    "ai2_arc/ARC-Challenge": 5, "openbookqa/main": 7,
}  # fmt: skip
# Rows that a usable template rightly drops: why, and where.
DROPS = {
    ("wiqa", "empty_target"),
    ("super_glue/copa", "not_two_parts"),
    ("sciq", "target_not_in_choices"),
}


def test_the_table_of_usable_templates():
    assert {name: len(usable_templates(name)) for name in catalog.TRAINING} == TRAINING
    assert {name: len(usable_templates(name)) for name in catalog.EVALUATION} == EVALUATION


def test_what_each_method_trains_on():
    counts = {
        m: sum(len(usable_templates(d, m)) for d in catalog.TRAINING)
        for m in ("direct", "channel", "flipped")
    }
    assert counts == {"direct": 134, "channel": 134, "flipped": 132}


def test_t0s_evaluation_templates():
    assert sum(EVALUATION.values()) == 111
    assert sum(len(template_names(name, original_task=True)) for name in catalog.EVALUATION) == 103


def test_every_exception_names_a_template_and_a_reason():
    for name in (*catalog.TRAINING, *catalog.EVALUATION, *catalog.ALTERNATIVES.values()):
        spec = get_dataset(name)
        templates = promptsource.load_templates(name)
        for exceptions in (
            spec.unusable,
            spec.excluded_templates,
            spec.excluded_flipped,
            spec.notes,
        ):
            for template, reason in exceptions.items():
                assert template in templates and len(reason) > 20


def test_the_template_that_teaches_wrong_answers_is_kept_and_noted():
    assert "is_correct_2" in usable_templates("qasc", "flipped")
    assert "wrong answers" in get_dataset("qasc").notes["is_correct_2"]
    row = {
        "question": "What melts?", "combinedfact": "Ice melts.", "answerKey": "B",
        "choices": {"text": ["Sand", "Ice"], "label": ["A", "B"]},
    }  # fmt: skip
    rendered = compile_template(promptsource.load_template("qasc", "is_correct_2")).render(
        row, random.Random(0)
    )
    assert '"ice"' in rendered.prompt and rendered.target == "No"


def test_columns_are_nested_as_the_hub_has_them():
    assert catalog.columns("id n:int tags* choices{text* label*} meta{a{b:int}}") == {
        "id": "string", "n": "int", "tags": ["string"], "choices": {"text": ["string"], "label": ["string"]},
        "meta": {"a": {"b": "int"}},
    }  # fmt: skip


def test_label_columns_exist():
    for name in (*catalog.TRAINING, *catalog.EVALUATION):
        spec = get_dataset(name)
        assert spec.label_column in spec.columns
        assert spec.label_in is None or spec.label_in.split(".")[0] in spec.columns


@pytest.mark.parametrize(
    "name", [n for n in (*TRAINING, *EVALUATION, "cos_e/v1.11") if n != "story_cloze/2016"]
)
def test_usable_templates_hold_on_real_rows(name, real_rows_dir):
    """Every target of a usable template is one of its choices; the unusable ones miss them."""
    spec = get_dataset(name)
    split = sources.split_names(name, real_rows_dir)[-1]
    rows = sources.load_rows(name, split, real_rows_dir)[:60]
    assert all(spec.check_row(row, number) is None for number, row in enumerate(rows, start=1))
    for template in usable_templates(name):
        compiled = compile_template(promptsource.load_template(name, template))
        for row in rows:
            found = compiled.render(row, random.Random(0))
            assert not isinstance(found, Dropped) or (name, found.reason) in DROPS, (
                template,
                found,
            )


@pytest.mark.parametrize("name", ["commonsense_qa", "wiqa", "imdb"])
def test_unusable_templates_miss_their_choices(name, real_rows_dir):
    (template,) = get_dataset(name).unusable
    compiled = compile_template(promptsource.load_template(name, template))
    rows = sources.load_rows(name, "train", real_rows_dir)
    reasons = {getattr(compiled.render(row, random.Random(0)), "reason", None) for row in rows}
    assert "target_not_in_choices" in reasons
