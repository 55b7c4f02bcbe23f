"""BIG-bench's task.json as datasets: the prompt, its parts, and the three methods."""

from __future__ import annotations

import gzip
import json
import pathlib
import random
from typing import Any

import pytest

from flipped_core.errors import UserError
from flipped_tasks import bigbench, promptsource, sources
from flipped_tasks.datasets import get_dataset, template_names, usable_templates
from flipped_tasks.methods import METHODS, Formatted, format_example, restore_prompt, to_text
from flipped_tasks.prepared import origins, reading, writing
from flipped_tasks.rendering import Dropped, Rendered, compile_template
from mixtures import catalog, suites

QUESTION = {"input": "What floats?", "target_scores": {"a stone": 0, "a boat": 1, "a duck": 0.5}}


def write(root: pathlib.Path, task: str, document: dict[str, Any], zipped: bool = True) -> None:
    place = root / task
    place.mkdir(parents=True, exist_ok=True)
    data = json.dumps(document).encode()
    if zipped:
        (place / "task.json.gz").write_bytes(gzip.compress(data))
    else:
        (place / "task.json").write_bytes(data)


def rows_of(tmp_path: pathlib.Path, **document: Any) -> list[dict[str, Any]]:
    write(tmp_path, "winowhy", {"examples": [QUESTION]} | document, zipped=False)
    return list(bigbench.read_rows(bigbench.find_file("bigbench/winowhy", tmp_path)))


def render(row: dict[str, Any]) -> Rendered:
    spec = promptsource.load_template("bigbench/winowhy", "json_task")
    made = compile_template(spec).render(row, random.Random(0))
    assert isinstance(made, Rendered)
    return made


def test_the_default_form(tmp_path) -> None:
    (row,) = rows_of(tmp_path)
    made = render(row)
    assert made.prompt == (
        "\nQ: What floats?\n  choice: a stone\n  choice: a boat\n  choice: a duck\nA: "
    )
    assert made.target == "a boat" and made.correct == 1 and made.also_correct == ()
    assert [(one.text, one.kind) for one in made.segments][:4] == [
        ("\nQ: ", "instruction"), ("What floats?", "instance"),
        ("\n  choice: ", "instruction"), ("a stone", "instance"),
    ]  # fmt: skip


@pytest.mark.parametrize("never", [False, "false"])
def test_every_field_of_the_form(tmp_path, never) -> None:
    (row,) = rows_of(
        tmp_path, task_prefix="Answer.", example_input_prefix="\nX ", example_output_prefix=" Y",
        append_choices_to_input=never,
    )  # fmt: skip
    assert render(row).prompt == "Answer.\nX What floats? Y"
    (row,) = rows_of(tmp_path, choice_prefix=" * ", example_input_prefix="")
    assert render(row).prompt == "What floats? * a stone * a boat * a duck\nA: "


def test_the_three_methods(tmp_path) -> None:
    (row,) = rows_of(tmp_path, append_choices_to_input=False, task_prefix="Think.")
    made = render(row)
    texts = {}
    for method in METHODS:
        formatted = format_example(method, made, made.correct)
        assert isinstance(formatted, Formatted)
        texts[method] = to_text(formatted.inputs), to_text(formatted.targets)
    assert texts["direct"] == ("Think.\nQ: What floats?\nA: ", "a boat")
    assert texts["channel"] == ("a boat", "Think.\nQ: What floats?\nA: ")
    assert texts["flipped"] == (
        "input: <extra_id_0> What floats?\n<extra_id_1> \noutput: a boat",
        "<extra_id_0> Think.\nQ: <extra_id_1> A:",
    )


def test_a_long_input_is_not_cut_and_braces_stay(tmp_path) -> None:
    long = "{{ x }} ||| " + "word " * 2_000
    question = {"input": long, "target_scores": {"{% a %}": 1, "b": 0}}
    (row,) = rows_of(tmp_path, examples=[question])
    made = render(row)
    assert long in made.prompt and made.target == "{% a %}"


def test_several_best_choices_are_all_correct(tmp_path) -> None:
    scores = {"a": 1, "b": 0, "c": 1}
    (row,) = rows_of(tmp_path, examples=[{"input": "?", "target_scores": scores}])
    made = render(row)
    assert made.correct == 0 and made.also_correct == (2,)
    (row,) = rows_of(tmp_path, examples=[{"input": "?", "target_scores": {"a": 1, "b": 1}}])
    spec = promptsource.load_template("bigbench/winowhy", "json_task")
    made = compile_template(spec).render(row, random.Random(0))
    assert made == Dropped("all_choices_best")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "cannot read"), ('{"name": "x"}', "folder of sub-tasks"),
     ('{"examples": [{"input": "a"}]}', "example 1: expected 'input' and 'target_scores'"),
     ('{"examples": [{"input": "a", "target_scores": {}}]}', "example 1")],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, text, expected) -> None:
    (tmp_path / "winowhy").mkdir()
    (tmp_path / "winowhy" / "task.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        list(bigbench.read_rows(tmp_path / "winowhy" / "task.json"))


def test_a_missing_task_names_the_nearest(tmp_path) -> None:
    write(tmp_path, "winowhy", {"examples": [QUESTION]})
    with pytest.raises(UserError, match="'winogender'; nearest: 'winowhy'"):
        bigbench.find_file("bigbench/winogender", tmp_path)


def test_the_suite_has_14_tasks_and_every_dataset_one_template() -> None:
    tasks = suites.bigbench14()
    assert len({task.task for task in tasks}) == len(catalog.BIGBENCH) == 14 and len(tasks) == 21
    for task in tasks:
        for method in METHODS:
            assert usable_templates(task.dataset, method) == [task.template]
        assert template_names(task.dataset, original_task=True) == [task.template]


def test_the_14_tasks_are_stored_whole(shared_dir: pathlib.Path, tmp_path) -> None:
    """All tasks but the three largest, which take 10 s: counts, form, and the law of the flipped form."""
    root, several = shared_dir / "data" / "bigbench", {}
    for task in suites.bigbench14():
        spec = get_dataset(task.dataset)
        if spec.splits[bigbench.SPLIT] > 10_000:
            continue
        origin = origins.open_origin(spec, f"files:{root}")
        manifest, _ = writing.prepare(spec, origin, str(tmp_path))
        info = manifest["splits"][bigbench.SPLIT]
        assert info["examples"] == info["rows"] == spec.splits[bigbench.SPLIT]
        if info["notes"]:
            several[task.dataset] = info["notes"]["several_best"]
        template = compile_template(promptsource.load_template(task.dataset, task.template))
        for row in sources.load_rows(task.dataset, task.split, str(tmp_path))[:50]:
            made = template.render(row, random.Random(0))
            assert isinstance(made, Rendered) and made.choices[made.correct] == made.target
            flipped = format_example("flipped", made, made.correct)
            assert isinstance(flipped, Formatted) and restore_prompt(flipped) == made.prompt
    assert several == {"bigbench/hindu_knowledge": 1, "bigbench/novel_concepts": 2}
    assert reading.find("bigbench/winowhy", str(tmp_path)) is not None
