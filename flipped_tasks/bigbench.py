"""BIG-bench's JSON tasks as datasets with one template: rows of `task.json`, and the prompt that they make.

The prompt is BIG-bench's own: task_prefix + example_input_prefix + input, choice_prefix + choice for each choice
unless append_choices_to_input is false, example_output_prefix. The prefixes are instruction, input and choices are
instance. Each row carries the prefixes of its task, so a stored task needs nothing beside it. Source: Srivastava et
al. 2022, arXiv 2206.04615, and its `task.json` format.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

from flipped_core import bounded
from flipped_core.errors import UserError, unknown
from flipped_tasks import render_limits
from flipped_tasks.datasets import DatasetSpec, register_dataset
from flipped_tasks.promptsource import TemplateSpec, register_templates
from flipped_tasks.rendering import Dropped, Rendered
from flipped_tasks.row_values import clean_row, fit_columns
from flipped_tasks.spans import Kind, merge

PREFIX = "bigbench/"
SPLIT = "default"
MAX_FILE_BYTES = 512 << 20  # of a task.json; the largest of the suite has 25 MB
TEMPLATE = "json_task"
FILES = ("task.json", "task.json.gz")
# Defaults of BIG-bench's own reader.
DEFAULTS: Mapping[str, str] = {
    "task_prefix": "",
    "example_input_prefix": "\nQ: ",
    "example_output_prefix": "\nA: ",
    "choice_prefix": "\n  choice: ",
}
COLUMNS: Mapping[str, Any] = {
    "input": "string",
    "choices": ["string"],
    "scores": ["string"],
    **dict.fromkeys(DEFAULTS, "string"),
    "append_choices": "int",
}


def is_bigbench(dataset: str) -> bool:
    """Whether a dataset's name is that of a BIG-bench task, such as 'bigbench/winowhy'."""
    return dataset.startswith(PREFIX)


def template_name(dataset: str) -> str:
    """The name of a dataset's one template: that of the sub-task, where it is one."""
    parts = dataset.removeprefix(PREFIX).split("/")
    return TEMPLATE if len(parts) == 1 else parts[-1]


@dataclasses.dataclass(frozen=True)
class BigBenchSpec(TemplateSpec):
    """The template of a task. Its `jinja` shows the form; `BigBenchTemplate` renders it."""

    def compiled(self) -> BigBenchTemplate:
        """What renders it."""
        return BigBenchTemplate(self)


def template_spec(dataset: str) -> BigBenchSpec:
    """The one template of a task."""
    name = template_name(dataset)
    form = (
        "{{task_prefix}}{{example_input_prefix}}{{input}}{% if append_choices %}{% for choice in choices %}"
        "{{choice_prefix}}{{choice}}{% endfor %}{% endif %}{{example_output_prefix}}|||{{choices[best]}}"
    )
    choices = "{{choices | join('|||')}}"
    return BigBenchSpec(dataset, name, form, choices, True, None, ("Accuracy",), "BIG-bench")


def register_task_dataset(task: str, examples: int) -> DatasetSpec:
    """Makes a JSON task known as a dataset, 'bigbench/<task>', with its template.

    Args:
      task: the folder of its task.json, such as 'winowhy' or 'logical_deduction/three_objects'.
      examples: how many it has.
    """
    dataset = PREFIX + task
    register_templates(dataset, [template_spec(dataset)])
    return register_dataset(
        DatasetSpec(name=dataset, hub_id="", columns=COLUMNS, splits={SPLIT: examples})
    )


