"""What a run was: its request, the versions it ran with, and the guard against mixing two runs."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from flipped_cli.runs import TrainRun
from flipped_core import hub
from flipped_core.errors import UserError
from flipped_core.files import write_atomically
from flipped_core.paths import to_path
from flipped_core.sealed import is_intact, seal
from flipped_core.settings import Resume, declared, plain, shown
from flipped_eval.recipes import (
    CHECKPOINTS,
    RUN_FILE,
    VOCABULARY,
    read_run_file,
    recorded_hash,
    settings_of,
    sha256,
)

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
    """Writes `run.json`, the vocabulary and the operative gin config, unless the folder holds another run.

    The folder is then complete in itself: `run.json` names the copy of the vocabulary beside it.

    Args:
      run: the settings.
      operative_gin: the bindings in force.
      write: False only checks, as all processes but the first do.

    Raises:
      UserError: the folder has checkpoints and its `run.json` differs from `run`, or they are beyond `run.steps`;
        nothing is written then. A damaged `run.json` is written again, with a warning.
    """
    folder = to_path(run.model_dir)
    done = newest_step(run.model_dir)
    if done is not None and (folder / RUN_FILE).exists():
        _refuse_other(folder / RUN_FILE, run)
    refuse_earlier_end(run)
    if not write or done == run.steps:
        return
    vocabulary = to_path(hub.vocabulary(run.vocab_path)).read_bytes()
    digest = hashlib.sha256(vocabulary).hexdigest()
    copy = folder / VOCABULARY
    if not copy.is_file() or sha256(copy) != digest:
        write_atomically(copy, vocabulary)
    write_atomically(folder / OPERATIVE_GIN_FILE, operative_gin)
    content = {
        "recipe": {**_recorded(run), "vocab_path": VOCABULARY},
        "vocabulary": {"sha256": digest, "given": run.vocab_path},
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_atomically(
        folder / RUN_FILE, json.dumps(seal(content), indent=2, ensure_ascii=False) + "\n"
    )


def has_checkpoints(model_dir: str) -> bool:
    """Whether training would resume there rather than start."""
    checkpoints = to_path(model_dir) / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def newest_step(model_dir: str) -> int | None:
    """The step of the newest checkpoint in a run's folder; None without any."""
    folder = to_path(model_dir) / CHECKPOINTS
    if not folder.is_dir():
        return None
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)


def read_recipe(model_dir: str) -> dict[str, Any]:
    """The settings in `run.json` of a run's folder, by field of `TrainRun`; {} where it has none.

    The vocabulary's path is the one that the user gave, not that of the copy.

    Raises:
      UserError: the file cannot be read, or a setting is unknown or not of its type.
    """
    file = to_path(model_dir) / RUN_FILE
    if not file.exists():
        return {}
    content = read_run_file(file)
    recipe = settings_of(file, content, partial=True)
    vocabulary = content.get("vocabulary")
    if isinstance(vocabulary, Mapping) and isinstance(vocabulary.get("given"), str):
        recipe["vocab_path"] = vocabulary["given"]
    return recipe


def refuse_earlier_end(run: TrainRun) -> None:
    """Refuses to train to a step that the run has passed.

    Raises:
      UserError: the newest checkpoint is beyond `run.steps`.
    """
    done = newest_step(run.model_dir)
    if done is not None and done > run.steps:
        raise UserError(
            f"TRAIN_STEPS: the run in {run.model_dir} is already at step {done}: expected at least that, got "
            f"{run.steps}; nothing was written"
        )


def _recorded(run: TrainRun) -> dict[str, Any]:
    """What `run.json` keeps: all settings but those of this process and machine."""
    return {
        name: plain(getattr(run, name))
        for name, one in declared(TrainRun).items()
        if one.setting.resume is not Resume.LOCAL
    }


def _refuse_other(file: epath.Path, run: TrainRun) -> None:
    try:
        content = read_run_file(file)
        before = settings_of(file, content, partial=False)
    except UserError as error:
        if is_intact(file):  # a setting that this version does not know
            raise
        # Whole checkpoints must not be lost to a damaged file beside them.
        print(
            f"warning: {error}; whether the checkpoints are of this run cannot be told: it resumes, and the file is "
            "written again from the settings of this start",
            file=sys.stderr,
            flush=True,
        )
        return
    hashed = recorded_hash(content)
    for name, one in sorted(declared(TrainRun).items()):
        # A setting that the file's version did not know had its default.
        old, new = before.get(name, one.default), getattr(run, name)
        if one.setting.resume is not Resume.SAME or _computed(old) == _computed(new):
            continue
        if name == "vocab_path" and _same_vocabulary(hashed, old, new):
            continue
        raise UserError(
            f"model_dir {file.parent} holds another run: its {name} is {shown(plain(old))}, "
            f"got {shown(plain(new))}; give another MODEL_DIR"
        )


def _same_vocabulary(hashed: str | None, old: str, new: str) -> bool:
    """Whether the run's vocabulary, known by its hash or (in older files) its path, has the content of `new`."""
    if hashed is None and (hub.is_reference(old) or to_path(old).is_file()):
        hashed = sha256(hub.vocabulary(old))
    return hashed is not None and hashed == sha256(hub.vocabulary(new))


def _computed(value: Any) -> Any:
    """The value, of a model without the fields that only say how it is carried out."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return {
        name: getattr(value, name)
        for name, one in declared(type(value)).items()
        if one.setting.resume is Resume.SAME
    }
