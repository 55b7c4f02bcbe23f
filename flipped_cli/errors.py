"""A user's mistake becomes one line on stderr and exit code 2; a bug keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from flipped_errors import UserError

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130


def report(message: object) -> int:
    """Writes `error: message` on one line of stderr and returns the exit code 2."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    return USER_ERROR_CODE


def run(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs `command(arguments)` and returns the exit code of the process.

    Args:
      command: what to do; raises `UserError` for what the user can mend.
      arguments: the words after the name of the program.
    """
    try:
        command(arguments)
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_CODE
    return 0
