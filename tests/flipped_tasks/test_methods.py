"""The three methods as pieces and as text."""

from __future__ import annotations

import random

import pytest

from flipped_core.errors import UserError
from flipped_tasks.methods import (
    METHODS,
    Formatted,
    format_example,
    restore_prompt,
    to_text,
)
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import CompiledTemplate, Dropped, Rendered


def rendered(jinja: str, **row: object) -> Rendered:
    template = TemplateSpec(
        "made/up", "t", jinja + " ||| Positive", "Positive ||| Negative", True, None, (), ""
    )
    found = CompiledTemplate(template).render(row, random.Random(0))
    assert isinstance(found, Rendered), found
    return found


def formatted(method: str, example: Rendered, choice: int = 0) -> Formatted:
    found = format_example(method, example, choice)
    assert isinstance(found, Formatted), found
    return found


REVIEW = "Title: {{ title }}\nReview: {{ text }}"
ROW = {"title": "Best pan", "text": "this is the best cast iron skillet you will ever buy"}


def test_the_model_cards_own_example() -> None:
    example = rendered("Review: {{ text }} Is it good or bad?", text=ROW["text"])
    flipped = formatted("flipped", example)
    assert to_text(flipped.inputs) == (
        "input: <extra_id_0> this is the best cast iron skillet you will ever buy"
        " <extra_id_1>\noutput: Positive"
    )
    assert to_text(flipped.targets) == "<extra_id_0> Review: <extra_id_1> Is it good or bad?"


def test_direct_and_channel_swap_prompt_and_choice() -> None:
    example = rendered(REVIEW, **ROW)
    for choice, option in enumerate(("Positive", "Negative")):
        direct, channel = (
            formatted("direct", example, choice),
            formatted("channel", example, choice),
        )
        assert to_text(direct.inputs) == to_text(channel.targets) == example.prompt
        assert to_text(direct.targets) == to_text(channel.inputs) == option
    assert formatted("direct", example).input_kinds == (
        "instruction",
        "instance",
        "instruction",
        "instance",
    )


def test_a_wrong_choice_changes_the_flipped_input_only() -> None:
    example = rendered(REVIEW, **ROW)
    right, wrong = formatted("flipped", example, 0), formatted("flipped", example, 1)
    assert right.targets == wrong.targets
    assert right.inputs[:-1] == wrong.inputs[:-1]
    assert wrong.inputs[-1] == "\noutput: Negative"
    assert wrong.input_kinds[-1] == "output"


def test_kinds_run_parallel_and_whitespace_stays_in_the_input() -> None:
    flipped = formatted("flipped", rendered("  Read \n{{ a }}\t{{ b }}\n\n Why? ", a="A", b="B"))
    assert list(zip(flipped.inputs, flipped.input_kinds, strict=True)) == [
        ("input: ", "instruction"),
        (0, "sentinel"),
        (" \n", "instruction"),
        ("A", "instance"),
        ("\t", "instruction"),
        ("B", "instance"),
        ("\n\n ", "instruction"),
        (1, "sentinel"),
        ("\noutput: Positive", "output"),
    ]
    assert flipped.targets == (0, " Read ", 1, " Why?")


def test_a_literal_sentinel_of_an_example_stays_text() -> None:
    example = rendered("Say {{ a }} <extra_id_1> now", a="<extra_id_0> and <extra_id_7>")
    flipped = formatted("flipped", example)
    assert [piece for piece in flipped.inputs if isinstance(piece, int)] == [0, 1]
    assert "<extra_id_0> and <extra_id_7>" in flipped.inputs
    assert (
        restore_prompt(flipped)
        == example.prompt
        == "Say <extra_id_0> and <extra_id_7> <extra_id_1> now"
    )


def test_prompts_that_flipped_cannot_use_are_dropped() -> None:
    bare = rendered("{{ a }}\n{{ b }}", a="A", b="B")
    assert format_example("flipped", bare, 0) == Dropped("empty_instruction")
    assert isinstance(format_example("direct", bare, 0), Formatted)
    loop = "{% for m in many %}- {{ m }}\n{% endfor %}"
    for count, reason in ((100, None), (101, Dropped("too_many_spans"))):
        found = format_example("flipped", rendered(loop, many=["x"] * count), 0)
        assert isinstance(found, Formatted) if reason is None else found == reason


def test_unknown_methods_and_choices_are_refused() -> None:
    example = rendered(REVIEW, **ROW)
    with pytest.raises(UserError, match="unknown method 'fliped'; nearest: 'flipped'"):
        format_example("fliped", example, 0)
    for method in METHODS:
        for choice in (-1, 2):
            with pytest.raises(IndexError):
                format_example(method, example, choice)
