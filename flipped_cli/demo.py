"""`flipped demo` and `flipped study`: the methods side by side on made-up data, from nothing to a report.

The demo only calls the public commands (train.py and eval.py with the gin files `gin/runs/demo_*.gin`), two at a
time, so that what it shows is what a user of those commands gets.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import click

from flipped_errors import UserError

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
VOCABULARY = "world.model"
WARMUP = "warmup"
# The columns of the report: label -> (folder of the weights, method of scoring).
COLUMNS: Mapping[str, tuple[str, str]] = {
    "untrained (direct)": (WARMUP, "direct"),
    "untrained (flipped)": (WARMUP, "flipped"),
    "direct": ("direct", "direct"),
    "flipped": ("flipped", "flipped"),
    "flipped_no_ul": ("flipped_no_ul", "flipped"),
}
# What runs beside what: each list is worked off by one process after the other.
LANES = (("flipped",), ("direct", "flipped_no_ul"))
SUITES = ("seen", "nlp14", "labels")
SECONDS_A_LINE = 5.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One command of the demo: its name in the output, its arguments, how many devices it makes of the CPU."""

    name: str
    arguments: tuple[str, ...]
    devices: int = 1


@click.command()
@click.option(
    "--output", default="runs/demo", show_default=True, help="Folder of all that is made."
)
@click.option(
    "--seed", default=0, show_default=True, help="Of weights, order of the data and draws."
)
def demo(output: str, seed: int) -> None:
    """Train DIRECT, FLIPPED and FLIPPED without unlikelihood on made-up data, and compare them.

    What is already there is used again: delete the folder to start anew.
    """
    run_demo(pathlib.Path(output), seed)


@click.command()
@click.option(
    "--output", default="runs/study", show_default=True, help="Folder of all that is made."
)
@click.option("--seeds", default=3, show_default=True, help="How many runs, with seeds 0, 1, ….")
def study(output: str, seeds: int) -> None:
    """Run the demo with several seeds; print mean and spread over them."""
    from flipped_cli import study_table

    folder = pathlib.Path(output)
    for seed in range(seeds):
        run_demo(folder / f"seed_{seed}", seed)
    table = study_table.render([folder / f"seed_{seed}" / "report.json" for seed in range(seeds)])
    (folder / "study.md").write_text(table, encoding="utf-8")
    click.echo(table)
    click.echo(f"table: {folder / 'study.md'}")


def run_demo(folder: pathlib.Path, seed: int) -> None:
    """Prepares, warms up, trains, evaluates and reports into `folder`."""
    if not (CHECKOUT / "gin" / "runs").is_dir():
        raise UserError("the demo needs the checkout's gin folder; run `make demo` in a clone")
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / VOCABULARY
    if not vocabulary.exists():
        click.echo("making the world's vocabulary …")
        from mixtures.world_vocabulary import make_vocabulary

        make_vocabulary(vocabulary)
    click.echo("warm-up on the world's text: it stands in for the LM-adapted checkpoint …")
    _run_lanes([[_training(folder, WARMUP, seed, devices=2)]])
    click.echo("training DIRECT, FLIPPED and FLIPPED without unlikelihood, two at a time …")
    _run_lanes([[_training(folder, name, seed) for name in lane] for lane in LANES])
    click.echo(f"evaluating {len(COLUMNS)} columns on {', '.join(SUITES)} …")
    jobs = [_evaluation(folder, label, seed) for label in COLUMNS]
    _run_lanes([jobs[0::2], jobs[1::2]])
    _report(folder, seed, time.monotonic() - began)


def _training(folder: pathlib.Path, name: str, seed: int, devices: int = 1) -> Job:
    arguments = [
        str(CHECKOUT / "train.py"),
        f"--gin_file={CHECKOUT}/gin/runs/demo_{name}.gin",
        f"--gin.MODEL_DIR='{folder / name}'",
        f"--gin.VOCAB_PATH='{folder / VOCABULARY}'",
        f"--gin.SEED={seed}",
    ]
    if name != WARMUP:
        arguments.append(f"--gin.INITIAL_CHECKPOINT_PATH='{folder / WARMUP}'")
    return Job(name, tuple(arguments), devices)


def _evaluation(folder: pathlib.Path, label: str, seed: int) -> Job:
    weights, method = COLUMNS[label]
    return Job(
        f"eval {label}",
        (
            str(CHECKOUT / "eval.py"),
            f"--gin_file={CHECKOUT}/gin/runs/demo_eval.gin",
            f"--gin.CHECKPOINT_PATH='{folder / weights}'",
            f"--gin.EVAL_OUTPUT_DIR='{_results_folder(folder, label)}'",
            f"--gin.VOCAB_PATH='{folder / VOCABULARY}'",
            f"--gin.METHOD='{method}'",
            f"--gin.LABEL='{label}'",
            f"--gin.SUITES={list(SUITES)!r}",
        ),
    )


def _results_folder(folder: pathlib.Path, label: str) -> pathlib.Path:
    return folder / "eval" / label.translate({ord(" "): "_", ord("("): None, ord(")"): None})


def _report(folder: pathlib.Path, seed: int, seconds: float) -> None:
    from flipped_eval.report import write_report

    report = write_report(
        [_results_folder(folder, label) for label in COLUMNS],
        folder,
        training_runs={name: folder / name for name in (WARMUP, *itertools.chain(*LANES))},
        title="Flipped Learning in miniature",
        extra={
            "seed": seed,
            "seconds": round(seconds),
            "data": "made up: one small closed world behind every dataset",
        },
    )
    click.echo("")
    click.echo(report.summary())
    click.echo(f"report: {folder / 'report.html'}   ({seconds / 60:.1f} minutes)")


def _run_lanes(lanes: Sequence[Sequence[Job]]) -> None:
    """Runs the lanes beside each other, each one's jobs in order; one failure ends them all."""
    failures: list[str] = []
    running: dict[str, subprocess.Popen[str]] = {}

    def work(jobs: Sequence[Job]) -> None:
        for job in jobs:
            if failures:
                return
            process = _start(job)
            running[job.name] = process
            last = _relay(job.name, process)
            if process.wait() and not failures:
                failures.append(f"{job.name} failed with code {process.returncode}: {last}")
                for other in running.values():
                    other.terminate()

    threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        raise
    if failures:
        raise UserError(failures[0])


def _start(job: Job) -> subprocess.Popen[str]:
    # One core a process: two processes of one core do more than one process of two.
    flags = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        f" --xla_force_host_platform_device_count={job.devices}"
    )
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, *job.arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def _relay(name: str, process: subprocess.Popen[str]) -> str:
    """Prints a process' lines behind its name, at most one in `SECONDS_A_LINE`; returns the last one."""
    last, told, shown = "", 0.0, ""
    for line in _lines(process):
        last = line or last
        if line and time.monotonic() - told > SECONDS_A_LINE:
            told, shown = time.monotonic(), line
            click.echo(f"  [{name}] {line}")
    if last != shown:
        click.echo(f"  [{name}] {last}")
    return last


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip()
