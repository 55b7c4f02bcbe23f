"""`python -m flipped_t5x train|eval|infer ARGUMENTS`: T5X's own program of that name, with its arguments.

It differs from `python -m t5x.train` in this: what keeps T5X from being imported is mended or told in one line, and so
is a mistake that this project's code finds while T5X runs.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from flipped_errors import UserError, unknown
from flipped_t5x import requirement

PROGRAMS = ("train", "eval", "infer")


def main(words: Sequence[str]) -> int:
    """Runs T5X's program with the words after its name; returns the exit code."""
    try:
        if not words or words[0].startswith("-"):
            raise UserError(
                f"expected one of {', '.join(PROGRAMS)}: python -m flipped_t5x train --gin_file=…"
            )
        if words[0] not in PROGRAMS:
            raise unknown("program of T5X", words[0], PROGRAMS)
        requirement.prepare()
        sys.argv = [f"t5x.{words[0]}", *words[1:]]
        # T5X's gin files bind what they find in `__main__`.
        runpy.run_module(f"t5x.{words[0]}", run_name="__main__", alter_sys=True)
    except UserError as error:
        # Gin adds lines of its own to the message of whatever passes it.
        line = " ".join(str(error).split("\n  In call to configurable")[0].split())
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
