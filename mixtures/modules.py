"""Runs the modules that register datasets of one's own: named by the user, or brought by installed packages.

A package brings tasks with an entry point in the group `flipped_learning.tasks`:

    [project.entry-points."flipped_learning.tasks"]
    kettles = "kettle_package.tasks"            # a module; or "kettle_package.tasks:register", a function
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from flipped_core.errors import UserError
from flipped_core.paths import to_local_path

GROUP = "flipped_learning.tasks"
_PREFIX = "flipped_own_"  # of modules that are named by their file
_loaded: set[str] = set()


def load(modules: Sequence[str] = ()) -> None:
    """Runs what installed packages bring, then the modules named; each once in a process.

    Args:
      modules: names such as 'my_package.tasks' (the current folder is searched too), or files such as 'my_tasks.py'.

    Raises:
      UserError: a module cannot be found, or fails; what it says itself as a `UserError` is passed on.
    """
    if isinstance(modules, str):
        raise UserError(f"modules: expected a list of names, got {modules!r}")
    for point in importlib.metadata.entry_points(group=GROUP):
        _once(f"entry point {point.name!r} ({point.value})", functools.partial(_call, point))
    for name in modules:
        if name.endswith(".py") or "/" in name:
            path = to_local_path(name, "module").resolve()
            if not path.is_file():
                raise UserError(f"module: expected a Python file, there is none at {name!r}")
            _once(f"module {str(path)!r}", functools.partial(_run, path))
        else:
            _once(f"module {name!r}", functools.partial(_import, name))


def _once(what: str, action: Callable[[], Any]) -> None:
    if what in _loaded:
        return
    try:
        action()
    except UserError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # noqa: BLE001 - whatever a user's module raises
        raise UserError(f"{what}: {type(error).__name__}: {error}{_line(error)}") from error
    _loaded.add(what)


def _call(point: importlib.metadata.EntryPoint) -> None:
    found = point.load()
    if callable(found):
        found()


def _import(name: str) -> None:
    here = str(pathlib.Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    finally:
        if added:
            sys.path.remove(here)


def _run(path: pathlib.Path) -> None:
    name = _PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and others look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _line(error: BaseException) -> str:
    """Where in the user's own code it happened."""
    place = error.__traceback__
    last = ""
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<") and "importlib" not in file:
            last = f" ({file}, line {place.tb_lineno})"
        place = place.tb_next
    return last
