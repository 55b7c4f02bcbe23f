"""Rows against the catalog, and which templates are used."""

import pytest

from flipped_core.errors import UserError
from flipped_tasks import datasets
from flipped_tasks.datasets import (
    DatasetSpec,
    check_template,
    get_dataset,
    slug,
    slugs,
    usable_templates,
)
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import Dropped, Rendered, compile_template, template_rng
from mixtures import catalog

QUESTION = DatasetSpec(
    name="quiz",
    hub_id="x/quiz",
    columns={
        "question": "string",
        "choices": {"text": ["string"], "label": ["string"]},
        "key": "string",
    },
    splits={"train": 2},
    label_column="key",
    label_in="choices.label",
    unlabelled=("",),
)


def row(**changes):
    return {
        "question": "q",
        "choices": {"text": ["a", "b"], "label": ["1", "2"]},
        "key": "1",
    } | changes


def test_a_good_row_passes_and_the_allowed_labels_are_those_of_the_row():
    assert QUESTION.check_row(row()) is None
    assert QUESTION.check_row(row(key="2\n")) is None


@pytest.mark.parametrize("key", ["", None, " "])
def test_a_row_without_a_label_is_dropped(key):
    assert QUESTION.check_row(row(key=key)).reason == "unlabelled"


def test_a_label_out_of_range_names_dataset_column_expected_got_and_row():
    with pytest.raises(
        UserError, match=r"'quiz', row 7: column 'key': expected one of '1', '2', got 'C'"
    ):
        QUESTION.check_row(row(key="C"), 7)


def test_a_number_is_not_its_text():
    with pytest.raises(UserError, match="expected one of '1', '2', got 1"):
        QUESTION.check_row(row(key=1))


@pytest.mark.parametrize(
    "bad, told",
    [
        (
            {"question": "q", "choices": {"text": [], "label": []}, "keys": "1"},
            "missing column 'key'.*'keys'",
        ),
        (row(choices={"texts": [], "label": []}), "missing column 'choices.text'.*'texts'"),
        (row(choices=["a", "b"]), "column 'choices': expected a dict of text, label, got list"),
    ],
)
def test_a_wrong_schema_names_the_column_and_what_is_near(bad, told):
    with pytest.raises(UserError, match=told):
        QUESTION.check_row(bad)


def test_unknown_names_are_told_with_their_nearest():
    with pytest.raises(UserError, match="'glue/mrpc'"):
        datasets.get_dataset("glue/mrcp")
    with pytest.raises(UserError, match="'flipped'"):
        usable_templates("glue/mrpc", "fliped")


@pytest.mark.parametrize(
    "dataset, template, method, why",
    [
        ("app_reviews", "convert_to_star_rating", "direct", "same token ids"),
        ("quail", "no_prompt_id", "flipped", "no instruction text"),
        ("commonsense_qa", "question_to_answer_index", "direct", "fifth option"),
        ("glue/mrpc", "generate_paraphrase", "direct", "no answer choices"),
    ],
)
def test_a_template_that_is_not_used_says_why(dataset, template, method, why):
    with pytest.raises(UserError, match=why):
        check_template(dataset, template, method)


def test_an_exclusion_from_flipped_does_not_touch_direct():
    assert check_template("quail", "no_prompt_id", "direct") == "no_prompt_id"


def test_slugs_are_unique_and_what_seqio_allows():
    for dataset in (*catalog.TRAINING, *catalog.EVALUATION):
        assert len(slugs(usable_templates(dataset))) == len(usable_templates(dataset))
    assert slug("can we infer…") == "can_we_infer"
    with pytest.raises(UserError, match="same slug"):
        slugs(["a b", "a-b"])


def test_a_label_with_a_line_break_is_the_label_without_it():
    """The hub once had social_i_qa's labels as "1\\n": valid; a template that looks up "1" itself drops the row."""
    spec = get_dataset("social_i_qa")
    given = {
        "context": "Lee won.",
        "question": "How would Lee feel?",
        "answerA": "glad",
        "answerB": "sad",
        "answerC": "cold",
        "label": "1\n",
    }
    assert spec.check_row(given) is None
    with pytest.raises(UserError, match="label"):
        spec.check_row({**given, "label": "4\n"})
    outcomes = []
    for name in usable_templates("social_i_qa"):
        template = compile_template(load_template("social_i_qa", name))
        plain, broken = (
            template.render({**given, "label": label}, template_rng(0, name, 0))
            for label in ("1", "1\n")
        )
        assert isinstance(plain, Rendered)
        assert broken in (plain, Dropped("empty_target"))
        outcomes.append(broken == plain)
    assert any(outcomes)
