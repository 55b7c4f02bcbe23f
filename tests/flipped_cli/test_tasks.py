"""`flipped tasks list` and `flipped tasks render` against the worked cases, field by field."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flipped_cli.main import main

# Fields of a worked case that describe the case and not what is made of it.
ABOUT_THE_CASE = {"row", "row_id", "seed", "stress", "original_task"}
TEXTS = [f"{m}_{side}" for m in ("direct", "flipped", "channel") for side in ("input", "target")]
RTE = {"premise": "A cat sat.", "hypothesis": "A cat stood.", "idx": 0, "label": 1}


def call(*words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, list(words), input=given, catch_exceptions=False)


def render(dataset: str, template: str, rows: list[Any], *more: str) -> list[dict[str, Any]]:
    given = "".join(json.dumps(row) + "\n" for row in rows)
    words = ["tasks", "render", "--dataset", dataset, "--template", template, "--rows", "-"]
    result = call(*words, *more, given=given)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def test_worked_cases_exactly(shared_dir: pathlib.Path) -> None:
    text = (shared_dir / "gold" / "sample.jsonl").read_text(encoding="utf-8")
    cases = [json.loads(line) for line in text.split("\n") if line]
    assert cases
    groups: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["dataset"], case["template"], case["seed"]), []).append(case)
    for (dataset, template, seed), group in groups.items():
        more = [] if seed is None else ["--seed", str(seed)]
        got = render(dataset, template, [case["row"] for case in group], *more)
        assert len(got) == len(group)
        for index, (one, case) in enumerate(zip(got, group, strict=True)):
            expected = {k: v for k, v in case.items() if k not in ABOUT_THE_CASE}
            assert {k: one[k] for k in expected} == expected, (dataset, template)
            reason = None if case["flipped_target"] else "empty_instruction"
            assert (one["row_id"], one["reason"]) == (index, reason)


def test_ids_are_the_texts(t5_vocab_path: str) -> None:
    """Ids of the whole texts end with eos and hold the sentinels; lengths cut them."""
    (plain,) = render("super_glue/rte", "GPT-3 style", [RTE])
    (case,) = render("super_glue/rte", "GPT-3 style", [RTE], "--vocab", t5_vocab_path)
    assert {k: case[k] for k in plain} == plain
    ids = {name: case[f"{name}_ids"] for name in TEXTS}
    assert all(one[-1] == 1 and 0 not in one for one in ids.values())
    assert ids["flipped_target"][0] == 32099 and 32099 in ids["flipped_input"]
    more = ["--vocab", t5_vocab_path, "--inputs_length", "8", "--targets_length", "4"]
    (cut,) = render("super_glue/rte", "GPT-3 style", [RTE], *more)
    assert all(len(cut[f"{name}_ids"]) <= (8 if "input" in name else 4) for name in TEXTS)
    assert cut["direct_input"] == case["direct_input"]


def test_dropped_row_is_null_with_a_reason() -> None:
    got = render("super_glue/rte", "GPT-3 style", [RTE, RTE | {"label": -1}])
    assert got[0]["reason"] is None
    assert got[1].pop("reason") == "unlabelled"
    about = {"dataset": "super_glue/rte", "template": "GPT-3 style", "row_id": 1}
    assert {k: v for k, v in got[1].items() if v is not None} == about
    assert set(TEXTS) <= set(got[1])


def test_without_instruction_flipped_has_an_empty_target() -> None:
    row = {"context": "c.", "question": "q?", "label": 0, "id": "x"}
    row |= {f"answer{n}": f"a{n}" for n in range(4)}
    (case,) = render("cosmos_qa", "only_question_answer", [row])
    assert case["flipped_input"] == f"input: {case['direct_input']}\noutput: a0"
    assert (case["flipped_target"], case["reason"]) == ("", "empty_instruction")
    assert case["direct_target"] == "a0" and case["channel_input"] == "a0"


def test_seed_decides_the_draw() -> None:
    """Templates that draw give the same for the same seed, and also where no seed is given."""
    row = {
        "question": "q?",
        "correct_answer": "c",
        "distractor1": "x",
        "distractor2": "y",
        "distractor3": "z",
        "support": "s.",
    }
    rows = [row] * 12
    template = "Multiple Choice"
    once = render("sciq", template, rows, "--seed", "3")
    assert len({case["direct_input"] for case in once}) == 1
    unseeded = render("sciq", template, rows)
    assert unseeded == render("sciq", template, rows)
    assert len({case["direct_input"] for case in unseeded}) > 1


def test_all_templates_and_gzip(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress((json.dumps(RTE) + "\n\n" + json.dumps(RTE)).encode()))
    result = call("tasks", "render", "--dataset", "super_glue/rte", "--all", "--rows", str(file))
    assert result.exit_code == 0, result.stderr
    cases = [json.loads(line) for line in result.stdout.split("\n") if line]
    assert len(cases) == 20 and {case["row_id"] for case in cases} == {0, 2}


def test_list() -> None:
    """The numbers of usable templates are those of the design's table."""
    table = call("tasks", "list")
    assert table.exit_code == 0, table.stderr
    result = call("tasks", "list", "--json")
    rows = {row["dataset"]: row for row in map(json.loads, result.stdout.split("\n")[:-1])}
    assert all(name in table.stdout for name in rows)
    roles = [row["role"] for row in rows.values()]
    assert (roles.count("training"), roles.count("evaluation")) == (20, 12)
    counts = dict.fromkeys(("direct", "channel", "flipped"), 0)
    for row in rows.values():
        if row["role"] == "training":
            for method in counts:
                counts[method] += len(row["templates"][method])
    assert counts["flipped"] == 132
    assert len(rows["super_glue/rte"]["templates"]["direct"]) == 10


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(word: str) -> None:
    for words in ([], ["tasks"], ["tasks", "list"], ["tasks", "render"]):
        result = call(*words, word)
        assert result.exit_code == 0 and result.stdout.startswith("Usage: ")


