"""The options that `flipped score` and `flipped generate` share, and the questions that they ask."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flipped_cli import offline
from flipped_cli.options import module_option, settings_options, values_of
from flipped_cli.path_options import LOCAL, READ
from flipped_cli.rows import parse_argument, read_rows
from flipped_cli.runs import EvalRun
from flipped_core.errors import UserError
from flipped_core.paths import check_bucket, is_hub

if TYPE_CHECKING:
    from flipped_eval.inference import Model, Question

# What a checkpoint records and the options may say instead.
RECORDED = ("lengths", "input_eos", "vocab_path")
RECORDED_OPTIONS = ("lengths_inputs", "lengths_targets", "input_eos", "vocab_path")
FIELDS = ("input", "row", "choices", "template", "dataset", "output")
TOGETHER = 512  # lines of a file that are computed at a time
_JINJA = "{{"


class ListCommand(click.Command):
    """A command of which the option `--choices` takes all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        listing = False
        for word in args:
            if word.startswith("--"):
                listing = word == "--choices"
                if not listing:
                    words.append(word)
            elif listing:
                words.append(f"--choices={word}")
            else:
                words.append(word)
        return super().parse_args(ctx, words)


def shared_options(function: Callable[..., None]) -> Callable[..., None]:
    """--checkpoint, --method, what else `RECORDED` says of it, --template, --dataset, --input, --jsonl, --module."""
    options = (
        click.option(
            "--checkpoint",
            type=READ,
            required=True,
            help="A run's folder, a checkpoint, a Hugging Face folder, or hf://OWNER/NAME[@REVISION].",
        ),
        settings_options(EvalRun, RECORDED),
        click.option("--method", help="direct, channel or flipped; by default the run's."),
        click.option(
            "--template",
            help="Jinja text with {{input}}, or with --dataset the name of one of its templates.",
        ),
        click.option("--dataset", help="Such as super_glue/rte: its templates, and rows as input."),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            help="A text, or with --dataset a row as JSON; may be given several times.",
        ),
        click.option(
            "--jsonl",
            type=LOCAL,
            help="A file of questions, one JSON object a line, or - for stdin.",
        ),
        module_option,
        offline.option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def load_model(
    checkpoint: str,
    method: str | None,
    given: Mapping[str, Any],
    scorer_options: Mapping[str, Any] | None = None,
) -> Model:
    """The model of --checkpoint, with what the options of `RECORDED` say; prints on stderr what is used."""
    from flipped_eval.inference import Model

    found = values_of(EvalRun, given, RECORDED)
    if (vocab := found.get("vocab_path")) is not None and not is_hub(vocab):
        check_bucket(vocab, "--vocab", write=False)
    return Model.load(
        os.path.expanduser(checkpoint),
        vocab=found.get("vocab_path"),
        method=method,
        lengths=found.get("lengths"),
        input_eos=found.get("input_eos"),
        scorer_options=scorer_options,
        announce=lambda line: click.echo(line, err=True),
    )


def read_questions(
    *,
    template: str | None,
    dataset: str | None,
    inputs: Sequence[str],
    jsonl: str | None,
    choices: Sequence[str] = (),
    output: str | None = None,
) -> Iterator[tuple[str, Question, str | None]]:
    """(name for errors, question, output) of each input of the command line, or of each line of a file.

    A line's `input` (a text, or column -> value) or `row`, `choices`, `template`, `dataset` and `output` stand before
    what the options say. With --dataset a line without `row` that has one of the dataset's columns is a row itself.

    Raises:
      UserError: neither or both of --input and --jsonl; a line that cannot be read or says too little.
    """
    if bool(inputs) == bool(jsonl):
        raise UserError("expected either --input TEXT or --jsonl FILE")
    defaults = {"template": template, "dataset": dataset, "choices": choices, "output": output}
    if jsonl:
        for index, line in read_rows(jsonl):
            name = f"{'stdin' if jsonl == '-' else jsonl}, line {index + 1}"
            if dataset is not None and _is_row(dataset, line):
                yield name, *_question({**defaults, "choices": (), "row": line}, name)
                continue
            of_dataset: dict[str, Any] = {"choices": ()} if "dataset" in line else {}
            _refuse_misspelt(line, name)
            yield name, *_question({**defaults, **of_dataset, **line}, name)
        return
    for number, text in enumerate(inputs, 1):
        name = "--input" if len(inputs) == 1 else f"--input {number}"
        entry: dict[str, Any] = (
            {"input": text} if dataset is None else {"row": parse_argument(text, name)}
        )
        yield name, *_question({**defaults, **entry}, name)


