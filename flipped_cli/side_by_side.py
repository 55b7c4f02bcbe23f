"""Runs commands beside each other, one core each, and prints their lines behind their names."""

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

from flipped_core import interrupts
from flipped_core.errors import UserError

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
class Command:
    """One command, such as a training, as a process of its own.

    Attributes:
      name: in the output.
      compiled: folder of compiled programs, which the commands share.
      arguments: of Python.
      after: the command that must have ended before.
      devices: how many devices it makes of the CPU.
    """

    name: str
    compiled: pathlib.Path
    arguments: tuple[str, ...]
    after: str | None = None
    devices: int = 1


def run_commands(commands: Sequence[Command]) -> None:
    """Runs the commands, one a core, each after the one it waits for; the first failure ends all."""
    waiting, unfinished = list(commands), {command.name for command in commands}
    running: dict[str, subprocess.Popen[str]] = {}
    failures: list[str] = []
    changed = threading.Condition()

    def next_command() -> Command | None:
        with changed:
            while waiting and not failures:
                for command in waiting:
                    if command.after not in unfinished:
                        waiting.remove(command)
                        running[command.name] = _start(command)
                        return command
                changed.wait()
        return None

    def work() -> None:
        while command := next_command():
            last = _relay(command.name, running[command.name])
            code = running[command.name].wait()
            with changed:
                del running[command.name]
                unfinished.discard(command.name)
                if code and not failures:
                    failures.append(f"{command.name} failed with code {code}: {last}")
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
    """Ends the commands, which save what they have."""
    processes = list(running.values())
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_SAVE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _start(command: Command) -> subprocess.Popen[str]:
    flags = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        f" --xla_force_host_platform_device_count={command.devices}"
    )
    environment = {
        **os.environ,
        **KEEP_MEMORY,
        "JAX_COMPILATION_CACHE_DIR": str(command.compiled.absolute()),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, *command.arguments],
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
