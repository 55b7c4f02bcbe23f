"""SIGKILL at random moments: forked children run a job, and are killed by the clock or at a file operation.

A forked child starts with everything imported, so that a trial takes a second and not ten. The kills by the clock fall
anywhere from the first line to the last; those at a file operation fall into saving, deleting, renaming and locking.
"""

from __future__ import annotations

import functools
import os
import pathlib
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

# Audit events of what Python does to files; https://docs.python.org/3/library/audit_events.html
EVENTS = {
    "fcntl.flock",
    "open",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
}


def run_child(
    job: Callable[[], object],
    folder: pathlib.Path,
    *,
    kill_at: int = 0,
    seconds: float | None = None,
) -> tuple[bool, int]:
    """Runs `job` in a forked child.

    Args:
      folder: file operations below it, and locks, are counted.
      kill_at: the child kills itself before the file operation of this number, from 1; 0 counts them only.
      seconds: the child is killed after so many.

    Returns:
      Whether it was killed, and how many file operations were counted.
    """
    counts = os.memfd_create("counts")
    child = os.fork()
    if not child:
        try:
            _count(str(folder), kill_at, counts)
            job()
            sys.stdout.flush()
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while (
            time.monotonic() < deadline
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    number = int(os.pread(counts, 20, 0) or b"0")
    os.close(counts)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)
    return killed, number


def _count(folder: str, kill_at: int, counts: int) -> None:
    number = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal number
        if event not in EVENTS or (event != "fcntl.flock" and not _is_below(arguments, folder)):
            return
        number += 1
        os.pwrite(counts, str(number).encode(), 0)
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_below(arguments: tuple[object, ...], folder: str) -> bool:
    for one in arguments[:2]:
        if isinstance(one, (str, os.PathLike)) and os.fspath(one).startswith(folder):
            return True
    return False


def kill_again_and_again(
    job: Callable[[pathlib.Path], object],
    check: Callable[[pathlib.Path], object],
    place: pathlib.Path,
    *,
    seed: int,
    kills: int,
) -> dict[str, object]:
    """Starts jobs and kills them until there were so many kills, each job again until it ends by itself.

    Args:
      job: called with its folder, in a child; after a kill again with the same one.
      check: raises where the folder of a job that ended is not that of one which was left alone; called in a child.
      place: gets the folders.
      seed: of the moments.
      kills: how many.

    Returns:
      "kills", of them "by_clock" and "at_file_operation", and the number of jobs that ended.
    """
    for name in ("cold", "alone"):  # the second one finds its programs compiled, as all that follow
        began = time.monotonic()
        killed, operations = run_child(functools.partial(job, place / name), place / name)
        seconds = time.monotonic() - began
        assert not killed and operations > 10
    draw = random.Random(seed)
    told = {"seed": seed, "kills": 0, "by_clock": 0, "at_file_operation": 0, "jobs": 0}
    while told["kills"] < kills:
        folder = place / f"job_{told['jobs']}"
        start = functools.partial(run_child, functools.partial(job, folder), folder)
        while told["kills"] < kills:
            kind = draw.choice(("by_clock", "at_file_operation"))
            if kind == "by_clock":
                killed, _ = start(seconds=draw.uniform(0, seconds))
            else:
                killed, _ = start(kill_at=draw.randint(1, operations))
            if not killed:
                break
            told["kills"] += 1
            told[kind] += 1
        if killed:  # the last kill of all
            start()
        run_child(functools.partial(check, folder), folder)
        told["jobs"] += 1
        print(told, file=sys.stderr, flush=True)
    return told
