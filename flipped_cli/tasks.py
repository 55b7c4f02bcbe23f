"""`flipped tasks`: list, render, lint, new: what the methods make of rows and templates."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flipped_cli.checks import find_dataset
from flipped_cli.export_tasks import export
from flipped_cli.lint import lint
from flipped_cli.new_dataset import new
from flipped_cli.options import length_options, module_option
from flipped_cli.path_options import LOCAL, READ
from flipped_cli.rows import read_rows
from flipped_core.errors import UserError

if TYPE_CHECKING:
    from flipped_tasks.datasets import DatasetSpec
    from flipped_tasks.methods import Formatted
    from flipped_tasks.rendering import CompiledTemplate, Rendered
    from flipped_tasks.tokens import Vocabulary

METHODS = ("direct", "flipped", "channel")
_FIELDS = (
    "answer_choices",
    "answer_choices_fixed",
    "correct",
    "direct_input",
    "direct_target",
    "instruction_spans",
    "instance_spans",
    "flipped_input",
    "flipped_target",
    "channel_input",
    "channel_target",
)


@click.group()
def tasks() -> None:
    """List the datasets and templates; render rows as the methods do; check; start one's own."""


tasks.add_command(export)
tasks.add_command(lint)
tasks.add_command(new)


@tasks.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
@module_option
def list_tasks(as_json: bool, modules: Sequence[str]) -> None:
    """List the datasets: role, usable templates for each method, label column.

    \b
    flipped tasks list
    flipped tasks list --module my_reviews.py --json
    """
    from mixtures.modules import load

    load(modules)
    rows = [_summary(name, role) for name, role in _catalog()]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    from rich.table import Table

    from flipped_cli.tables import show

    table = Table(title="Datasets, and the templates that each method can use")
    for column in ("dataset", "role", *METHODS, "label column"):
        table.add_column(column, justify="right" if column in METHODS else "left", no_wrap=True)
    for row in rows:
        counts = [str(len(row["templates"][method])) for method in METHODS]
        table.add_row(row["dataset"], row["role"], *counts, row["label_column"] or "–")
    show(table, width=100)


@tasks.command("render")
@click.option("--dataset", required=True, help="Such as imdb or super_glue/rte.")
@click.option("--template", help="The template's name in promptsource.")
@click.option("--all", "all_templates", is_flag=True, help="Every template that DIRECT can use.")
@click.option(
    "--rows",
    type=LOCAL,
    help="A .jsonl or .jsonl.gz file of rows, or - for stdin [default: a custom dataset's own].",
)
@module_option
@click.option(
    "--seed",
    type=int,
    help="Render each row with random.Random(SEED) [default: a draw of its own].",
)
@click.option("--vocab", type=READ, help="A SentencePiece model: adds the token ids of each text.")
@length_options(1)
def render(
    dataset: str,
    template: str | None,
    all_templates: bool,
    rows: str | None,
    modules: Sequence[str],
    seed: int | None,
    vocab: str | None,
    inputs_length: int,
    targets_length: int,
) -> None:
    """Print what the three methods make of each row, one JSON object a line.

    A row that is dropped has null in every field and the reason. Where only FLIPPED cannot use a
    row, the reason is given too: without instruction text its target is shown empty. The lengths
    count for --vocab only. Without --seed a template's random draws are a function of the template
    and the row's index.

    \b
    flipped tasks render --dataset super_glue/rte --template "GPT-3 style" --rows rows.jsonl
    flipped tasks render --dataset imdb --all --rows - --vocab sentencepiece.model
    """
    from flipped_tasks import datasets, promptsource, rendering
    from flipped_tasks.tokens import Vocabulary
    from mixtures.modules import load

    load(modules)
    spec = find_dataset(dataset, modules)
    if (template is None) == (not all_templates):
        raise UserError("expected either --template NAME or --all")
    names = [template] if template is not None else datasets.usable_templates(spec, "direct")
    compiled = [rendering.compile_template(promptsource.load_template(dataset, n)) for n in names]
    vocabulary = Vocabulary.from_file(vocab) if vocab else None
    lengths = {"inputs": inputs_length, "targets": targets_length}
    checked = _without_nested(spec)
    for index, row in read_rows(rows, spec.columns) if rows is not None else _own_rows(spec):
        for name, one in zip(names, compiled, strict=True):
            rng = (
                random.Random(seed) if seed is not None else rendering.template_rng(0, name, index)
            )
            head = {"dataset": dataset, "template": name, "row_id": index}
            try:
                case = render_case(checked, one, row, rng, vocabulary, lengths)
            except UserError as error:
                where = f"{rows}, line" if rows is not None else "row"
                raise UserError(f"{where} {index + 1}: {error}") from None
            click.echo(json.dumps(head | case, ensure_ascii=False))


