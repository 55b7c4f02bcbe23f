"""`flipped score` and `flipped generate` as they are mistyped: one line, which names the line of a file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_cli.questions import read_questions
from flipped_eval.inference import Question, render

GOOD = '{"input": "x", "choices": ["a", "b"], "id": 7, "choice": "mine"}\n'


def mistake(*words: str, given: str | None = None) -> str:
    """What the command says of a mistake; questions are read before any checkpoint."""
    told = CliRunner().invoke(
        main, [*words, "--checkpoint", "nowhere"], input=given, catch_exceptions=False
    )
    assert told.exit_code == 2 and told.output.startswith("error: "), told.output
    assert told.output.count("\n") == 1
    return told.output.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "x", "choices": ["a",}', "stdin, line 2: not JSON: Expecting value at column 32"),
        ("[1]", "stdin, line 2: expected a JSON object, got list"),
        ('{"inpt": "x", "choices": ["a"]}', "stdin, line 2: unknown field 'inpt'; nearest: 'input'"),
        ('{"input": "x", "choises": ["a"]}', "stdin, line 2: unknown field 'choises'; nearest: 'choices'"),
        ('{"input": "x", "choices": "ab"}', "stdin, line 2: choices: expected a list of texts, got 'ab'"),
        ('{"choices": ["a", "b"]}', "stdin, line 2: expected the field 'input'; there are: 'choices'"),
        ('{"input": "x", "tempalte": "{{input}}"}', "stdin, line 2: unknown field 'tempalte'; nearest: 'template'"),
    ],
)  # fmt: skip
def test_a_line_is_named(line: str, message: str) -> None:
    assert mistake("score", "--jsonl", "-", given=f"{GOOD}{line}\n") == message


def test_a_field_of_ones_own_is_none_of_ours() -> None:
    assert mistake("score", "--jsonl", "-", given=GOOD).startswith("no checkpoint at nowhere")


def test_a_file_that_is_not_there(tmp_path) -> None:
    (tmp_path / "questions.jsonl").touch()
    told = mistake("score", "--jsonl", str(tmp_path / "question.jsonl"))
    assert told.startswith("expected a file of JSON lines, there is none at")
    assert "nearest: " in told and "questions.jsonl" in told


def test_the_checkpoint_is_looked_for_before_its_vocabulary() -> None:
    for words in (("score", "--choices", "a", "b"), ("generate",)):
        assert mistake(*words, "--input", "x") == "no checkpoint at nowhere: there is nothing"


RTE = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0}
CSQA = {
    "id": "1", "question": "Where do cats sleep?", "question_concept": "cat",
    "choices": {"label": ["A", "B", "C"], "text": ["a box", "a lake", "a song"]},
}  # fmt: skip


def asked(dataset: str, template: str, row: dict[str, Any]) -> Question:
    line = {"template": template, "dataset": dataset, "inputs": [json.dumps(row)], "jsonl": None}
    ((_, question, _),) = read_questions(**line)
    return question


@pytest.mark.parametrize(
    ("dataset", "template", "row", "column", "none", "allowed"),
    [
        ("super_glue/rte", "GPT-3 style", RTE, "label", (None, -1), (0, 1)),
        ("commonsense_qa", "most_suitable_answer", CSQA, "answerKey", (None, ""), ("A", "B", "C")),
    ],
)
def test_a_row_without_a_label_is_asked_like_one_with_any(
    dataset: str, template: str, row: dict[str, Any], column: str, none: Any, allowed: Any
) -> None:
    """The label of a dataset's row says which choice is right, which a question need not know."""
    labelled = [render(asked(dataset, template, {**row, column: label})) for label in allowed]
    assert len({(found.prompt, found.choices) for found in labelled}) == 1
    assert [found.correct for found in labelled] == list(range(len(allowed)))
    for without in (row, *({**row, column: label} for label in none)):
        question = asked(dataset, template, without)
        assert isinstance(question.input, dict) and question.input[column] == allowed[0]
        found = render(question)
        assert (found.prompt, found.choices) == (labelled[0].prompt, labelled[0].choices)


def test_a_label_that_is_given_stays() -> None:
    assert asked("super_glue/rte", "GPT-3 style", {**RTE, "label": 1}).input["label"] == 1  # type: ignore[index]
