"""The suites and the label sets."""

import random

import pytest
import yaml

from flipped_core.errors import UserError
from flipped_tasks import promptsource
from flipped_tasks.rendering import compile_template
from mixtures import suites


def test_nlp14_is_t0s_14_tasks():
    tasks = suites.nlp14()
    assert len({task.task for task in tasks}) == 14
    assert len({(task.dataset, task.template) for task in tasks}) == 103
    assert len({(task.dataset, task.template) for task in suites.nlp14("all")}) == 111
    splits = {task.task: task.split for task in tasks}
    assert [splits[f"anli_r{n}"] for n in (1, 2, 3)] == ["dev_r1", "dev_r2", "dev_r3"]
    assert {split for name, split in splits.items() if not name.startswith("anli")} == {
        "validation"
    }


def test_another_split():
    splits = {task.dataset + task.task[-3:]: task.split for task in suites.nlp14(split="test")}
    assert splits["anli_r2"] == "test_r2" and splits["piqaiqa"] == "test"
    with pytest.raises(UserError, match="unknown split of 'anli' 'challenge_r1'"):
        suites.nlp14(split="challenge")
    with pytest.raises(UserError, match="'original'"):
        suites.nlp14("orginal")


def test_the_label_suite_has_the_five_datasets_and_at_least_four_substitutes_each():
    tasks = suites.labels()
    by_template = {}
    for task in tasks:
        by_template.setdefault((task.dataset, task.template), []).append(task)
    assert set(by_template) == {
        ("super_glue/wsc.fixed", "does the pronoun refer to"),
        ("super_glue/cb", "can we infer"),
        ("super_glue/rte", "MNLI crowdsource"),
        ("imdb", "Reviewer Enjoyment Yes No"),
        ("paws/labeled_final", "Meaning"),
        ("paws/labeled_final", "Meaning-no-label"),
    }
    for found in by_template.values():
        assert found[0].label_set == "original" and found[0].label_words is None
        assert len(found) >= 5 and all(task.label_words for task in found[1:])
        assert len({task.label_set for task in found}) == len(found)
    assert {task.split for task in tasks if task.dataset == "imdb"} == {"test"}


def test_substitution_changes_choices_and_target_only():
    compiled = compile_template(promptsource.load_template("super_glue/cb", "can we infer"))
    row = {"premise": "It rained.", "hypothesis": "it is wet", "label": 2, "idx": 0}
    rendered = compiled.render(row, random.Random(0))
    words = {"Yes": "True", "No": "False", "Maybe": "Unknown"}
    changed = suites.with_label_words(rendered, words)
    assert changed.choices == ("True", "False", "Unknown") and changed.target == "Unknown"
    assert (changed.prompt, changed.segments, changed.correct) == (
        rendered.prompt,
        rendered.segments,
        2,
    )
    assert suites.with_label_words(rendered, None) is rendered
    with pytest.raises(UserError, match="substitute for 'Maybe'"):
        suites.with_label_words(rendered, {"Yes": "a", "No": "b"})


def entry(**changes):
    return {
        "dataset": "super_glue/rte", "template": "MNLI crowdsource", "words": ["Yes", "No"],
        "sets": {"true": ["True", "False"]},
    } | changes  # fmt: skip


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump([entry()]))
    assert [task.label_words for task in suites.labels(path)] == [
        None,
        {"Yes": "True", "No": "False"},
    ]


@pytest.mark.parametrize(
    "bad, told",
    [
        (entry(sets={"x": ["True"]}), "set 'x': expected 2 words, got 1"),
        (entry(sets={"x": [True, False]}), "expected a word in quotes, got True"),
        (entry(sets={"x": ["a", "a"]}), "a word occurs twice"),
        (entry(sets={"original": ["a", "b"]}), "kept for the template's own words"),
        (entry(sets=["a"]), "sets: expected names"),
        (
            entry(words=["No", "Yes"]),
            "expected those of template 'MNLI crowdsource', .'Yes', 'No'.",
        ),
        (entry(template="MNLI crowd"), "nearest: 'MNLI crowdsource'"),
        (entry(dataset="super_glue/rta"), "super_glue/rte"),
        ({"dataset": "imdb"}, "expected the fields dataset, sets, template, words, got dataset"),
        (entry(dataset=["imdb"]), "entry 1: dataset: expected a word in quotes, got .'imdb'."),
        (entry(dataset=3), "entry 1: dataset: expected a word in quotes, got 3"),
        (entry(template=None), "entry 1: template: expected a word in quotes, got None"),
        (entry(dataset="super_glue/rta"), "labels.yaml, entry 1: unknown dataset"),
        (entry(sets={"all substitutes": ["a", "b"]}), "kept for the mean over all sets"),
        (entry(sets={1: ["a", "b"]}), "the name of a set: expected a word in quotes, got 1"),
        (entry(sets={"x": ["a ", "b"]}), "expected a word without spaces around it"),
        (entry(sets={"x": ["a\nb", "c"]}), "expected a word on one line"),
        (entry(sets={"x": ["a" * 10_000, "b"]}), "expected at most 200 characters, got 10,000"),
        (entry(words="Yes"), "words: expected a list of words, got 'Yes'"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, bad, told):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump([bad]))
    with pytest.raises(UserError, match=told):
        suites.labels(path)


@pytest.mark.parametrize(
    "text, told",
    [
        ("!!python/object:os.system x", "not safe YAML"),
        ("{}", "expected a list"),
        ("[", "not safe YAML"),
        ("[" * 30_000, "nested more than 50 deep"),
        ("- " * 30_000, "nested more than 50 deep"),
        ("{a: " * 30_000, "nested more than 50 deep"),
        ("- &a [*a]", "the alias .a stands for no value that is complete before it"),
        ("- {sets: 1, sets: 2}", "line 1: 'sets' occurs twice in one mapping"),
        ("- !!timestamp x", "not safe YAML"),
        ("- !!bool x", "not safe YAML"),
        ("- 2020-13-45", "not safe YAML"),
        ('- "\\ud800"', "not safe YAML|expected the fields"),
        ("- " + "9" * 5000, "not safe YAML"),
        ("a\n---\nb", "not safe YAML"),
        ("x" * 5_000_000, "expected at most 4,194,304 bytes"),
    ],
)
def test_unsafe_or_broken_yaml_is_refused(tmp_path, text, told):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        suites.load_label_sets(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        suites.labels(tmp_path / "nowhere.yaml")


def test_aliases_that_stand_for_too_much_are_refused_before_they_are_built(tmp_path):
    """Nine lines of nine aliases each stand for 9^9 values; the file's own anchors are few and stay."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    path = tmp_path / "labels.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="expected at most 200,000 values, aliases included"):
        suites.load_label_sets(path)
    assert "*same_meaning" in suites.LABEL_SETS_FILE.read_text() and suites.load_label_sets()


def test_an_entry_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump([entry(), entry(sets={"other": ["a", "b"]})]))
    with pytest.raises(UserError, match="entry 2: 'super_glue/rte', template .* occurs twice"):
        suites.load_label_sets(path)


def test_a_file_of_label_sets_may_begin_with_a_byte_order_mark_and_is_no_folder(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump([entry()]), encoding="utf-8-sig")
    assert len(suites.load_label_sets(path)) == 1
    with pytest.raises(UserError, match="is no file"):
        suites.load_label_sets(tmp_path)
    path.write_bytes(b"\xff\xfe- x")
    with pytest.raises(UserError, match="not safe YAML"):
        suites.load_label_sets(path)