def render_case(
    spec: DatasetSpec,
    template: CompiledTemplate,
    row: Mapping[str, Any],
    rng: random.Random,
    vocabulary: Vocabulary | None,
    lengths: Mapping[str, int],
) -> dict[str, Any]:
    """The texts of the three methods for one row, under the names of the worked cases.

    Args:
      spec: checks the row's columns and label.
      template: compiled once, rendered once here.
      row: one example in the dataset's own schema.
      rng: what the template's own `choice` draws from.
      vocabulary: adds `<method>_input_ids` and `<method>_target_ids` where given.
      lengths: tokens of "inputs" and "targets" at most.

    Raises:
      UserError: a missing column or a label out of range.
    """
    from flipped_tasks import methods, spans
    from flipped_tasks.rendering import Dropped

    empty: dict[str, Any] = dict.fromkeys((*_FIELDS, "reason"))
    if vocabulary is not None:
        empty |= {f"{m}_{side}_ids": None for m in METHODS for side in ("input", "target")}
    rendered = spec.check_row(row) or template.render(row, rng)
    if isinstance(rendered, Dropped):
        return empty | {"reason": rendered.reason}
    case = empty | {
        "answer_choices": list(rendered.choices),
        "answer_choices_fixed": template.choices_fixed,
        "correct": rendered.correct,
        "instruction_spans": spans.spans(rendered.segments, "instruction"),
        "instance_spans": spans.spans(rendered.segments, "instance"),
    }
    for method in METHODS:
        formatted = methods.format_example(method, rendered, rendered.correct)
        if isinstance(formatted, Dropped):
            case["reason"] = formatted.reason
            if formatted.reason != "empty_instruction":
                continue
            formatted = _without_instruction(rendered)
        case[f"{method}_input"] = methods.to_text(formatted.inputs)
        case[f"{method}_target"] = methods.to_text(formatted.targets)
        if vocabulary is not None:
            case |= _ids(method, formatted, vocabulary, lengths)
    return case


def _own_rows(spec: DatasetSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index from 0, row) of the first split of a dataset of one's own, 'train' where it has one."""
    if spec.rows is None:
        raise UserError(f"dataset {spec.name!r} has no rows of its own: expected --rows FILE")
    splits = sorted(spec.rows.splits(), key=lambda name: (name != "train", name))
    for index, row in enumerate(spec.rows.payloads(splits[0])):
        yield index, json.loads(row)


def _without_nested(spec: DatasetSpec) -> DatasetSpec:
    """`spec` with nested columns unchecked, but for those that hold the allowed labels.

    A row shown to a template may leave out nested columns that the template does not read.
    """
    labels = (spec.label_in or "").partition(".")[0]
    columns = {
        name: "dict" if isinstance(kind, Mapping) and name != labels else kind
        for name, kind in spec.columns.items()
    }
    return dataclasses.replace(spec, columns=columns)


def _without_instruction(rendered: Rendered) -> Formatted:
    """FLIPPED's form of a prompt in which nothing is instruction; no training or evaluation uses it."""
    from flipped_tasks.methods import Formatted

    choice = f"\noutput: {rendered.choices[rendered.correct]}"
    texts = tuple(segment.text for segment in rendered.segments)
    kinds = tuple(segment.kind for segment in rendered.segments)
    return Formatted(("input: ", *texts, choice), (), ("instruction", *kinds, "output"))


def _ids(
    method: str, formatted: Formatted, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> dict[str, list[int]]:
    from flipped_tasks import tokens

    encoded = tokens.encode(formatted, vocabulary, dict(lengths))
    return {
        f"{method}_input_ids": [int(i) for i in encoded.inputs],
        f"{method}_target_ids": [int(i) for i in encoded.targets],
    }


def _catalog() -> Iterator[tuple[str, str]]:
    from mixtures import catalog, own

    for name in catalog.TRAINING:
        yield name, "training"
    for name in catalog.EVALUATION:
        yield name, "evaluation"
    for name in catalog.ALTERNATIVES.values():
        yield name, "alternative"
    for name in own.own_datasets():
        yield name, "own"


def _summary(name: str, role: str) -> dict[str, Any]:
    from flipped_tasks import datasets

    spec = datasets.get_dataset(name)
    usable = {method: list(datasets.usable_templates(spec, method)) for method in METHODS}
    return {
        "dataset": name,
        "role": role,
        "templates": usable,
        "label_column": spec.label_column,
    }
