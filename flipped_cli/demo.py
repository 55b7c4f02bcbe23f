"""`flipped demo` and `flipped study`: the methods side by side on made-up data, from a checkpoint to a report.

The demo only calls the public commands (train.py and eval.py with the gin files `gin/runs/demo_*.gin`), two at a
time, so that it shows what a user of those commands gets.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping

import click

import flipped_world
from flipped_cli.path_options import LOCAL
from flipped_cli.side_by_side import Command, run_commands
from flipped_core import interrupts, locks
from flipped_core.errors import UserError
from flipped_core.paths import to_local_path

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
PRETRAINED = "pretrained"
# The columns of the report that do not depend on the seed: label -> method of scoring.
STARTS: Mapping[str, str] = {"pretrained (direct)": "direct", "pretrained (flipped)": "flipped"}
# The trainings, the longest first, so that the rest fits beside it: label -> method of scoring.
MAIN: Mapping[str, str] = {"flipped": "flipped", "direct": "direct"}
TRAININGS: Mapping[str, str] = {**MAIN, "flipped_no_ul": "flipped"}
CHANNEL: Mapping[str, str] = {"channel": "channel"}
SUITES = ("seen", "nlp14", "labels")
SEEDS = 5


@click.command()
@click.option(
    "--output",
    type=LOCAL,
    default="runs/demo",
    show_default=True,
    help="Folder of all that is made.",
)
@click.option("--seed", default=0, show_default=True, help="Of order of the data and draws.")
def demo(output: str, seed: int) -> None:
    """Train DIRECT, FLIPPED and FLIPPED without unlikelihood on made-up data, and compare them.

    All start from the pre-trained miniature that ships with this package. What is already there is used again:
    delete the folder to start anew.

    \b
    flipped demo --output runs/demo
    """
    folder = to_local_path(output, "--output")
    run_demo(folder, seed, folder / PRETRAINED, TRAININGS)


@click.command()
@click.option(
    "--output",
    type=LOCAL,
    default="runs/study",
    show_default=True,
    help="Folder of all that is made.",
)
@click.option(
    "--seeds", default=SEEDS, show_default=True, help="How many runs, with seeds 0, 1, …."
)
def study(output: str, seeds: int) -> None:
    """Run the demo, and CHANNEL, with several seeds; print mean and spread over them.

    \b
    flipped study --output runs/study --seeds 5
    """
    from flipped_cli import study_table

    if seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {seeds}")
    folder = to_local_path(output, "--output")
    # One method more in each pass, so that FLIPPED and DIRECT are there early for all seeds.
    for trainings in (MAIN, TRAININGS, {**TRAININGS, **CHANNEL}):
        for seed in range(seeds):
            run_demo(folder / f"seed_{seed}", seed, folder / PRETRAINED, trainings)
    click.echo(study_table.write(folder, [folder / f"seed_{seed}" for seed in range(seeds)]))


def run_demo(
    folder: pathlib.Path, seed: int, starts: pathlib.Path, trainings: Mapping[str, str]
) -> None:
    """Trains, evaluates and reports into `folder`.

    Args:
      folder: made where missing.
      seed: of the trainings.
      starts: folder for the evaluations of the pre-trained checkpoint, which the seeds share.
      trainings: label -> method of scoring.
    """
    if not (CHECKOUT / "gin" / "runs").is_dir():
        raise UserError("the demo needs the checkout's gin folder; run `make demo` in a clone")
    kept = f"what was trained and evaluated is kept in {folder}, and the same command resumes there"
    with interrupts.at_once(lambda: kept), locks.hold(folder, "--output"):
        _run_demo(folder, seed, starts, trainings)


def _run_demo(
    folder: pathlib.Path, seed: int, starts: pathlib.Path, trainings: Mapping[str, str]
) -> None:
    """`run_demo`, in a folder that is held."""
    began = time.monotonic()
    click.echo(
        f"training {', '.join(trainings)} from the pre-trained miniature, and evaluating each on "
        f"{', '.join(SUITES)}, two at a time …"
    )
    compiled = folder.parent / "compiled"
    results = {label: starts / method for label, method in STARTS.items()}
    results |= {label: folder / "eval" / label for label in trainings}
    commands = [_training(compiled, folder, label, seed) for label in trainings]
    for label, method in {**STARTS, **trainings}.items():
        weights = folder / label if label in trainings else flipped_world.PRETRAINED
        after = label if label in trainings else None
        commands.append(_evaluation(compiled, label, method, weights, results[label], after))
    run_commands(commands)
    _report(folder, seed, results, trainings, time.monotonic() - began)


def _training(compiled: pathlib.Path, folder: pathlib.Path, label: str, seed: int) -> Command:
    arguments = (
        str(CHECKOUT / "train.py"),
        f"--gin_file={CHECKOUT}/gin/runs/demo_{label}.gin",
        f"--gin.MODEL_DIR={str(folder / label)!r}",
        f"--gin.VOCAB_PATH={str(flipped_world.VOCABULARY)!r}",
        f"--gin.INITIAL_CHECKPOINT_PATH={str(flipped_world.PRETRAINED)!r}",
        f"--gin.SEED={seed}",
    )
    return Command(label, compiled, arguments)


def _evaluation(
    compiled: pathlib.Path,
    label: str,
    method: str,
    weights: pathlib.Path,
    results: pathlib.Path,
    after: str | None,
) -> Command:
    arguments = (
        str(CHECKOUT / "eval.py"),
        f"--gin_file={CHECKOUT}/gin/runs/demo_eval.gin",
        f"--gin.CHECKPOINT_PATH={str(weights)!r}",
        f"--gin.EVAL_OUTPUT_DIR={str(results)!r}",
        f"--gin.VOCAB_PATH={str(flipped_world.VOCABULARY)!r}",
        f"--gin.METHOD={method!r}",
        f"--gin.LABEL={label!r}",
        f"--gin.SUITES={list(SUITES)!r}",
    )
    return Command(f"eval {label}", compiled, arguments, after)


def _report(
    folder: pathlib.Path,
    seed: int,
    results: Mapping[str, pathlib.Path],
    trainings: Mapping[str, str],
    seconds: float,
) -> None:
    from flipped_eval.report import write_report

    report = write_report(
        list(results.values()),
        folder,
        training_runs={label: folder / label for label in trainings},
        title="Flipped Learning in miniature",
        compare=("direct", "flipped"),
        extra={
            "seed": seed,
            "seconds": round(seconds),
            "data": "made up: one small closed world behind every dataset",
        },
    )
    click.echo("")
    click.echo(report.summary())
    click.echo(f"report: {folder / 'report.html'}   ({seconds / 60:.1f} minutes)")
