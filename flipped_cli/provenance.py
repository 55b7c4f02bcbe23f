"""What a run was: its request, the versions it ran with, and the guard against mixing two runs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from flipped_cli.runs import TrainRun
from flipped_core import hub
from flipped_core.errors import UserError
from flipped_core.files import read_json, write_atomically
from flipped_core.settings import Resume, declared, from_mapping, plain, shown

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"  # t5_engine.checkpoints writes them there
OPERATIVE_GIN_FILE = "operative_config.gin"
PACKAGES = ("flax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "seqio", "tensorflow")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this checkout, with `+changes` where files differ from it; None without git."""
    folder = pathlib.Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != folder:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def open_run(run: TrainRun, operative_gin: str, *, write: bool = True) -> None:
    """Writes `run.json` and the operative gin config, unless the folder holds another run.

    Args:
      run: the settings.
      operative_gin: the bindings in force.
      write: False only checks, as all processes but the first do.

    Raises:
      UserError: the folder has checkpoints and its `run.json` differs from `run`; nothing is
        written then.
    """
    folder = pathlib.Path(run.model_dir)
    file = folder / RUN_FILE
    if file.exists() and has_checkpoints(run.model_dir):
        _refuse_other(file, run)
    if not write:
        return
    write_atomically(folder / OPERATIVE_GIN_FILE, operative_gin)
    content = {"recipe": _recorded(run), "versions": versions(), "git_commit": git_commit()}
    write_atomically(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def has_checkpoints(model_dir: str) -> bool:
    """Whether training would resume there rather than start."""
    checkpoints = pathlib.Path(model_dir) / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def read_recipe(model_dir: str) -> dict[str, Any]:
    """The settings in `run.json` of `model_dir`, by field of `TrainRun`; {} where the folder has none.

    Files of older versions may lack some.

    Raises:
      UserError: the file cannot be read, or a setting is unknown or not of its type.
    """
    file = hub.local(model_dir) / RUN_FILE
    if not file.exists():
        return {}
    return _read(file, partial=True)


def _read(file: pathlib.Path, *, partial: bool) -> dict[str, Any]:
    recipe = read_json(file).get("recipe")
    if not isinstance(recipe, Mapping):
        raise UserError(f"{file}: not a run file: expected an object 'recipe', got {shown(recipe)}")
    given = {"model_dir": str(file.parent), **recipe}  # required, and not in the file
    return from_mapping(TrainRun, given, str(file), partial=partial)


def _recorded(run: TrainRun) -> dict[str, Any]:
    """What `run.json` keeps: all settings but those of this process and machine."""
    return {
        name: plain(getattr(run, name))
        for name, one in declared(TrainRun).items()
        if one.setting.resume is not Resume.LOCAL
    }


def _refuse_other(file: pathlib.Path, run: TrainRun) -> None:
    before = _read(file, partial=False)
    for name, one in sorted(declared(TrainRun).items()):
        # A setting that the file's version did not know had its default.
        old, new = before.get(name, one.default), getattr(run, name)
        if one.setting.resume is Resume.SAME and _computed(old) != _computed(new):
            raise UserError(
                f"model_dir {file.parent} holds another run: its {name} is {shown(plain(old))}, "
                f"got {shown(plain(new))}; give another MODEL_DIR"
            )


def _computed(value: Any) -> Any:
    """The value, of a model without the fields that only say how it is carried out."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return {
        name: getattr(value, name)
        for name, one in declared(type(value)).items()
        if one.setting.resume is Resume.SAME
    }
