"""`flipped demo` and `flipped study`: the methods side by side on made-up data, from nothing to a report.

The demo only calls the public commands (train.py and eval.py with the gin files `gin/runs/demo_*.gin`), two at a
time, so that what it shows is what a user of those commands gets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import click

from flipped_core import interrupts, locks
from flipped_core.errors import UserError

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
# The longest first, so that the rest fits beside it.
TRAININGS = ("flipped", "direct", "flipped_no_ul")
SUITES = ("seen", "nlp14", "labels")
SECONDS_A_LINE = 5.0
SECONDS_TO_SAVE = 30.0
# One core a process: two processes of one core do more than one process of two.
CORES = 2

# XLA's buffers above 32 MiB would be given back to the system after every step and zeroed page by page for the next
# one, a third of a small model's step; these settings of glibc keep them (docs/miniature.md has the measurement).
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**27),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command of the demo.

    Attributes:
      name: in the output.
      compiled: a folder of compiled programs, shared by the jobs: three columns run one program of scoring.
      arguments: of Python.
      after: the job that must have ended before.
      devices: how many devices it makes of the CPU.
    """

    name: str
    compiled: pathlib.Path
    arguments: tuple[str, ...]
    after: str | None = None
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
    kept = f"what was trained and evaluated is kept in {folder}, and the same command resumes there"
    with interrupts.at_once(lambda: kept), locks.hold(folder, "--output"):
        _run_demo(folder, seed)


def _run_demo(folder: pathlib.Path, seed: int) -> None:
    """`run_demo`, in a folder that is held."""
    began = time.monotonic()
    vocabulary = folder / VOCABULARY
    if not vocabulary.exists():
        click.echo("making the world's vocabulary …")
        from mixtures.world_vocabulary import make_vocabulary

        make_vocabulary(vocabulary)
    click.echo("warm-up on the world's text: it stands in for the LM-adapted checkpoint …")
    _run([_training(folder, WARMUP, seed)])
    click.echo(
        "training DIRECT, FLIPPED and FLIPPED without unlikelihood, and evaluating each on "
        f"{', '.join(SUITES)}, two at a time …"
    )
    _run(
        [
            *(_training(folder, name, seed) for name in TRAININGS),
            *(_evaluation(folder, label) for label in COLUMNS),
        ]
    )
    _report(folder, seed, time.monotonic() - began)


def _training(folder: pathlib.Path, name: str, seed: int) -> Job:
    arguments = [
        str(CHECKOUT / "train.py"),
        f"--gin_file={CHECKOUT}/gin/runs/demo_{name}.gin",
        f"--gin.MODEL_DIR='{folder / name}'",
        f"--gin.VOCAB_PATH='{folder / VOCABULARY}'",
        f"--gin.SEED={seed}",
    ]
    if name != WARMUP:
        arguments.append(f"--gin.INITIAL_CHECKPOINT_PATH='{folder / WARMUP}'")
    devices = CORES if name == WARMUP else 1
    return Job(name, _compiled_folder(folder), tuple(arguments), devices=devices)


def _evaluation(folder: pathlib.Path, label: str) -> Job:
    weights, method = COLUMNS[label]
    return Job(
        f"eval {label}",
        _compiled_folder(folder),
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
        after=weights,
    )


def _compiled_folder(folder: pathlib.Path) -> pathlib.Path:
    return folder.parent / "compiled"


def _results_folder(folder: pathlib.Path, label: str) -> pathlib.Path:
    return folder / "eval" / label.translate({ord(" "): "_", ord("("): None, ord(")"): None})


def _report(folder: pathlib.Path, seed: int, seconds: float) -> None:
    from flipped_eval.report import write_report

    report = write_report(
        [_results_folder(folder, label) for label in COLUMNS],
        folder,
        training_runs={name: folder / name for name in (WARMUP, *TRAININGS)},
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


def _run(jobs: Sequence[Job]) -> None:
    """Runs the jobs, as many at a time as there are cores, each after the one it waits for; one failure ends all."""
    waiting, unfinished = list(jobs), {job.name for job in jobs}
    running: dict[str, subprocess.Popen[str]] = {}
    failures: list[str] = []
    changed = threading.Condition()

    def next_job() -> Job | None:
        with changed:
            while waiting and not failures:
                for job in waiting:
                    if job.after not in unfinished:
                        waiting.remove(job)
                        running[job.name] = _start(job)
                        return job
                changed.wait()
        return None

    def work() -> None:
        while job := next_job():
            last = _relay(job.name, running[job.name])
            code = running[job.name].wait()
            with changed:
                del running[job.name]
                unfinished.discard(job.name)
                if code and not failures:
                    failures.append(f"{job.name} failed with code {code}: {last}")
                    for other in running.values():
                        other.terminate()
                changed.notify_all()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(CORES)]
    for worker in workers:
        worker.start()
    try:
        with interrupts.at_once(clean_up=lambda: _stop(running)):
            for worker in workers:
                worker.join()
    except KeyboardInterrupt:
        _stop(running)
        raise
    if failures:
        raise UserError(failures[0])


def _stop(running: Mapping[str, subprocess.Popen[str]]) -> None:
    """Ends the jobs, which save what they have."""
    processes = list(running.values())
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_SAVE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _start(job: Job) -> subprocess.Popen[str]:
    flags = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        f" --xla_force_host_platform_device_count={job.devices}"
    )
    environment = {
        **os.environ,
        **KEEP_MEMORY,
        "JAX_COMPILATION_CACHE_DIR": str(job.compiled.absolute()),
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
        process_group=0,  # a terminal's Ctrl-C reaches this process only, which ends them once and not twice
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