def find_file(dataset: str, root: pathlib.Path) -> pathlib.Path:
    """The `task.json[.gz]` of a task below the folder of all tasks. Raises `UserError` where it is not there."""
    task = dataset.removeprefix(PREFIX)
    there = [path for name in FILES if (path := root / task / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{root / task}: expected one of {' and '.join(FILES)}, got both")
    if there:
        return there[0]
    known = [
        path.parent.relative_to(root).as_posix() for name in FILES for path in root.rglob(name)
    ]
    raise unknown(f"BIG-bench task in {root}", task, known)


def read_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of a `task.json[.gz]`, with the columns of `COLUMNS`.

    Raises:
      UserError: the file cannot be read, or an example has no choices with scores, or holds what no row may (see
        `row_values.clean_row`); names file and example.
    """
    read = bounded.gunzip if path.suffix == ".gz" else bounded.read_bytes
    document = bounded.parse_json(read(path, MAX_FILE_BYTES), f"cannot read {path}")
    examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list) or not examples:
        raise UserError(f"{path}: expected a list of 'examples'; is it a folder of sub-tasks?")
    shared = {name: document.get(name, default) for name, default in DEFAULTS.items()}
    # One task says "false" in quotes; its author meant the same.
    appended = str(document.get("append_choices_to_input", True)).lower() != "false"
    for number, example in enumerate(examples, start=1):
        where = f"{path}, example {number}"
        scores = example.get("target_scores") if isinstance(example, dict) else None
        if not isinstance(scores, dict) or not scores or not isinstance(example.get("input"), str):
            raise UserError(f"{where}: expected 'input' and 'target_scores' with choices")
        for choice, score in scores.items():
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise UserError(
                    f"{where}: target_scores: expected a number for {choice!r}, got {score!r}"
                )
        row = clean_row(
            {
                "input": example["input"],
                "choices": list(scores),
                "scores": [repr(float(score)) for score in scores.values()],
                **shared,
                "append_choices": int(appended),
            },
            where,
        )
        fit_columns(row, COLUMNS, where)
        yield row


def best(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The places of the choices with the highest score: usually one. Raises `UserError` where one is no number."""
    try:
        scores = [float(score) for score in row["scores"]]
    except (TypeError, ValueError):
        scores = []
    if (
        not scores
        or len(scores) != len(row["choices"] or ())
        or not all(map(math.isfinite, scores))
    ):
        raise UserError(
            f"column 'scores': expected a number for each choice, got {ascii(row['scores'])[:80]}"
        )
    return tuple(place for place, score in enumerate(scores) if score == max(scores))


class BigBenchTemplate:
    """Renders the rows of a task, as `rendering.CompiledTemplate` renders promptsource's.

    The prompt is the concatenation to the letter, with white space at its ends. Choices are stripped.
    """

    choices_fixed = False
    columns = tuple(COLUMNS)

    def __init__(self, spec: TemplateSpec):
        self.spec = spec

    def render(self, row: Mapping[str, Any], rng: random.Random) -> Rendered | Dropped:
        """The example; the first best choice is the target, and `also_correct` names the others."""
        for column in self.columns:
            if column not in row:
                raise UserError(
                    f"template {self.spec.name!r} of {self.spec.dataset}: missing column {column!r}"
                )
        correct = best(row)
        if any(value is None for value in (row["input"], *row["choices"])):
            return Dropped("render_error")
        prefixes = {name: row[name] or "" for name in DEFAULTS}
        size = len(row["choices"]) * len(prefixes["choice_prefix"])
        if size > render_limits.MAX_OUTPUT or len(row["choices"]) > render_limits.MAX_CHOICES:
            raise UserError(
                f"{self.spec.dataset}: expected a prompt of at most {render_limits.MAX_OUTPUT:,} characters"
            )
        pieces: list[tuple[str, Kind]] = [
            (prefixes["task_prefix"], "instruction"),
            (prefixes["example_input_prefix"], "instruction"),
            (row["input"], "instance"),
        ]
        if row["append_choices"]:
            for choice in row["choices"]:
                pieces += [(prefixes["choice_prefix"], "instruction"), (choice, "instance")]
        pieces.append((prefixes["example_output_prefix"], "instruction"))
        segments = merge(piece for piece in pieces if piece[0])
        prompt = "".join(segment.text for segment in segments)
        if not prompt.strip():
            return Dropped("empty_prompt")
        choices = tuple(choice.strip() for choice in row["choices"])
        if len(correct) == len(choices) > 1:
            return Dropped("all_choices_best")
        target = choices[correct[0]]
        if not target:
            return Dropped("empty_target")
        return Rendered(prompt, target, choices, choices.index(target), segments, correct[1:])
