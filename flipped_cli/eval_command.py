"""`flipped eval`: checkpoints, methods and suites in one job, without a gin file."""

from __future__ import annotations

from typing import Any

import click

from flipped_cli import offline as network
from flipped_cli.options import run_of, settings_options
from flipped_cli.runs import EvalRun
from flipped_cli.words import SeveralWords


@click.command("eval", cls=SeveralWords)
@settings_options(EvalRun)
@click.option("--offline", is_flag=True, help="Open no network connection.")
def evaluate(offline: bool, **given: Any) -> None:
    """Evaluate checkpoints on suites by rank classification.

    Prints first what will be scored and about how long it takes. A job that was stopped resumes where it
    stopped; other checkpoints, methods and suites may be added to the same folder. `flipped report DIR`
    makes a page of the results. The exit code is 2 where a task could not be run, with --plan where one cannot be.

    \b
    flipped eval --checkpoint runs/a runs/b --suite nlp14 labels --method direct flipped --output out
    """
    run = run_of(EvalRun, given)
    if offline:
        network.go_offline()
    from flipped_cli import evaluation

    evaluation.conclude(evaluation.evaluate(run))
