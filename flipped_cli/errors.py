"""A user's mistake becomes one line on stderr and exit code 2; a bug keeps its traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from flipped_core.errors import UserError

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def report(message: object) -> int:
    """Writes `error: message` on one line of stderr and returns the exit code 2."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    return USER_ERROR_CODE


def report_full(error: OSError) -> int:
    """`report` for a disk that is full, as behind `> FILE`; any other error is raised again."""
    if error.errno not in _FULL:
        raise error
    drop_stdout()  # what is left in it would fail again when the process ends
    return report(f"cannot write {error.filename or 'what is printed'}: {error.strerror}")


def drop_stdout() -> None:
    """What is still to be printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs `command(arguments)` and returns the exit code of the process.

    Args:
      command: what to do; raises `UserError` for what the user can mend.
      arguments: the words after the name of the program.
    """
    try:
        command(arguments)
        sys.stdout.flush()
    except UserError as error:
        return report(error)
    except BrokenPipeError:  # the reader of our output has gone
        drop_stdout()
        return 1
    except OSError as error:
        return report_full(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_CODE
    return 0
