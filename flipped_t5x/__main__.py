"""`python -m flipped_t5x train|eval|infer ARGUMENTS`: T5X's own program of that name, with its arguments.

It differs from `python -m t5x.train` in this: what keeps T5X from being imported is mended or told in one line, and so
is a mistake in gin, or one that this project's code finds while T5X runs; strings need no quotes of their own, and
`--data_dir=` binds DATA_DIR.
"""

from __future__ import annotations

import re
import runpy
import sys
import traceback
from collections.abc import Sequence

from flipped_cli import errors, gin_config
from flipped_core.errors import UserError, unknown
from flipped_t5x import requirement

PROGRAMS = ("train", "eval", "infer")
_BINDING = "--gin."


def main(words: Sequence[str]) -> int:
    """Runs T5X's program with the words after its name; returns the exit code."""
    if words and words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    try:
        if not words or words[0].startswith("-"):
            raise UserError(
                f"expected one of {', '.join(PROGRAMS)}: python -m flipped_t5x train --gin_file=…"
            )
        if words[0] not in PROGRAMS:
            raise unknown("program of T5X", words[0], PROGRAMS)
        requirement.prepare()
        rest = [re.sub("^--data_dir=", f"{_BINDING}DATA_DIR=", word) for word in words[1:]]
        given = [word.partition("=")[0] for word in rest if _is_binding(word)]
        names = [name.removeprefix(_BINDING) for name in given]
        gin_config.watch_macros([name for name in names if "." not in name])
        sys.argv = [f"t5x.{words[0]}", *map(_quoted, rest)]
        # T5X's gin files bind what they find in `__main__`.
        runpy.run_module(f"t5x.{words[0]}", run_name="__main__", alter_sys=True)
    except UserError as error:
        # Gin adds lines of its own to the message of whatever passes it.
        return errors.report(str(error).split("\n  In call to configurable")[0])
    except Exception as error:
        if not _is_in_gin(error):
            raise
        return errors.report(_explained(error))
    return 0


def _is_binding(word: str) -> bool:
    return word.startswith(_BINDING) and "=" in word


def _quoted(word: str) -> str:
    """A binding whose string the shell left without quotes, with them."""
    if not _is_binding(word):
        return word
    name, _, value = word.partition("=")
    return f"{name}={gin_config.quoted(value)}"


def _explained(error: Exception) -> UserError:
    """One line for what gin raised."""
    if "No bindings specified for" in str(error) and (missing := gin_config.unbound_macros()):
        return UserError(
            f"gin macros that nothing binds: {', '.join(missing)}; expected --gin_file= of a size "
            "(gin/t5x/SIZE.gin) and, for training, of a recipe (gin/recipes/METHOD.gin)"
        )
    try:
        gin_config.refuse_missing()
    except UserError as missing_bindings:
        return missing_bindings
    return UserError(gin_config.explained(error))


def _is_in_gin(error: Exception) -> bool:
    """Whether it was raised while T5X read its gin files and bindings."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "parse_gin_flags" for frame, _ in frames)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
