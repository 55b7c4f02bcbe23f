"""`--offline`: the libraries that would ask a server are told not to."""

from __future__ import annotations

import os
from typing import Any

import click

# What the hub's client, the `datasets` library and Google's storage client look for.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_GCE_CHECK": "true",
}


def go_offline() -> None:
    """For the rest of this process no library looks for a network; to be called before they are imported."""
    os.environ.update(SETTINGS)


def _go_offline(context: Any, option: Any, value: bool) -> None:
    if value:
        go_offline()


# For commands that need not know it.
option = click.option(
    "--offline",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_go_offline,
    help="Open no network connection; hf:// works from its cache.",
)
