"""The worked cases of the three methods, exact in every field."""

from __future__ import annotations

import json
import pathlib
import random

import pytest

from flipped_tasks.methods import Formatted, format_example, restore_prompt, to_text
from flipped_tasks.promptsource import load_template
from flipped_tasks.rendering import Dropped, Rendered, compile_template
from flipped_tasks.spans import spans

GIVEN = {"dataset", "template", "row_id", "row", "stress", "seed"}


@pytest.fixture(scope="module")
def cases(shared_dir: pathlib.Path) -> list[dict]:
    lines = (shared_dir / "gold" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _ours(case: dict) -> dict:
    """All fields that the case states and that are not given to us."""
    compiled = compile_template(load_template(case["dataset"], case["template"]))
    rendered = compiled.render(case["row"], random.Random(case["seed"]))
    assert isinstance(rendered, Rendered), rendered
    direct = format_example("direct", rendered, rendered.correct)
    channel = format_example("channel", rendered, rendered.correct)
    flipped = format_example("flipped", rendered, rendered.correct)
    assert isinstance(direct, Formatted) and isinstance(channel, Formatted)
    fields = {
        "original_task": compiled.spec.original_task,
        "answer_choices": list(rendered.choices),
        "answer_choices_fixed": compiled.choices_fixed,
        "correct": rendered.correct,
        "direct_input": to_text(direct.inputs),
        "direct_target": to_text(direct.targets),
        "instruction_spans": spans(rendered.segments, "instruction"),
        "instance_spans": spans(rendered.segments, "instance"),
        "channel_input": to_text(channel.inputs),
        "channel_target": to_text(channel.targets),
    }
    if flipped == Dropped("empty_instruction"):
        # Nothing can be learned from it: the case states an input without sentinels and no target.
        fields["flipped_input"] = f"input: {rendered.prompt}\noutput: {rendered.target}"
        fields["flipped_target"] = ""
        return fields
    assert isinstance(flipped, Formatted)
    assert restore_prompt(flipped) == rendered.prompt
    fields["flipped_input"] = to_text(flipped.inputs)
    fields["flipped_target"] = to_text(flipped.targets)
    return fields


def test_every_case_is_exact(cases: list[dict]) -> None:
    assert len(cases) == 150
    wrong = []
    for case in cases:
        expected = {field: value for field, value in case.items() if field not in GIVEN}
        got = _ours(case)
        assert got.keys() == expected.keys()
        wrong += [
            (case["dataset"], case["template"], case["row_id"], field, got[field], value)
            for field, value in expected.items()
            if got[field] != value
        ]
    assert not wrong, wrong[:3]


def test_the_cases_cover_random_draws_and_nasty_rows(cases: list[dict]) -> None:
    """Were the sample ever cut down, the exactness above would prove less than it seems to."""
    assert any(case["seed"] is not None for case in cases)
    assert {case["stress"] for case in cases} >= {
        "stress:whitespace",
        "stress:truncate",
        "stress:braces",
    }
