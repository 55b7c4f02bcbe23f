"""From rows to pairs: what each method scores, what is dropped, how label words replace choices."""

from __future__ import annotations

import pytest

from flipped_core.errors import UserError
from flipped_eval.examples import build_cases
from flipped_tasks.methods import METHODS
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import CompiledTemplate, Dropped
from flipped_tasks.tokens import Vocabulary
from mixtures.suites import EvalTask

LENGTHS = {"inputs": 64, "targets": 32}
TASK = EvalTask("s", "t", "d", "validation", "judge")
ROWS = [
    (0, {"text": "anna likes the red ball", "label": 0}),
    (3, {"text": "tom is sad", "label": 1}),
]


def template(prompt: str = "Is it good? {{text}}", choices: str = "yes ||| no") -> CompiledTemplate:
    jinja = prompt + " ||| {{ answer_choices[label] }}"
    return CompiledTemplate(
        TemplateSpec(
            dataset="d", name="judge", jinja=jinja, answer_choices=choices, original_task=True,
            choices_in_prompt=False, metrics=("Accuracy",), reference="",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(small_vocab_path) -> Vocabulary:
    return Vocabulary.from_file(small_vocab_path)


def build(vocabulary, method="direct", rows=ROWS, task=TASK, compiled=None, **changes):
    options = {"lengths": LENGTHS, "seed": 0} | changes
    compiled = compiled or template()
    return build_cases(
        task, rows, method=method, template=compiled, vocabulary=vocabulary, **options
    )


def text(vocabulary, ids) -> str:
    return vocabulary.decode(ids)


def test_direct_scores_each_choice_under_the_same_input(vocabulary):
    case = build(vocabulary, "direct").cases[0]
    (inputs, yes), (same, no) = case.pairs
    assert inputs == same
    assert list(yes) == [*vocabulary.encode("yes"), vocabulary.eos]
    assert list(no) == [*vocabulary.encode("no"), vocabulary.eos]
    assert list(inputs) == [
        *vocabulary.encode("Is it good? anna likes the red ball"),
        vocabulary.eos,
    ]


def test_channel_scores_the_same_target_under_each_choice(vocabulary):
    case = build(vocabulary, "channel").cases[0]
    (yes, prompt), (no, same) = case.pairs
    assert prompt == same
    assert list(yes) == [*vocabulary.encode("yes"), vocabulary.eos]
    assert list(no) == [*vocabulary.encode("no"), vocabulary.eos]
    assert list(prompt) == [
        *vocabulary.encode("Is it good? anna likes the red ball"),
        vocabulary.eos,
    ]


def test_flipped_scores_the_instruction_under_each_choice(vocabulary):
    case = build(vocabulary, "flipped").cases[0]
    (yes, instruction), (no, same) = case.pairs
    assert instruction == same and yes != no
    expected = [vocabulary.sentinel(0), *vocabulary.encode("Is it good?"), vocabulary.eos]
    assert list(instruction) == expected
    assert vocabulary.sentinel(0) in yes


@pytest.mark.parametrize("method", METHODS)
def test_there_is_a_pair_for_each_choice_and_ids_are_places_in_the_split(vocabulary, method):
    built = build(vocabulary, method)
    assert [case.example for case in built.cases] == ["0", "3"]
    assert [case.correct for case in built.cases] == [0, 1]
    assert all(len(case.pairs) == len(case.choices) == 2 for case in built.cases)
    assert (built.rows, dict(built.dropped)) == (2, {})


def test_encoder_eos_is_a_setting(vocabulary):
    with_it, without = (
        build(vocabulary, input_eos=eos).cases[0].pairs[0][0] for eos in (True, False)
    )
    assert with_it == (*without, vocabulary.eos)


def test_label_words_replace_choices_by_index_and_leave_the_prompt(vocabulary):
    words = {"yes": "true", "no": "false"}
    task = EvalTask("labels", "t", "d", "validation", "judge", words, "true/false")
    plain, other = build(vocabulary).cases[1], build(vocabulary, task=task).cases[1]
    assert other.choices == ("true", "false") and other.correct == plain.correct == 1
    assert other.pairs[0][0] == plain.pairs[0][0]
    assert list(other.pairs[1][1]) == [*vocabulary.encode("false"), vocabulary.eos]


def test_label_words_must_cover_the_choices(vocabulary):
    task = EvalTask("labels", "t", "d", "validation", "judge", {"yes": "true"}, "half")
    with pytest.raises(UserError, match="no"):
        build(vocabulary, task=task)


def test_what_cannot_be_ranked_is_counted_by_reason(vocabulary):
    one_choice = build(vocabulary, compiled=template(choices="yes"), rows=ROWS[:1])
    assert (one_choice.cases, dict(one_choice.dropped)) == ([], {"one_choice": 1})
    no_instruction = build(vocabulary, "flipped", compiled=template(prompt="{{text}}"))
    assert dict(no_instruction.dropped) == {"empty_instruction": 2}
    unlabelled = build(
        vocabulary, check_row=lambda row, number: Dropped("unlabelled") if number == 4 else None
    )
    assert len(unlabelled.cases) == 1 and dict(unlabelled.dropped) == {"unlabelled": 1}


def test_choices_that_cannot_be_told_apart_are_counted(vocabulary):
    twice = build(vocabulary, compiled=template(choices="yes ||| no ||| yes"))
    assert (twice.duplicate_choices, twice.same_ids) == (2, 0)
    assert [case.correct for case in twice.cases] == [0, 1]
    unknown = build(vocabulary, compiled=template(choices="¬ ||| ¦"))
    assert (unknown.duplicate_choices, unknown.same_ids) == (0, 2)
    first, second = unknown.cases[0].pairs
    assert first == second
    plain = build(vocabulary)
    assert (plain.duplicate_choices, plain.same_ids) == (0, 0)


def test_no_more_rows_are_looked_at_than_are_needed(vocabulary):
    rows = [(0, {"text": "a", "label": -1}), *((n, {"text": "b", "label": 0}) for n in range(1, 9))]
    check = lambda row, number: Dropped("unlabelled") if row["label"] < 0 else None  # noqa: E731
    built = build(vocabulary, rows=rows, check_row=check, most=3)
    assert [case.example for case in built.cases] == ["1", "2", "3"]
    assert (built.rows, dict(built.dropped)) == (4, {"unlabelled": 1})


def test_cut_examples_are_counted(vocabulary):
    long = [(0, {"text": "word " * 200, "label": 0})]
    built = build(vocabulary, "channel", rows=long)
    assert (built.inputs_cut, built.targets_cut) == (0, 1)
    assert build(vocabulary, "direct", rows=long).inputs_cut == 1


def test_the_first_example_is_kept_as_text(vocabulary):
    shown = build(vocabulary, "flipped").shown
    assert shown.inputs == "input: <extra_id_0> anna likes the red ball\noutput: yes"
    assert shown.targets == "<extra_id_0> Is it good?"
