"""`flipped mixtures`: which datasets a mixture holds, and how often each of them is met."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from flipped_cli.options import module_option
from flipped_cli.path_options import READ
from flipped_core.errors import unknown

_NAMED = 3  # datasets that a warning names


@click.group()
def mixtures() -> None:
    """Show what a mixture holds, and at which rates."""


@mixtures.command("show")
@click.argument("name")
@click.option(
    "--steps", type=click.IntRange(min=1), default=5000, show_default=True, help="Training steps."
)
@click.option(
    "--batch_size",
    type=click.IntRange(min=1),
    default=240,
    show_default=True,
    help="Examples per step.",
)
@click.option("--rates", default="recipe", show_default=True, help="recipe, rows or equal.")
@click.option(
    "--data_dir", type=READ, help="A folder of rows, for --rates rows [default: made-up rows]."
)
@module_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
def show_mixture(
    name: str,
    steps: int,
    batch_size: int,
    rates: str,
    data_dir: str | None,
    modules: Sequence[str],
    as_json: bool,
) -> None:
    """Print the datasets of a mixture such as flipped_train: templates, n, rate, share, examples, epochs.

    n is the number of training examples, at most 500,000; a dataset is drawn in proportion to n and its
    templates alike. Examples and epochs are what is expected in STEPS × BATCH_SIZE examples; an epoch is n
    examples. Datasets that do not reach one epoch are named in a warning.

    \b
    flipped mixtures show flipped_train
    flipped mixtures show flipped_train --module my_reviews.py --steps 500 --batch_size 32
    """
    from flipped_cli import quiet
    from mixtures import own
    from mixtures.modules import load

    load(modules)
    quiet.import_tensorflow()
    rows = rows_of(name, steps * batch_size, rates, data_dir)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    from rich.table import Table

    from flipped_cli.tables import show

    total = sum(row["rate"] for row in rows)
    table = Table(
        title=f"{name}: {len(rows)} datasets, {steps:,} steps of {batch_size}", show_footer=True
    )
    footers = (
        "all",
        str(sum(row["templates"] for row in rows)),
        "",
        f"{total:,.0f}",
        "100.00%",
        f"{steps * batch_size:,}",
        "",
    )
    heads = ("dataset", "templates", "n", "rate", "share", "examples", "epochs")
    for head, foot in zip(heads, footers, strict=True):
        table.add_column(head, foot, justify="left" if head == "dataset" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["dataset"], str(row["templates"]), "–" if row["n"] is None else f"{row['n']:,}",
            f"{row['rate']:,.6g}", f"{row['share']:.2%}", expected_number(row["examples"]),
            "–" if row["epochs"] is None else f"{row['epochs']:.3g}",
        )  # fmt: skip
    show(table, width=110)
    epochs = {row["dataset"]: row["epochs"] for row in rows}
    if warning := below_one_epoch(epochs, own.own_datasets()):
        click.echo(warning)


def expected_number(examples: float) -> str:
    """A number of examples that is expected: whole from 10 on."""
    return f"{examples:,.0f}" if examples >= 10 else f"{examples:.2g}"


def below_one_epoch(epochs: Mapping[str, float | None], custom: Collection[str]) -> str:
    """A line that names the datasets of which not all examples are met; "" where there are none.

    Args:
      epochs: dataset -> expected number in the run.
      custom: the names among them whose rate the user has chosen.
    """
    short = {name: number for name, number in epochs.items() if number is not None and number < 1}
    if not short:
        return ""
    least = sorted(short, key=lambda name: short[name])
    listed = ", ".join(f"{name} ({short[name]:.2g})" for name in least[:_NAMED])
    more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    hint = "; a custom dataset gets more with add_to_mixture(…, share=0.1)"
    return (
        f"warning: {len(short)} of {len(epochs)} datasets get less than one epoch: {listed}{more}"
        f"{hint if len(epochs) > 1 and set(short) & set(custom) else ''}"
    )


def rows_of(name: str, examples: int, rates: str, data_dir: str | None) -> list[dict[str, Any]]:
    """A row for each dataset of a mixture, as plain values; `examples` are drawn in all.

    Raises:
      UserError: no mixture of that name, or another kind of rates.
    """
    from flipped_tasks.datasets import get_dataset, usable_templates
    from flipped_tasks.methods import METHODS
    from flipped_tasks.sources import MAX_EXAMPLES, labelled_payloads
    from mixtures import own
    from mixtures.registration import mixture_name, mixture_rates

    names = {
        mixture_name(method, mixture=base): (method, base)
        for method in METHODS
        for base in own.mixture_names()
    }
    if name not in names:
        raise unknown("mixture", name, names)
    method, base = names[name]
    weights = mixture_rates(base, rates, data_dir)
    total = sum(weights.values())
    rows = []
    for dataset, rate in weights.items():
        spec = get_dataset(dataset)
        if spec.rows is not None or rates == "rows":
            count: int | None = len(labelled_payloads(dataset, "train", data_dir))
        else:
            count = spec.splits.get("train")
        count = None if count is None else min(count, MAX_EXAMPLES)
        share = rate / total
        rows.append(
            {
                "dataset": dataset,
                "templates": len(usable_templates(spec, method)),
                "n": count,
                "rate": rate,
                "share": share,
                "examples": share * examples,
                "epochs": None if not count else share * examples / count,
            }
        )
    return rows
