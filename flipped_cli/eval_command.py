"""`flipped eval`: checkpoints, methods and suites in one job, without a gin file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from flipped_cli import offline as network
from flipped_cli.words import SeveralWords
from flipped_core.errors import UserError

FEATURES = ("inputs", "targets")


@click.command("eval", cls=SeveralWords)
@click.option("--checkpoint", multiple=True, required=True, metavar="DIR…", help="Checkpoints.")
@click.option(
    "--suite",
    multiple=True,
    default=("nlp14", "labels"),
    show_default=True,
    metavar="NAME…",
    help="nlp14, bigbench14, labels, seen; or DATASET, DATASET:TEMPLATE.",
)
@click.option("--methods", multiple=True, metavar="METHOD…", help="direct, channel, flipped.")
@click.option("--output", required=True, metavar="DIR", help="Folder of the results.")
@click.option("--data_dir", envvar="FLIPPED_DATA_DIR", help="Folder of rows; else made-up ones.")
@click.option("--vocab", help="SentencePiece model; else that of the training.")
@click.option("--max_examples", type=int, help="Examples of each template.")
@click.option("--templates", default="original", show_default=True, help="original or all.")
@click.option(
    "--split",
    multiple=True,
    metavar="DATASET=SPLIT…",
    help="Another split than the suite's: imdb=train.",
)
@click.option("--exclude", multiple=True, metavar="DATASET…", help="Datasets to leave out.")
@click.option("--label_sets", help="A file like mixtures/label_sets.yaml.")
@click.option("--label", multiple=True, metavar="NAME…", help="Names of the runs in reports.")
@click.option("--inputs", type=int, help="Most tokens of inputs; else those of the training.")
@click.option("--targets", type=int, help="Most tokens of targets.")
@click.option("--no_eos", is_flag=True, help="Inputs end without </s>; else as in the training.")
@click.option("--length_normalize", is_flag=True, help="Rank by log-probability per token.")
@click.option("--batch_size", type=int, help="Targets that are scored at a time.")
@click.option("--model_parallelism", type=int, default=1, help="Devices that share the weights.")
@click.option("--seed", default=0, show_default=True, help="Of samples and draws.")
@click.option("--module", multiple=True, metavar="FILE…", help="Registers one's own datasets.")
@click.option("--plan", is_flag=True, help="Tell what would be scored, and stop.")
@click.option("--coordinator_address", help="Of several processes: HOST:PORT of the first.")
@click.option("--process_count", type=int, help="How many there are.")
@click.option("--process_id", type=int, help="This one's number, from 0.")
@click.option("--coordinator_timeout", type=float, default=300.0, help="Seconds to wait for them.")
@click.option("--offline", is_flag=True, help="Open no network connection.")
def evaluate(**given: Any) -> None:
    """Evaluate checkpoints on suites by rank classification.

    Tells first what will be scored and about how long it takes. A job that was stopped goes on where it
    stopped; other checkpoints, methods and suites may be added to the same folder. `flipped report DIR`
    makes a page of the results. The exit code is 2 where a task could not be run.

    \b
    flipped eval --checkpoint runs/a runs/b --suite nlp14 labels --methods direct flipped --output out
    """
    if given.pop("offline"):
        network.go_offline()
    from flipped_cli import evaluation

    lengths = {name: given.pop(name) for name in FEATURES}
    if None in lengths.values() and set(lengths.values()) != {None}:
        raise UserError("--inputs and --targets: expected both or neither")
    summary = evaluation.evaluate(
        checkpoint_path=given.pop("checkpoint"),
        suites=given.pop("suite"),
        method=given.pop("methods") or None,
        output_dir=given.pop("output"),
        vocab_path=given.pop("vocab"),
        lengths=None if None in lengths.values() else lengths,
        input_eos=False if given.pop("no_eos") else None,
        splits=_splits(given.pop("split")),
        exclude_datasets=given.pop("exclude"),
        label=given.pop("label") or None,
        task_modules=given.pop("module"),
        plan_only=given.pop("plan"),
        **given,
    )
    evaluation.conclude(summary)


def _splits(words: Sequence[str]) -> dict[str, str]:
    """dataset -> split."""
    splits = {}
    for word in words:
        dataset, sign, split = word.partition("=")
        if not (dataset and sign and split):
            raise UserError(f"--split: expected DATASET=SPLIT, such as imdb=train, got {word!r}")
        splits[dataset] = split
    return splits
