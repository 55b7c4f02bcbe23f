"""The one exception that stands for a user's mistake, and the nearest-name hint that goes with it.

Every package may import this module; it imports only the standard library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user, told in one line: the field, what was expected, what was got.

    The commands print it without a traceback and exit with `exit_code`; any other exception is a bug.
    """

    exit_code = 2


def shown(value: object, most: int = 80) -> str:
    """`value` as an error shows it: at most so many characters, whatever it holds."""
    try:
        text = repr(value)
    except (
        ValueError,
        RecursionError,
    ):  # a whole number of more than 4,300 digits, a list that holds itself
        return type(value).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: half a character, as `\\ud83d` alone, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TemporaryError(UserError):
    """No mistake, but one line too: another process or machine is missing; the same command may succeed later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h; the launch files start such a job again


class StorageError(UserError):
    """A disk that is full or broken, in one line. Threads of libraries may still be failing to write."""


def nearest(got: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names in `known` that are most like `got`, best first, at most `most` of them.

    A name of which `got` is one part, as "rte" of "super_glue/rte", comes before all others.
    """
    by_lower = {name.lower(): name for name in known}
    parts = [name for name in by_lower if got.lower() in name.split("/")]
    close = difflib.get_close_matches(got.lower(), list(by_lower), n=most, cutoff=0.4)
    return [by_lower[name] for name in dict.fromkeys([*parts, *close])][:most]


def unknown(what: str, got: object, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist.

    Args:
      what: the field as the user knows it, such as "dataset".
      got: what the user wrote.
      known: all valid names; the nearest are shown, or a few of them where none is near.
    """
    names = sorted(known)
    close = nearest(str(got), names)
    if close:
        hint = "nearest: " + ", ".join(map(shown, close))
    elif names:
        first = ", ".join(map(shown, names[:8]))
        hint = f"expected one of: {first}" + (
            f", … ({len(names)} in all)" if len(names) > 8 else ""
        )
    else:
        hint = "none is registered"
    return UserError(f"unknown {what} {shown(str(got))}; {hint}")
