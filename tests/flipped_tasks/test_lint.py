"""What lint finds, in templates made for it and in promptsource's."""

import pytest

from flipped_tasks.datasets import DatasetSpec, get_dataset
from flipped_tasks.lint import lint_template
from flipped_tasks.promptsource import TemplateSpec, load_template
from flipped_tasks.rendering import compile_template
from flipped_tasks.sources import load_rows
from flipped_tasks.tokens import Vocabulary
from mixtures import catalog  # noqa: F401

SPEC = DatasetSpec("mine", "", {"text": "string"}, {}, "label", (0, 1))
ROWS = [{"text": f"words {n}", "label": n % 2} for n in range(20)]


def lint(jinja, choices="no ||| yes", rows=ROWS, spec=SPEC, vocabulary=None):
    template = TemplateSpec("mine", "t", jinja, choices, True, None, (), "")
    return lint_template(spec, compile_template(template), rows, vocabulary)


def test_a_good_template_has_no_findings(small_vocab_path):
    vocabulary = Vocabulary.from_file(small_vocab_path)
    report = lint("{{text}} Good? ||| {{answer_choices[label]}}", vocabulary=vocabulary)
    assert report.wrong == [] == report.notes
    assert (report.choices, report.fixed, report.draws, report.shown) == ("2", True, False, 0)
    assert set(report.cut.values()) == {0} and len(report.cut) == 6


@pytest.mark.parametrize(
    "jinja, choices, told",
    [
        ("{{text}} Good? ||| {{label}}", "no ||| yes", "the target is none of the choices"),
        ("{{text}} Good? ||| {{label}}", "no ||| yes", "no row can be used"),
        ("{{text}} {{answer_choices[label]}}? ||| {{answer_choices[label]}}", "no ||| yes", "shows the answer"),
        ("{{text}} {% if label %}!{% endif %} So? ||| {{answer_choices[label]}}", "no ||| yes", "shows the answer"),
        ("{{text}}: ? ||| {{answer_choices[label]}}", "no ||| yes", "empty or punctuation only"),
        ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes", "empty or punctuation only"),
        ("{{text}} Good? ||| yes", "yes", "there is one choice only"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(jinja, choices, told):
    assert any(told in line for line in lint(jinja, choices).wrong), lint(jinja, choices)


def test_a_little_is_a_note_and_drops_are_counted():
    rows = [*ROWS * 2, {"text": "", "label": 0}]
    report = lint("{{text}} {% if text %}Good?{% endif %} ||| {{answer_choices[label]}}", rows=rows)
    assert report.wrong == [] and report.dropped == {"empty_prompt": 1}
    assert report.notes == ["drops 2% of rows (1 empty_prompt)"]


def test_random_draws_and_a_target_that_ignores_the_label_are_told():
    report = lint("{{[text, 'x'] | choice}} Good? ||| {{answer_choices[text | length % 2]}}")
    assert report.draws and any("does not follow 'label'" in note for note in report.notes)


def test_choices_of_the_same_ids(small_vocab_path):
    vocabulary = Vocabulary.from_file(small_vocab_path)
    report = lint("{{text}} Good? ||| {{answer_choices[label]}}", "★ ||| ☆", vocabulary=vocabulary)
    assert any("encode to the same ids" in line for line in report.wrong)


@pytest.mark.parametrize("shown, wrong", [(0, False), (1, True)])
@pytest.mark.parametrize("form", ["list", "columns"])
def test_a_label_of_an_option_that_is_not_shown(shown, wrong, form):
    """The pattern of qasc/is_correct_2: it asks about one option and answers for another."""
    options = [
        ["red", "blue", "green"][n % 3 :] + ["red", "blue", "green"][: n % 3] for n in range(12)
    ]
    if form == "list":
        rows = [{"options": o, "label": n % 3} for n, o in enumerate(options)]
        option = "options"
    else:
        rows = [{"o1": o[0], "o2": o[1], "o3": o[2], "label": n % 3} for n, o in enumerate(options)]
        option = "[o1, o2, o3]"
    spec = DatasetSpec("mine", "", {}, {}, "label", (0, 1, 2))
    jinja = f"Is it {{{{ {option}[{shown}] }}}}? ||| {{% if label == 0 %}}yes{{% else %}}no{{% endif %}}"
    found = lint(jinja, rows=rows, spec=spec).wrong
    assert any("option 1, which the prompt does not show" in line for line in found) == wrong


@pytest.mark.parametrize(
    "dataset, template, told",
    [
        ("qasc", "is_correct_2", "option 1, which the prompt does not show"),
        ("qasc", "is_correct_1", None),
        ("imdb", "Reviewer Enjoyment Yes No", None),
        ("commonsense_qa", "question_answering", "empty or punctuation only"),
        ("sciq", "Multiple Choice", None),
    ],
)
def test_promptsources_templates_on_the_embedded_rows(dataset, template, told):
    rows = load_rows(dataset, "train")[:60]
    report = lint_template(
        get_dataset(dataset), compile_template(load_template(dataset, template)), rows
    )
    assert [told in line for line in report.wrong] == ([True] if told else []), report


def test_star_ratings_encode_to_the_same_ids(t5_vocab_path):
    rows = [
        {"package_name": "a", "review": "good", "date": "", "star": n % 5 + 1} for n in range(9)
    ]
    template = compile_template(load_template("app_reviews", "convert_to_star_rating"))
    report = lint_template(
        get_dataset("app_reviews"), template, rows, Vocabulary.from_file(t5_vocab_path)
    )
    assert any("encode to the same ids" in line for line in report.wrong)


def test_truncation_rates(t5_vocab_path):
    rows = [{"text": "word " * (700 if n < 2 else 3), "label": n % 2} for n in range(8)]
    vocabulary = Vocabulary.from_file(t5_vocab_path)
    report = lint("{{text}} Good? ||| {{answer_choices[label]}}", rows=rows, vocabulary=vocabulary)
    # promptsource itself shortens a text to 2,048 characters, here 409 words.
    assert report.cut["channel targets"] == 0.25 and report.cut["flipped targets"] == 0
    short = lint_template(
        SPEC, compile_template(TemplateSpec("mine", "t", "{{text}} Good? ||| {{answer_choices[label]}}",
                                            "no ||| yes", True, None, (), "")),
        rows, vocabulary, {"inputs": 64, "targets": 128},
    )  # fmt: skip
    assert short.cut["direct inputs"] == short.cut["flipped inputs"] == 0.25
