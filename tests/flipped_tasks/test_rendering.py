"""Rendering: draws, drops, missing columns, the sandbox and the safe loader."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from flipped_core.errors import UserError
from flipped_tasks import promptsource
from flipped_tasks.promptsource import (
    TemplateSpec,
    load_template,
    load_templates,
    parse_templates,
)
from flipped_tasks.rendering import (
    CompiledTemplate,
    Dropped,
    Rendered,
    compile_template,
    template_rng,
)

SCIQ = {
    "question": "Q",
    "support": "S",
    "distractor1": "d1",
    "distractor2": "d2",
    "distractor3": "d3",
    "correct_answer": "right",
}


def made(jinja: str, choices: str | None = "yes ||| no") -> CompiledTemplate:
    return CompiledTemplate(TemplateSpec("made/up", "t", jinja, choices, True, None, (), ""))


def render(jinja: str, row: dict[str, Any], choices: str | None = "yes ||| no") -> Any:
    return made(jinja, choices).render(row, random.Random(0))


def test_choice_draws_anew_for_each_render_and_follows_the_seed() -> None:
    """Jinja folds `[..] | choice` at compile time where the filter does not ask for the context."""
    compiled = made("{% set p = ['a', 'b', 'c', 'd'] | choice %}{{ p }} ||| yes")
    rng = random.Random(0)
    drawn = [compiled.render({}, rng).prompt for _ in range(200)]
    assert set(drawn) == {"a", "b", "c", "d"}
    again = random.Random(0)
    assert drawn == [again.choice("abcd") for _ in range(200)]


def test_prompt_and_target_come_from_one_draw() -> None:
    compiled = compile_template(
        load_template("social_i_qa", "Check if a random answer is valid or not")
    )
    row = {"context": "C", "question": "Q", "answerA": "a1", "answerB": "b1", "answerC": "c1"}
    targets = Counter()
    for seed in range(40):
        rendered = compiled.render({**row, "label": "1\n"}, random.Random(seed))
        assert rendered.target == ("Yes" if '"a1"' in rendered.prompt else "No")
        targets[rendered.target] += 1
    assert len(targets) == 2


def test_jinjas_own_random_filter_is_seeded_too() -> None:
    compiled = made("{{ range(1000) | random }} ||| yes")
    assert len({compiled.render({}, random.Random(5)).prompt for _ in range(5)}) == 1
    assert render("a{{ [] | random }} ||| yes", {}).prompt == "a"


def test_sciq_drops_the_order_that_misses_the_correct_option() -> None:
    """One of its 24 orders names an option twice; the prompt then lacks the correct one."""
    compiled = compile_template(load_template("sciq", "Multiple Choice"))
    rng = random.Random(0)
    prompts = [compiled.render(SCIQ, rng) for _ in range(480)]
    missing = [one for one in prompts if isinstance(one, Dropped)]
    assert {one.reason for one in missing} == {"correct_not_shown"}
    assert 5 <= len(missing) <= 40


def test_template_rng_is_the_same_in_another_process() -> None:
    code = (
        "from flipped_tasks.rendering import template_rng;"
        "print(template_rng(3, 'a/b', 'row 7').random())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert float(printed) == template_rng(3, "a/b", "row 7").random()
    draws = {
        template_rng(seed, template, example).random()
        for seed in (0, 1)
        for template in ("a", "b")
        for example in (0, 1, "01")
    }
    assert len(draws) == 12


@pytest.mark.parametrize(
    ("jinja", "row", "reason"),
    [
        (
            "{% if q == 'cause' %}{{ x }} ||| yes{% endif %}",
            {"q": "effect", "x": "a"},
            "not_two_parts",
        ),
        ("{{ x }} ||| yes ||| no", {"x": "a"}, "not_two_parts"),
        ("{{ x }} ||| yes", {"x": " \n"}, "empty_prompt"),
        (
            "Say. ||| {% if label != -1 %}{{ answer_choices[label] }}{% endif %}",
            {"label": -1},
            "empty_target",
        ),
        ("Say. ||| {{ {'a': 'yes'}[x] }}", {"x": None}, "empty_target"),
        ("Say. ||| {{ x }}", {"x": "perhaps"}, "target_not_in_choices"),
        ("Say {{ x.lower() }}. ||| yes", {"x": None}, "render_error"),
        ("Say. ||| {{ answer_choices[['A', 'B'].index(x)] }}", {"x": ""}, "render_error"),
    ],
)
def test_rows_without_use_are_dropped_with_a_reason(jinja: str, row: dict, reason: str) -> None:
    assert render(jinja, row) == Dropped(reason)


def test_open_templates_have_no_choices() -> None:
    assert render("Say {{ x }} ||| {{ x }}", {"x": "a"}, None) == Dropped("no_choices")


def test_an_option_beyond_promptsources_truncation_is_dropped() -> None:
    """The target is cut to 2,048 characters, the option is not: no choice would be the right one."""
    row = {"a": "long " * 500, "b": "short"}
    jinja = "Pick. ||| {{ answer_choices[%d] }}"
    choices = "{{ a }} ||| {{ b }}"
    assert render(jinja % 0, row, choices) == Dropped("target_not_in_choices")
    assert render(jinja % 1, row, choices).correct == 1


def test_truncation_begins_where_promptsources_does() -> None:
    """Jinja's `truncate(2048)` lets five characters more pass."""
    assert render("{{ x }} ||| yes", {"x": "o" * 2053}).prompt == "o" * 2053
    assert render("{{ x }} ||| yes", {"x": "o" * 2054}).prompt == "o" * 2045 + "..."


