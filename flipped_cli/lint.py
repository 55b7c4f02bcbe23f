"""`flipped tasks lint`: is each template fit for training and ranking, on the rows at hand?"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from flipped_cli.options import length_options, module_option
from flipped_cli.path_options import READ
from flipped_core.errors import UserError

if TYPE_CHECKING:
    from flipped_tasks.lint import Report
    from flipped_tasks.tokens import Vocabulary

WRONG_CODE = 1
_CUTS = ("direct inputs", "flipped inputs", "flipped targets", "channel targets")


@click.command("lint")
@click.argument("datasets", nargs=-1)
@click.option("--data_dir", type=READ, help="A folder of rows [default: made-up rows].")
@click.option(
    "--vocab",
    type=READ,
    help="A SentencePiece model, for the checks of token ids and lengths [default: no such checks].",
)
@click.option("--max_examples", "most", type=click.IntRange(min=1), default=400, show_default=True,
              help="Look at so many rows of a dataset.")  # fmt: skip
@length_options(2)
@module_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
@click.pass_context
def lint(
    context: click.Context,
    datasets: Sequence[str],
    data_dir: str | None,
    vocab: str | None,
    most: int,
    inputs_length: int,
    targets_length: int,
    modules: Sequence[str],
    as_json: bool,
) -> None:
    """Check every template of DATASETS, or of all that have rows.

    Exit code 1 where something is wrong: the target is none of the choices, the prompt shows the
    answer, the label belongs to an option that is not shown, no instruction but punctuation, choices
    of the same ids, no usable row. Notes do not count. Without --vocab, ids and lengths go unchecked.

    \b
    flipped tasks lint --data_dir data --vocab sentencepiece.model imdb super_glue/rte
    flipped tasks lint --module my_reviews.py
    """
    from flipped_cli import quiet
    from flipped_cli.checks import check_data_dir, find_dataset
    from flipped_tasks.tokens import Vocabulary
    from mixtures.modules import load

    check_data_dir(data_dir)
    load(modules)
    for dataset in datasets:
        find_dataset(dataset, modules)
    vocabulary = Vocabulary.from_file(vocab) if vocab else None
    quiet.import_for_rows(data_dir)
    lengths = {"inputs": inputs_length, "targets": targets_length}
    wrong = 0
    reports = []
    for dataset in datasets or _with_rows(data_dir, modules):
        for report in reports_of(dataset, data_dir, vocabulary, lengths, most):
            wrong += len(report.wrong)
            if as_json:
                click.echo(json.dumps(as_dict(report), ensure_ascii=False))
            reports.append(report)
    if not as_json:
        _print(reports, vocabulary is not None, lengths)
    if wrong:
        context.exit(WRONG_CODE)


def _with_rows(data_dir: str | None, modules: Sequence[str]) -> list[str]:
    """The catalog's datasets that have rows here, and one's own; only the latter where a module is named."""
    from flipped_tasks.sources import split_names
    from mixtures import catalog, own

    found = []
    for name in [*catalog.TRAINING, *catalog.EVALUATION] if not modules else []:
        try:
            split_names(name, data_dir)
        except UserError:
            continue
        found.append(name)
    found += own.own_datasets()
    if not found:
        raise UserError(f"nothing to lint: no dataset has rows in {data_dir!r}")
    return found


def reports_of(
    dataset: str,
    data_dir: str | None,
    vocabulary: Vocabulary | None,
    lengths: dict[str, int],
    most: int,
) -> Iterator[Report]:
    """The reports of a dataset's templates, sorted by name.

    Raises:
      UserError: an unknown dataset, or rows that cannot be read or contradict the catalog.
    """
    from flipped_tasks import datasets, promptsource
    from flipped_tasks.lint import Report, lint_template
    from flipped_tasks.rendering import compile_template

    spec = datasets.get_dataset(dataset)
    rows, unlabelled = _labelled_rows(dataset, data_dir, most)
    for name, template in promptsource.load_templates(dataset).items():
        left_out = {**spec.unusable, **spec.excluded_templates}.get(name, "")
        if not template.answer_choices:
            left_out = "it has no answer choices"
        if left_out:
            yield Report(dataset, name, left_out=left_out)
            continue
        report = lint_template(spec, compile_template(template), rows, vocabulary, lengths)
        if unlabelled:
            report.dropped["unlabelled"] += unlabelled
            report.notes.append(f"{unlabelled} of {unlabelled + len(rows)} rows are unlabelled")
        if name in spec.notes:
            report.notes.append(f"known: {spec.notes[name]}")
        yield report


def _labelled_rows(
    dataset: str, data_dir: str | None, most: int
) -> tuple[list[dict[str, Any]], int]:
    """The first labelled rows of the split that is trained on, or else evaluated; and how many had no label."""
    from flipped_tasks import datasets, sources

    spec = datasets.get_dataset(dataset)
    splits = sources.split_names(dataset, data_dir)
    order = sorted(splits, key=lambda name: (not name.startswith("train"), "test" in name, name))
    rows = sources.load_rows(dataset, order[0], data_dir)
    kept: list[dict[str, Any]] = []
    unlabelled = 0
    for number, row in enumerate(itertools.islice(rows, most), start=1):
        if spec.check_row(row, number) is None:
            kept.append(row)
        else:
            unlabelled += 1
    if not kept:
        raise UserError(
            f"dataset {dataset!r}, split {order[0]!r}: no labelled row among {unlabelled}"
        )
    return kept, unlabelled


def as_dict(report: Report) -> dict[str, Any]:
    """A report as plain values, with its verdict."""
    plain = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return plain | {"dropped": dict(report.dropped), "verdict": verdict(report)}


def verdict(report: Report) -> str:
    """'wrong', 'note', 'ok' or 'left out'."""
    if report.left_out:
        return "left out"
    return "wrong" if report.wrong else "note" if report.notes else "ok"


def _print(reports: Sequence[Report], with_ids: bool, lengths: dict[str, int]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from flipped_cli.tables import show

    table = Table(
        title=f"Templates on rows; cut: at {lengths['inputs']}/{lengths['targets']} tokens"
    )
    heads = ("verdict", "choices", "draws", "dropped", "answer shown alone")
    table.add_column("template", overflow="fold", min_width=24)
    for name in (*heads, *(f"cut {name}" for name in _CUTS if with_ids)):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    table.add_column("why", overflow="fold", min_width=40)
    for dataset, group in itertools.groupby(reports, key=lambda report: report.dataset):
        table.add_section()
        for number, report in enumerate(group):
            word = verdict(report)
            style = {"wrong": "bold red", "ok": "green"}.get(word)
            cells = [escape(text) for text in _cells(report, with_ids)]
            name = (f"[bold]{escape(dataset)}[/]\n" if number == 0 else "") + escape(
                report.template
            )
            table.add_row(name, f"[{style}]{word}[/]" if style else word, *cells)
    show(table)
    counts = Counter(verdict(report) for report in reports)
    click.echo(", ".join(f"{counts[word]} {word}" for word in ("ok", "note", "wrong", "left out")))
    if not with_ids:
        click.echo("token ids and lengths are unchecked: give --vocab")


def _cells(report: Report, with_ids: bool) -> list[str]:
    """What stands behind the verdict."""
    if report.left_out:
        return [*[""] * (4 + len(_CUTS) * with_ids), report.left_out]
    looked = report.rows + report.dropped["unlabelled"]
    cuts = [f"{report.cut.get(name, 0):.0%}" for name in _CUTS if with_ids]
    return [
        report.choices + (" fixed" if report.fixed else ""),
        "yes" if report.draws else "",
        f"{report.dropped.total() / max(1, looked):.0%}",
        f"{report.shown:.0%}",
        *cuts,
        "; ".join([*report.wrong, *report.notes]),
    ]
