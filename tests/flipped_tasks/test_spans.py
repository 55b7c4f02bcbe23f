"""Instruction or instance: the rules one by one, and the laws on all templates and nasty rows."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flipped_core.errors import UserError
from flipped_tasks.methods import Formatted, format_example, restore_prompt
from flipped_tasks.promptsource import TemplateSpec, load_templates
from flipped_tasks.rendering import CompiledTemplate, Rendered, compile_template
from flipped_tasks.spans import Segment, spans

ROW = {"x": "XX", "y": "YY", "key": 1, "many": ["M1", "M2"], "empty": "", "blank": " \n"}
FIXED = "yes ||| no"
FROM_ROW = "{{ x }} ||| {{ y }}"


def render(prompt: str, choices: str = FIXED) -> Rendered:
    jinja = prompt + " ||| {{ answer_choices[0] }}"
    template = TemplateSpec("made/up", "t", jinja, choices, True, None, (), "")
    rendered = CompiledTemplate(template).render(ROW, random.Random(0))
    assert isinstance(rendered, Rendered), rendered
    assert "".join(segment.text for segment in rendered.segments) == rendered.prompt
    return rendered


@pytest.mark.parametrize(
    ("prompt", "choices", "instance"),
    [
        # An expression is instance when it depends on a column.
        ("Say {{ x }}!", FIXED, ["XX"]),
        ('Say {{ "equivalent" }} or {{ 7 }}!', FIXED, []),
        ("Say {{ x.lower() }} {{ many | length }} {{ x ~ '!' }}.", FIXED, ["xx", "2", "XX!"]),
        ("Say {{ 'a' if key == 1 else 'b' }}.", FIXED, ["a"]),
        # answer_choices is what its own expression is.
        ("Is it {{ answer_choices | join(' or ') }}?", FIXED, []),
        ("Is it {{ answer_choices | join(' or ') }}?", FROM_ROW, ["XX or YY"]),
        # Indexing is tainted by its base or its index.
        ("Is it {{ answer_choices[1] }}?", FIXED, []),
        ("Is it {{ answer_choices[key] }}?", FIXED, ["no"]),
        ("Is it {{ answer_choices[1] }}?", FROM_ROW, ["YY"]),
        ("Is it {{ {'a': 'b'}[x] }}{{ ['u', 'v'][key] }}?", FIXED, ["v"]),
        # set takes the taint of what it is bound to, also where branches differ.
        ("{% set a = x %}{% set b = 'c' %}Say {{ a }}, {{ b }}.", FIXED, ["XX"]),
        ("{% set x = 'c' %}Say {{ x }}.", FIXED, []),
        ("{% set a, b = x, 'c' %}Say {{ a }}, {{ b }}.", FIXED, ["XX"]),
        ("{% set a = 'c' %}{% if key == 1 %}{% set a = x %}{% endif %}Say {{ a }}.", FIXED, ["XX"]),
        ("{% set a = x %}{% if key == 2 %}{% set a = 'c' %}{% endif %}Say {{ a }}.", FIXED, ["XX"]),
        ("{% if key == 1 %}{% set a = 'c' %}{% endif %}Say {{ a }}.", FIXED, []),
        # What a loop's body sets ends with the turn.
        ("{% set b = 'c' %}{% for m in many %}{% set b = m %}{% endfor %}Say {{ b }}", FIXED, []),
        ("{% for m in many %}{% set b = m %}{% endfor %}{% set b = 'c' %}Say {{ b }}", FIXED, []),
        # A namespace's attribute counts as soon as anything taints it, also later in a loop.
        (
            "{% set n = namespace(v='c') %}{% for m in many %}Say {{ n.v }}. {% set n.v = m %}"
            "{% endfor %}",
            FIXED,
            ["c", "M1"],
        ),
        # for takes the taint of what it runs over; range() and loop are clean; literals stay clean.
        ("{% for m in many %}- {{ m }} {% endfor %}", FIXED, ["M1", "M2"]),
        ("{% for m in ['a', 'b'] %}- {{ m }} {% endfor %}", FIXED, []),
        (
            "{% for i in range(many | length) %}{{ i }}. {{ many[i] }} {% endfor %}",
            FIXED,
            ["M1", "M2"],
        ),
        ("{% for m in many %}{{ loop.index }} {{ loop.last }}) {% endfor %}", FIXED, []),
        ("{% for m in many %}{{ loop.index }}<{{ loop.nextitem }}> {% endfor %}", FIXED, ["M2"]),
        # zip() element by element.
        (
            "{% for l, m in zip(answer_choices, many) %}- {{ l }}: {{ m }} {% endfor %}",
            FIXED,
            ["M1", "M2"],
        ),
        (
            "{% for m, l in zip(many, ['a', 'b']) %}- {{ l }}: {{ m }} {% endfor %}",
            FIXED,
            ["M1", "M2"],
        ),
        ("{% set z = zip(many, 'ab') | list %}{% for m, l in z %}-{{ l }} {% endfor %}", FIXED, []),
        ("{% for p in zip('ab', many) %}- {{ p[0] }} {{ p[1] }} {% endfor %}", FIXED, ["M1", "M2"]),
        # One expression is one span; literal text inside of it is not the instruction's.
        ("List: {{ many | join('\n- ') }}.", FIXED, ["M1\n- M2"]),
        ("List: {{ '. '.join(['A', x]) }}.", FIXED, ["A. XX"]),
        ("{{ ['a', 'b'] | choice }} {{ many | choice }}.", FIXED, ["M2"]),
        # Literal text under a test of a column is instruction.
        ("{% if key == 1 %}One{% elif x %}Two{% else %}Three{% endif %} of {{ x }}", FIXED, ["XX"]),
        # Neighbours join; an author's whitespace parts them.
        ("Say {{ x }}{{ y }}, {{ x }} {{ y }}.", FIXED, ["XXYY", "XX", "YY"]),
    ],
)
def test_rules(prompt: str, choices: str, instance: list[str]) -> None:
    assert spans(render(prompt, choices).segments, "instance") == instance


def test_spans_are_maximal_and_boundary_whitespace_stays_outside() -> None:
    rendered = render(" Read: {{ x }}\n\n{{ y }} and {{ 'then' }} answer.{{ empty }} Now. ")
    assert rendered.segments == (
        Segment("Read: ", "instruction"),
        Segment("XX", "instance"),
        Segment("\n\n", "instruction"),
        Segment("YY", "instance"),
        Segment(" and then answer. Now.", "instruction"),
    )
    assert spans(rendered.segments, "instruction") == ["Read:", "and then answer. Now."]


def test_blank_instance_text_still_parts_two_instructions() -> None:
    rendered = render("Read{{ blank }}now.")
    assert spans(rendered.segments, "instruction") == ["Read", "now."]


def test_a_statement_without_a_rule_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match=r"line 2: statement 'Macro'"):
        render("Hi\n{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}")
    with pytest.raises(UserError, match="recursive"):
        render("{% for m in many recursive %}{{ m }}{% endfor %}")


NASTY = [
    "",
    "  ",
    "\n",
    "|||",
    "a ||| b",
    "|",
    "{{ x }}",
    "{% endif %}",
    "<extra_id_3>",
    "<extra_id_0> Yes",
    "o" * 2100,
    "long option " * 200,
    "\x85\x1c\u2028\xa0",
    "3ed2dface8203c4c9dfb1a5dc58e41e0",
    "input: x\noutput: Yes",
    "\ue000\ue001",
]


def _leaves(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_leaves(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _leaves(item, change) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def rows(shared_dir: pathlib.Path) -> dict[str, list[dict]]:
    """Hand-made rows of every dataset configuration of the catalog."""
    found: dict[str, list[dict]] = {}
    for line in (shared_dir / "gold" / "sample.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        found.setdefault(case["dataset"], []).append(case["row"])
    assert len(found) == 33
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip_on_all_datasets_and_nasty_rows(rows: dict[str, list[dict]], data: Any) -> None:
    """Spans put back in place of the sentinels give the prompt, whatever is in the row."""
    dataset = data.draw(st.sampled_from(sorted(rows)))
    row = data.draw(st.sampled_from(rows[dataset]))
    rnd = random.Random(data.draw(st.integers(0, 2**32)))
    text = data.draw(st.one_of(st.sampled_from(NASTY), st.text(max_size=20)))

    def change(value: str) -> str:
        cut = rnd.randint(0, len(value))
        edited = (value, value, value, text, text + value, value + text)
        return rnd.choice((*edited, value[:cut] + text + value[cut:]))

    changed = _leaves(row, change)
    if rnd.random() < 0.2:
        changed[rnd.choice(sorted(changed))] = None
    for name, template in load_templates(dataset).items():
        rendered = compile_template(template).render(changed, random.Random(rnd.randrange(100)))
        assert not isinstance(rendered, Rendered) or broken_laws(rendered) == [], (dataset, name)


def broken_laws(rendered: Rendered) -> list[str]:
    """The laws of a rendered example that this one breaks."""
    segments, prompt, choices = rendered.segments, rendered.prompt, rendered.choices
    laws = {
        "the segments are the prompt": "".join(segment.text for segment in segments) == prompt,
        "the prompt is stripped and not empty": prompt == prompt.strip() != "",
        "the target is the correct choice": rendered.target == choices[rendered.correct] != "",
        "the first of equal choices counts": rendered.correct == choices.index(rendered.target),
        "neighbours differ in kind": all(
            left.kind != right.kind for left, right in zip(segments, segments[1:], strict=False)
        ),
    }
    flipped = [format_example("flipped", rendered, choice) for choice in range(len(choices))]
    made = [
        (one, text)
        for one, text in zip(flipped, choices, strict=True)
        if isinstance(one, Formatted)
    ]
    laws |= {
        "spans in place of the sentinels are the prompt": all(
            restore_prompt(one) == prompt for one, _ in made
        ),
        "the input ends with the choice": all(
            one.inputs[-1] == f"\noutput: {text}" for one, text in made
        ),
    }
    return [law for law, holds in laws.items() if not holds]


def test_the_laws_can_be_broken() -> None:
    good = render("Say {{ x }} now.")
    assert broken_laws(good) == []
    twice = dataclasses.replace(good, segments=(*good.segments, Segment(".", "instruction")))
    assert len(broken_laws(twice)) == 3
    assert broken_laws(dataclasses.replace(good, choices=("no", "yes", "yes"), correct=2)) == [
        "the first of equal choices counts"
    ]


def test_duplicate_options_count_as_the_first_one() -> None:
    rendered = render("Say {{ x }}", "same ||| same ||| other")
    assert (rendered.correct, rendered.choices) == (0, ("same", "same", "other"))


def test_kinds_agree_with_where_characters_come_from(rows: dict[str, list[dict]]) -> None:
    """A second opinion that knows nothing of Jinja: spell rows in letters that no author used."""
    first = 0xE000

    def spell(value: str) -> str:
        return "".join(chr(first + ord(letter) % 0x1000) for letter in value)

    compared = 0
    for dataset, examples in rows.items():
        for template in load_templates(dataset).values():
            for row in examples:
                # A target that no longer depends on the row's labels lets every row through.
                jinja = template.jinja.split("|||")[0]
                closing = jinja.count("{% if") - jinja.count("{% endif")
                jinja += "{% endif %}" * closing + "||| {{ answer_choices[0] }}"
                choices = template.answer_choices or FIXED
                made = TemplateSpec(dataset, template.name, jinja, choices, True, None, (), "")
                row = {key: value for key, value in row.items() if value is not None}
                try:
                    rendered = compile_template(made).render(_leaves(row, spell), random.Random(0))
                except UserError:
                    continue
                if isinstance(rendered, Rendered):
                    compared += len(rendered.segments)
                    assert wrong_kinds(rendered, first) == [], (dataset, template.name)
    assert compared > 1_000


def wrong_kinds(rendered: Rendered, first: int) -> list[Segment]:
    """Segments that hold spelled letters and are no instance, or the other way round."""
    return [
        segment
        for segment in rendered.segments
        # app_reviews' star is a number and cannot be spelled.
        if segment.text.strip() and not segment.text.isdigit()
        if (segment.kind == "instance")
        != any(first <= ord(letter) < first + 0x1000 for letter in segment.text)
    ]