def test_pipes_and_braces_of_an_example_stay_text() -> None:
    rendered = render("Say {{ x }} ||| yes", {"x": "a ||| {{ 7 * 7 }} {% if %} |||"})
    assert rendered.prompt == "Say a ||| {{ 7 * 7 }} {% if %} |||"
    assert [segment.kind for segment in rendered.segments] == ["instruction", "instance"]


def test_none_renders_as_promptsource_does() -> None:
    assert render("Say {{ x }} ||| yes", {"x": None}).prompt == "Say None"


def test_a_missing_column_is_named_with_what_is_expected_and_what_is_near() -> None:
    with pytest.raises(UserError) as error:
        render("{{ question }} {{ x }} ||| yes", {"Questions": "a", "x": "b"})
    message = str(error.value)
    assert "template 't' of made/up" in message and "no column 'question'" in message
    assert "expected columns: question, x" in message and "'Questions'" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no column 'c'"):
        render("{{ x }} ||| yes", {"x": "b"}, "{{ c }}")
    with pytest.raises(UserError, match="no column 'answer_choice'; .*nearest: 'answer_choices'"):
        render("{{ x }} ||| {{ answer_choice[0] }}", {"x": "b"})
    with pytest.raises(UserError, match="reserved column"):
        render("{{ x }} ||| yes", {"x": "b", "answer_choices": []})


def test_the_sandbox_keeps_templates_from_python_and_from_changing_rows() -> None:
    row = {"x": "a", "many": ["b"]}
    for attack in (
        "{{ x.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ many.append('c') }}",
        "{{ '%s'.format.__globals__ }}",
        "{{ '{0.__class__}'.format(x) }}",
    ):
        try:
            rendered = render(attack + "Say. ||| yes", row)
        except UserError as error:
            assert "refused by the sandbox" in str(error)
        else:
            assert rendered.prompt == "Say."  # an undefined value, and not what was asked for
    with pytest.raises(UserError, match="refused by the sandbox"):
        render("{{ many.append('c') }}Say. ||| yes", row)
    assert row == {"x": "a", "many": ["b"]}


def test_invalid_templates_are_refused_by_name_and_line() -> None:
    for jinja in ("a\n{{ x | }} ||| yes", "a\n{{ x | no_such_filter }} ||| yes"):
        with pytest.raises(UserError, match="template 't' of made/up, line 2"):
            made(jinja)


def test_the_loader_refuses_python_tags() -> None:
    text = "dataset: d\ntemplates:\n  k: !!python/object/apply:os.getcwd []\n"
    with pytest.raises(UserError, match="safe YAML.*python/object/apply"):
        parse_templates(text, "d")
    with pytest.raises(UserError, match="promptsource's fields"):
        parse_templates("dataset: d\ntemplates:\n  k: !Template\n    name: n\n", "d")


def test_templates_load_sorted_by_name_and_unknown_names_are_helped() -> None:
    templates = load_templates("super_glue/rte")
    assert len(templates) == 10 and list(templates) == sorted(templates)
    with pytest.raises(UserError, match="nearest: .*'super_glue/rte'"):
        load_templates("super_glue/rtee")
    with pytest.raises(UserError, match="unknown dataset"):
        load_templates("../templates/imdb")
    with pytest.raises(UserError, match="nearest: 'guaranteed true'"):
        load_template("super_glue/rte", "guaranteed truth")


def test_without_promptsource_the_error_says_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(promptsource.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps --ignore-requires-python"):
        promptsource.templates_dir()


def test_promptsource_itself_is_never_imported() -> None:
    code = (
        "import sys; from flipped_tasks import promptsource, rendering;"
        "promptsource.load_templates('imdb'); print('promptsource' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "False", printed.stderr


def test_choices_fixed_and_columns() -> None:
    assert made("{{ x }} ||| yes").choices_fixed
    from_row = made("{{ x }} {{ answer_choices[0] }} ||| yes", "{{ y }} ||| no")
    assert not from_row.choices_fixed and from_row.columns == ("x", "y")
    assert not made("{{ x }} ||| yes", None).choices_fixed
    assert isinstance(render("{{ x }} ||| yes", {"x": "a", "unused": object()}), Rendered)
