"""How a command ends: exit codes, and one line on stderr for a mistake of the user or a failure of the machine.

| code | |
|---|---|
| 0 | the work is done; of training also: stopped by SIGTERM, and saved |
| 1 | a check has found something (`tasks lint`, `data verify`, `ckpt verify`), or a bug, with its traceback |
| 2 | a mistake of the user, or a disk, a device or another run is in the way: one line says so |
| 75 | a process of the run did not come up in time: one line names it; the same command may succeed later |
| 129, 130, 143 | ended by SIGHUP, Ctrl-C, SIGTERM: one line says what is kept |

Of several processes all end with the code of the one that failed. Where it cannot notify them, as when it is killed,
they end with 1, or with 134 where JAX ends them, and not with 2: docs/clusters.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from flipped_core import failures, interrupts, paths, streams
from flipped_core.errors import UserError
from t5_engine import compilation_cache

USER_ERROR_CODE = UserError.exit_code
# For an orderly end with the run's other processes after a failure; those that have not heard of it never come.
_SECONDS_FOR_PEERS = 10.0
INTERRUPTED_CODE = interrupts.exit_code(signal.SIGINT)
_LONGEST = 1500  # characters of a message


def protect() -> None:
    """The part of `begin` that does not depend on the command."""
    streams.open_closed()
    interrupts.install()


def begin(*, lasting: bool) -> None:
    """Makes this process fit for being a command; to be called before anything slow is imported.

    Args:
      lasting: the work goes on when nobody reads the output any more.
    """
    protect()
    streams.watch_readers(lasting=lasting)
    compilation_cache.keep_from_xla()


def report(message: object) -> int:
    """Writes `error: message` on one line of stderr and returns the exit code, 2 where the message has no other."""
    line = " ".join(str(message).split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 1]}…"
    # What a file or a name holds must not steer the terminal.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):  # nobody reads stderr, or its disk is full
        print(f"error: {line}", file=sys.stderr, flush=True)
    return message.exit_code if isinstance(message, UserError) else USER_ERROR_CODE


def report_failure(error: Exception) -> int:
    """`report` for what the machine refuses, such as a full disk; any other error, a bug, is raised again."""
    line: object = _no_device(error)
    if line is None and (problem := failures.storage(error)) is not None:
        line = f"cannot read or write {problem}; what was complete before is kept"
        if isinstance(error, OSError) and error.filename is None and not streams.is_lasting():
            drop_stdout()  # what is left in it would fail again when the process ends
            line = f"cannot write what is printed: {problem}"
    if line is None:
        line = paths.bucket_failure(error)
    if line is None:
        if _has_peers():
            _end_within(1)
        raise error
    return report(line)


def _no_device(error: Exception) -> UserError | None:
    """Why JAX finds no device, where that may be behind an error; it does not say so in any one way."""
    if "jax" not in sys.modules or not isinstance(error, (RuntimeError, AssertionError)):
        return None
    from t5_engine import launch

    problem = launch.no_device()
    return None if problem is None else launch.device_error(problem)


def drop_stdout() -> None:
    """What is still to be printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush() -> None:
    """Raises `UserError` where printed text did not arrive, unless its reader just wanted no more."""
    sys.stdout.flush()
    if (lost := streams.lost_output()) is not None:
        raise UserError(f"cannot write what is printed: {lost.strerror}")


def run(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs `command(arguments)` and returns the exit code of the process.

    Args:
      command: what to do; raises `UserError` for what the user can mend.
      arguments: the words after the name of the program.
    """
    try:
        try:
            command(arguments)
        except SystemExit as end:  # as `--help` ends
            if end.code:
                raise
        flush()
    except UserError as error:
        return report(error)
    except (BrokenPipeError, streams.ReaderGone):
        drop_stdout()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_CODE
    except Exception as error:  # noqa: BLE001 - gin and TensorStore wrap the system's errors in any kind
        return report_failure(error)
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process with that code."""
    if code and _has_peers():
        _end_within(code)
    if code != USER_ERROR_CODE or _has_peers():
        sys.exit(code)
    # Threads of libraries may still be failing to write, and would say so while Python shuts down.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_within(code: int) -> None:
    """Bounds the orderly end, in which JAX waits for the other processes for minutes; they may be waiting too."""
    timer = threading.Timer(_SECONDS_FOR_PEERS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _has_peers() -> bool:
    """Whether this is one of several processes, which end together."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
