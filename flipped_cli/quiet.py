"""Imports TensorFlow without its greeting, so that a mistake's one line stands alone on stderr."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports SeqIO and with it TensorFlow, whose native code writes to stderr before any log level
    is in force. What it wrote is shown where the import fails.
    """
    if "seqio" not in sys.modules:
        with _native_stderr_held_back():
            importlib.import_module("seqio")


def import_for_rows(data_dir: str | None) -> None:
    """Imports TensorFlow where rows may be prepared; others are read without it, which saves seconds."""
    if data_dir is not None and (
        "://" in data_dir or any(pathlib.Path(data_dir).expanduser().glob("*/*/manifest.json"))
    ):
        import_tensorflow()


@contextlib.contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        saved = os.dup(2)
        stack.callback(os.close, saved)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            with os.fdopen(os.dup(2), "wb") as stderr:
                shutil.copyfileobj(held, stderr)
            raise
        finally:
            os.dup2(saved, 2)
