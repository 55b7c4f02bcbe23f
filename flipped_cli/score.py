"""`flipped score`: log-probabilities of choices, from the command line, a JSON Lines file or stdin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from flipped_cli.questions import (
    RECORDED_OPTIONS,
    ListCommand,
    in_parts,
    load_model,
    read_questions,
    shared_options,
)


@click.command(cls=ListCommand)
@shared_options
@click.option("--choices", multiple=True, help="The options: --choices bad good great.")
@click.option(
    "--batch_tokens", type=click.IntRange(min=1), help="Tokens that are computed at a time."
)
def score(
    checkpoint: str,
    method: str | None,
    modules: Sequence[str],
    batch_tokens: int | None,
    **asked: Any,
) -> None:
    """Print the log-probability of each choice, and which is the highest: one JSON object for each question.

    \b
    flipped score --checkpoint DIR --template "Review: {{input}} Is it good or bad?" \\
      --input "The plot never arrives." --choices good bad
    flipped score --checkpoint DIR --dataset super_glue/rte --template "GPT-3 style" --input '{"premise": …}'
    flipped score --checkpoint DIR --jsonl questions.jsonl
    flipped score --checkpoint DIR --dataset super_glue/rte --template "GPT-3 style" --jsonl rows.jsonl

    A line of the file is {"input": …, "choices": […]} or {"dataset": …, "template": …, "row": {…}}, or with --dataset
    a row itself; rows need no label. What a line does not say, the options say. Results come in the same order:
    {"choices": […], "logprobs": […], "prediction": place of the highest, "prediction_text": that choice}, with "notes"
    where something was truncated or choices cannot be told apart.
    """
    from mixtures.modules import load

    recorded = {name: asked.pop(name) for name in RECORDED_OPTIONS}
    load(modules)
    model = None
    for part in in_parts(read_questions(**asked)):
        # The first questions are read before the checkpoint, so that a mistake in them is told at once.
        if model is None:
            options = {"batch_tokens": batch_tokens}
            model = load_model(checkpoint, method, recorded, options)
        names, questions, _ = zip(*part, strict=True)
        for scored in model.score(questions, names=names):
            line: dict[str, Any] = {
                "choices": list(scored.choices),
                "logprobs": list(scored.logprobs),
                "prediction": scored.prediction,
                "prediction_text": scored.prediction_text,
            }
            if scored.notes:
                line["notes"] = list(scored.notes)
            click.echo(json.dumps(line, ensure_ascii=False))
