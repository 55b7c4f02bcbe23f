"""`flipped generate`: what a model writes: a label, a prompt, or the instruction that it guesses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from flipped_cli.questions import (
    RECORDED_OPTIONS,
    in_parts,
    load_model,
    read_questions,
    shared_options,
)


@click.command()
@shared_options
@click.option("--output", help="With CHANNEL and FLIPPED: the label to generate from.")
@click.option(
    "--beams", type=click.IntRange(min=1), default=1, show_default=True, help="Beams; 1 is greedy."
)
@click.option(
    "--max_tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of an answer."
)
def generate(
    checkpoint: str,
    method: str | None,
    modules: Sequence[str],
    beams: int,
    max_tokens: int,
    **asked: Any,
) -> None:
    """Print what the model writes: DIRECT a label, CHANNEL a prompt, FLIPPED the instruction that it guesses.

    \b
    flipped generate --checkpoint DIR --method flipped --output Positive \\
      --input "this is the best cast iron skillet you will ever buy"
    flipped generate --checkpoint DIR --method direct --template "Review: {{input}} Is it good or bad?" \\
      --input "The plot never arrives."

    Without --template a FLIPPED input has a hole on either side, as in the public model card. One JSON object for each
    input: {"text": …, "log_prob": …, "complete": false where it was cut at --max_tokens}, with FLIPPED also "prompt",
    the input with the guessed spans in place of its holes.
    """
    from mixtures.modules import load

    recorded = {name: asked.pop(name) for name in RECORDED_OPTIONS}
    load(modules)
    model = None
    for part in in_parts(read_questions(**asked)):
        if model is None:
            model = load_model(checkpoint, method, recorded)
        names, questions, outputs = zip(*part, strict=True)
        answers = model.generate(
            questions,
            outputs=[output or "" for output in outputs],
            num_beams=beams,
            max_tokens=max_tokens,
            names=names,
        )
        for answer in answers:
            line = {"text": answer.text, "log_prob": answer.log_prob, "complete": answer.complete}
            if answer.prompt is not None:
                line["prompt"] = answer.prompt
            if answer.notes:
                line["notes"] = list(answer.notes)
            click.echo(json.dumps(line, ensure_ascii=False))