def _is_row(dataset: str, line: Mapping[str, Any]) -> bool:
    from flipped_tasks.datasets import dataset_names, get_dataset
    from mixtures import catalog

    assert catalog.TRAINING, "importing the catalog registers its datasets"
    if "row" in line or "dataset" in line or dataset not in dataset_names():
        return False
    spec = get_dataset(dataset)
    columns = set(spec.columns) - {spec.label_column}
    return bool(columns & set(line)) or (not columns and "input" not in line)


def _refuse_misspelt(line: Mapping[str, Any], name: str) -> None:
    """Refuses a field that is nearly one of ours, which is not there; all others are the user's own."""
    for field in line:
        close = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.8)
        if close and close[0] not in line:
            raise UserError(f"{name}: unknown field {field!r}; nearest: {close[0]!r}")


def _question(entry: Mapping[str, Any], name: str) -> tuple[Question, str | None]:
    from flipped_eval.inference import Question

    field = "input" if entry["dataset"] is None else "row"
    if field not in entry:
        there = ", ".join(repr(key) for key, value in entry.items() if value) or "none"
        raise UserError(f"{name}: expected the field {field!r}; there are: {there}")
    for key in ("template", "dataset", "output"):
        if not isinstance(entry[key], (str, type(None))):
            raise UserError(f"{name}: {key}: expected a text, got {entry[key]!r}")
    choices = entry["choices"] or ()
    if not isinstance(choices, (list, tuple)) or not all(isinstance(one, str) for one in choices):
        raise UserError(f"{name}: choices: expected a list of texts, got {choices!r}")
    if not isinstance(entry[field], (str, Mapping)):
        raise UserError(f"{name}: {field}: expected a text or an object, got {entry[field]!r}")
    for text in (entry[field], entry["template"], entry["output"], *choices):
        if isinstance(text, str) and not _is_text(text):
            raise UserError(f"{name}: expected text that UTF-8 can hold, got {ascii(text)[:80]}")
    template = entry["template"]
    if template is not None and entry["dataset"] is None and _JINJA not in template:
        raise UserError(
            f"{name}: template: expected text with {_JINJA}input}}}}, or a dataset of which it is a "
            f"template, got {template!r}"
        )
    asked = entry[field]
    if entry["dataset"] is not None and isinstance(asked, Mapping):
        asked = _ready_row(entry["dataset"], asked, name)
    return Question(asked, tuple(choices), template, entry["dataset"]), entry["output"]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, or a byte of an argument that is not UTF-8
        return False
    return True


def _ready_row(dataset: str, row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A row with the types of its dataset's columns; one without a label gets any, which no prompt shows."""
    from flipped_tasks.datasets import dataset_names, get_dataset
    from flipped_tasks.row_values import fit_columns
    from mixtures import catalog

    assert catalog.TRAINING, "importing the catalog registers its datasets"
    if dataset not in dataset_names():  # promptsource has templates for many more
        return row
    spec = get_dataset(dataset)
    ready = dict(row)
    fit_columns(ready, spec.columns, name)
    label = spec.label_column
    if label is not None and _has_no_label(ready.get(label), spec.unlabelled):
        if allowed := spec.allowed_labels(ready):
            ready[label] = allowed[0]
        elif spec.columns.get(label) != "string":  # a custom dataset that lists no labels
            ready[label] = 0
    return ready


def _has_no_label(value: Any, unlabelled: Sequence[Any]) -> bool:
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return True
    return value in (None, "", *unlabelled)


def in_parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """The items, so many together as are computed at a time."""
    remaining = iter(items)
    while part := list(itertools.islice(remaining, TOGETHER)):
        yield part
