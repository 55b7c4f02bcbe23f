"""What a run was: its request, the versions it ran with, and the guard against mixing two runs."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from flipped_core.errors import UserError
from flipped_core.files import write_atomically

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"  # t5_engine.checkpoints writes them there
OPERATIVE_GIN_FILE = "operative_config.gin"
PACKAGES = ("flax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "seqio", "tensorflow")
# A run may go on with other values of these; any other difference makes it another run.
MAY_CHANGE = frozenset({"steps", "data_dir"})
# Fields of the model that say how it is computed, not what: they may change too.
EXECUTION_FIELDS = frozenset({"remat", "attention", "unroll_layers"})


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


def open_run(
    model_dir: str, recipe: Mapping[str, Any], operative_gin: str, *, write: bool = True
) -> None:
    """Writes `run.json` and the operative gin config, unless the folder holds another run.

    Args:
      model_dir: made where it is missing.
      recipe: what decides the run's numbers, as plain values.
      operative_gin: the bindings in force.
      write: False only checks, as all processes but the first do.

    Raises:
      UserError: the folder has checkpoints and its `run.json` differs from `recipe`; nothing is
        written then.
    """
    folder = pathlib.Path(model_dir)
    recipe = json.loads(json.dumps(recipe))
    file = folder / RUN_FILE
    checkpoints = folder / CHECKPOINTS
    if file.exists() and checkpoints.is_dir() and any(checkpoints.iterdir()):
        _refuse_other(file, recipe)
    if not write:
        return
    write_atomically(folder / OPERATIVE_GIN_FILE, operative_gin)
    run = {"recipe": recipe, "versions": versions(), "git_commit": git_commit()}
    write_atomically(file, json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def read_recipe(model_dir: str) -> dict[str, Any]:
    """The recipe that `open_run` wrote into `model_dir`, or {} where the folder has none."""
    file = pathlib.Path(model_dir) / RUN_FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a run file: {error}") from None


def _refuse_other(file: pathlib.Path, recipe: Mapping[str, Any]) -> None:
    before, recipe = _computed(read_recipe(str(file.parent))), _computed(recipe)
    for name in sorted(set(before) | set(recipe)):
        if name not in MAY_CHANGE and before.get(name) != recipe.get(name):
            raise UserError(
                f"model_dir {file.parent} holds another run: its {name} is {before.get(name)!r}, "
                f"got {recipe.get(name)!r}; give another MODEL_DIR"
            )


def _computed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the fields of its model that only say how it is carried out."""
    model = recipe.get("model")
    if not isinstance(model, Mapping):
        return dict(recipe)
    kept = {name: value for name, value in model.items() if name not in EXECUTION_FIELDS}
    return {**recipe, "model": kept}
