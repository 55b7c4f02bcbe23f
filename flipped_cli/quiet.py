"""Imports TensorFlow without its greeting, so that a mistake's one line stands alone on stderr."""

from __future__ import annotations

import importlib
import pathlib
import sys

from flipped_core import streams


def import_tensorflow() -> None:
    """Imports SeqIO and with it TensorFlow, whose native code writes to stderr before any log level
    is in force. What it wrote is shown where the import fails.
    """
    if "seqio" not in sys.modules:
        with streams.native_stderr_held_back():
            importlib.import_module("seqio")


def import_for_rows(data_dir: str | None) -> None:
    """Imports TensorFlow where rows may be prepared; others are read without it, which saves seconds."""
    if data_dir is not None and (
        "://" in data_dir or any(pathlib.Path(data_dir).expanduser().glob("*/*/manifest.json"))
    ):
        import_tensorflow()
