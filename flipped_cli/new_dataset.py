"""`flipped tasks new`: a module that registers a dataset of one's own, with rows to start from."""

from __future__ import annotations

import json
import re

import click

from flipped_cli.path_options import LOCAL
from flipped_core.errors import UserError
from flipped_core.paths import to_local_path

_MODULE = '''\
"""The dataset {name}: registered for DIRECT, CHANNEL and FLIPPED, and mixed into the training mixtures."""

import pathlib

from mixtures.own import Template, add_dataset, add_to_mixture

ASK = "Text: {{{{text}}}}\\nIs the writer content with it?"
ANSWER = "{{{{answer_choices[label]}}}}"
add_dataset(
    "{name}",
    source=pathlib.Path(__file__).with_name("{name}"),  # <split>.jsonl, .jsonl.gz, .parquet or .csv
    label_column="label",
    label_values=(0, 1),
    templates=[Template("content", ASK, ANSWER, choices=("no", "yes"))],
)
add_to_mixture("train", "{name}", rate=1000)
'''
_ROWS = (
    ("It does what I bought it for.", 1),
    ("It broke on the second day.", 0),
    ("I would buy it again.", 1),
    ("Nobody answered my letters.", 0),
)


@click.command("new")
@click.argument("name")
@click.option(
    "--folder", type=LOCAL, default=".", show_default=True, help="Where the files are written."
)
def new(name: str, folder: str) -> None:
    """Write NAME.py and NAME/train.jsonl: a custom dataset that works at once.

    \b
    flipped tasks new my_reviews
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"dataset name: expected small letters, digits and _, such as my_reviews, got {name!r}"
        )
    place = to_local_path(folder, "--folder")
    module = place / f"{name}.py"
    rows = place / name / "train.jsonl"
    for path in (module, rows):
        if path.exists():
            raise UserError(f"{path} exists already; expected another name or --folder")
    try:
        rows.parent.mkdir(parents=True, exist_ok=True)
        rows.write_text(
            "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in _ROWS),
            encoding="utf-8",
        )
        module.write_text(_MODULE.format(name=name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    click.echo(f"wrote {module} and {rows}; next:")
    click.echo(f"  flipped tasks render --module {module} --dataset {name} --all")
    click.echo(f"  flipped tasks lint --module {module} {name}")
    click.echo("  flipped mixtures show --module " + f"{module} flipped_train")
