"""The folder of a run: what killed runs left there goes, and where its disk fails, one line says what is safe."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from flipped_core import failures, files
from flipped_core.errors import StorageError, UserError
from t5_engine import checkpoints

_UNFINISHED = re.compile(rf"[0-9]+({re.escape(ocp.utils.TMP_DIR_SUFFIX)}.*|\.deleted)")


def remove_leftovers(model_dir: str) -> None:
    """Removes what killed runs left under temporary names. The caller holds the folder, so nobody writes them."""
    folder = epath.Path(model_dir).expanduser() / checkpoints.FOLDER
    if folder.is_dir():
        for child in folder.iterdir():
            if _UNFINISHED.fullmatch(child.name):
                child.rmtree()
    if "://" not in model_dir:
        files.remove_temporary(pathlib.Path(model_dir).expanduser(), dead_only=False)


@contextlib.contextmanager
def storage_errors(model_dir: str, store: checkpoints.Checkpoints) -> Iterator[None]:
    """Turns a full or broken disk into one line that names what is safe.

    Raises:
      StorageError: instead of the errors of Python, Orbax, TensorStore and TensorBoard's writer.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_show, hook)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = failures.storage(error)
        if problem is None:
            raise
        safe = kept(store)
        with contextlib.suppress(Exception):
            remove_leftovers(model_dir)  # half a checkpoint would keep the disk full
        raise StorageError(
            f"cannot write the run in {model_dir}: {problem}; {safe}; the same command resumes there once the cause "
            "is removed"
        ) from error
    finally:
        sys.unraisablehook = hook


def _show(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Leaves out what TensorStore's threads report to the event loop of a save that has failed already."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def kept(store: checkpoints.Checkpoints) -> str:
    """Which checkpoint a run would resume from."""
    newest = None
    with contextlib.suppress(Exception):
        newest = store.newest
    if newest is None:
        return f"no checkpoint is complete in {store.folder}"
    return f"checkpoint {store.folder / str(newest)} is complete and kept"