def test_a_template_without_instruction_has_ids_too(small_vocab_path: str) -> None:
    from flipped_tasks.sources import load_rows

    row = load_rows("quail", "train")[0]
    (case,) = render("quail", "no_prompt_id", [row], "--vocab", small_vocab_path)
    assert case["reason"] == "empty_instruction" and case["flipped_target"] == ""
    assert case["flipped_target_ids"] == [1]
    assert case["direct_target_ids"] and case["flipped_input_ids"]


@pytest.mark.parametrize(
    "line, told",
    [
        (
            b'{"text": "cut \\ud83d", "label": 0}',
            "column 'text': expected text that UTF-8 can hold",
        ),
        (
            b'{"text": "a", "label": ' + b"9" * 5000 + b"}",
            "column 'label': expected a whole number",
        ),
        (b'{"text": "a", "label": 0, "label": 1}', "expected each key once, got 'label' twice"),
        (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b', "label": 0}', "at most 64 deep"),
        ('{"text": "a", "label": 0}'.encode("utf-16"), "expected UTF-8, got UTF-16"),
        (b'{"text": "a", "label": [0]}', "column 'label': expected int, got list"),
    ],
)
def test_a_row_that_no_command_takes(line: bytes, told: str) -> None:
    words = ["tasks", "render", "--dataset", "imdb", "--all", "--rows", "-"]
    result = CliRunner().invoke(main, words, input=line + b"\n", catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "error: stdin, line 1: " in result.stderr and told in result.stderr


@pytest.mark.parametrize("mark, label", [("\ufeff", 1), ("", 1.0), ("", True)])
def test_a_row_that_is_read_as_it_is_meant(mark: str, label: Any) -> None:
    given = mark + json.dumps({**RTE, "label": label}) + "\n"
    words = ["--dataset", "super_glue/rte", "--template", "GPT-3 style", "--rows", "-"]
    result = call("tasks", "render", *words, given=given)
    assert json.loads(result.stdout)["direct_target"] == "False", result.output
