"""The YAML reader: other people's documents, and templates whose fields are not what they should be."""

import time

import pytest

from flipped_core.errors import UserError
from flipped_tasks import safe_yaml
from flipped_tasks.promptsource import parse_templates

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text, told",
    [
        ("templates: " + "[" * 30_000, "nested more than 50 deep"),
        ("{" * 30_000, "nested more than 50 deep"),
        ("- " * 30_000, "nested more than 50 deep"),
        ("".join("  " * n + "a:\n" for n in range(2000)), "nested more than 50 deep"),
        (LAUGHS, "at most 200,000 values"),
        (MERGES, "at most 200,000 values"),
        ("a: &a [*a]", "the alias \\*a stands for no value"),
        ("x: *nothing", "the alias \\*nothing stands for no value"),
        ("[" + "1," * 300_000 + "]", "at most 200,000 values"),
        ("x" * (5 << 20), "at most 4,194,304 bytes"),
        ("a: 1\nb: 2\na: 3", "'a' occurs twice in one mapping"),
        ("? [a]\n: 1", "."),
        ("a: !!python/object/apply:os.system [ls]", "."),
        ("a: 2001-99-99", "."),
        ("a: " + "9" * 5000, "."),
        ("a: !!int x", "."),
        ("<<: [a]", "."),
        ("a: \x01", "."),
        ("a: \ud83d", "."),
        ("a: 1\n---\nb: 2", "."),
        ("a: [", "."),
    ],
)
def test_a_document_that_is_refused(text, told):
    began = time.process_time()
    with pytest.raises(ValueError, match=told) as found:
        safe_yaml.load(text.encode("utf-8", "surrogatepass"))
    assert "\n" not in str(found.value)
    assert time.process_time() - began < 5


def test_aliases_and_merges_within_the_limits():
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert safe_yaml.load(text.encode()) == {
        "a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]
    }  # fmt: skip


GOOD = {"name": "a", "answer_choices": "no ||| yes", "jinja": "'{{x}} ||| {{y}}'"}


def document(**fields):
    entry = ", ".join(f"{key}: {value}" for key, value in {**GOOD, **fields}.items())
    return f"templates: {{k: !Template {{{entry}}}}}"


@pytest.mark.parametrize(
    "text, told",
    [
        (document(answer_choices="true"), "template 'a' of d: answer_choices: .*got True"),
        (document(answer_choices="[no, yes]"), r"template 'a' of d: answer_choices: .*\[False, T"),
        (document(answer_choices=3), "template 'a' of d: answer_choices: expected a text"),
        (document(name=1), "template 'k' of d: name: expected a text, got 1"),
        (document(name="null"), "template 'k' of d: name: expected a text, got None"),
        (document(jinja="null"), "template 'a' of d: jinja: expected a text, got None"),
        (document(metadata=5), "template 'a' of d: metadata: expected a mapping, got 5"),
        (document(metadata="{metrics: Accuracy}"), "template 'a' of d: metrics: expected a list"),
        (document(metadata="{original_task: 'no'}"), "original_task: expected true or false"),
        (document(reference="[x]"), "template 'a' of d: reference: expected a text"),
        ("templates: {k: null}", "template 'k' of d: expected promptsource's fields, got None"),
        ("templates: [1]", "templates of 'd': expected promptsource's fields"),
        ("", "templates of 'd': expected promptsource's fields"),
        ("5", "templates of 'd': expected promptsource's fields"),
        (
            "templates: {k: !Template {name: s, jinja: a}, l: !Template {name: s, jinja: b}}",
            "template 's' of d: expected each name once, got it twice",
        ),
        (
            "templates: {k: !Template {name: s}, k: !Template {name: t}}",
            "'k' occurs twice in one mapping",
        ),
    ],
)
def test_a_template_with_another_field_than_expected(text, told):
    with pytest.raises(UserError, match=told):
        parse_templates(text, "d")
