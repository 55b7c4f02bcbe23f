"""Types of options and arguments that are paths: a wrong or unreachable one ends the command as it is parsed.

So a bucket that is missing, forbidden or read-only is reported before anything slow is imported and before anything is
written, whatever the command.
"""

from __future__ import annotations

from typing import Any

import click

from flipped_core.paths import check_bucket, is_hub, to_local_path, to_path


class PathType(click.ParamType):
    """A path, which stays text."""

    name = "path"

    def __init__(self, *, write: bool = False, local: bool = False) -> None:
        """Args: write: whether the command writes there; local: whether it cannot be in a bucket."""
        self._write, self._local = write, local

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises `UserError` for another scheme, or a bucket that cannot be read (or written)."""
        field = _label(param)
        if self._local:
            to_local_path(value, field)
        elif self._write or not is_hub(value):
            to_path(value, field)
            check_bucket(value, field, write=self._write)
        return value


def _label(param: click.Parameter | None) -> str:
    """The option or argument as the user knows it."""
    if param is None:
        return "path"
    return (
        param.opts[0] if isinstance(param, click.Option) else param.human_readable_name.strip("[]…")
    )


READ = PathType()
WRITTEN = PathType(write=True)
LOCAL = PathType(local=True)
