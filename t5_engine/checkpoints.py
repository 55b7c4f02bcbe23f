"""Checkpoints: `<model_dir>/checkpoints/<step>/{params,opt_state,about,progress}`, written by Orbax.

A checkpoint appears under its final name, with its commit marker, only when it is complete; one without the marker,
or with files missing, is never read and never taken away in silence. `about` is a JSON file with the step, the model's
config and the optimizer's name, so that a checkpoint can be read without knowing what it holds; `progress` is one with
what else a run goes on from: position in the data, random key, metrics not yet reported.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from flipped_core.errors import UserError
from t5_engine import checksums
from t5_engine.config import STRUCTURE_FIELDS, T5Config
from t5_engine.model import Params, abstract_params

FOLDER = "checkpoints"
COMMIT_MARKER = "commit_success.txt"  # Orbax writes it last, before the folder gets its final name
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX  # behind the step in the name of a save under way
_DELETED = ".deleted"

# Orbax logs every step of its work, and with a traceback each error that it then raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one training run. Where it has several processes, all of them call each method."""

    def __init__(
        self, model_dir: epath.PathLike, keep: int | None = None, keep_every: int | None = None
    ) -> None:
        """Opens (or makes) the folder.

        Args:
          model_dir: the run's folder.
          keep: how many of the newest to keep; None keeps all.
          keep_every: those of each so many steps are kept whatever their age.
        """
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise UserError(f"{name}_checkpoints: expected at least 1 or None, got {value!r}")
        self.folder = _absolute(model_dir) / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every = keep, keep_every
        self._saving: int | None = None
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sign),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest whole checkpoint; None where there is none. Newer ones that are not are named."""
        whole, reasons = _newest_whole(self.folder)
        _warn(reasons, whole)
        return None if whole is None else int(whole.name)

    def save(
        self,
        step: int,
        params: Any,
        opt_state: Any,
        config: T5Config,
        optimizer: str,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Writes a checkpoint in the background; `wait` for it, or save the next one, to be sure that it stands.

        Args:
          step: the number of steps done.
          params: the parameters.
          opt_state: the optimizer's state.
          config: the model's.
          optimizer: its name.
          progress: what else the run goes on from, ready for JSON.
        """
        self.wait()
        if _is_primary():
            _make_room(self.folder, step)
        self._saving = step
        about = {"step": step, "optimizer": optimizer, "model": config.to_dict()}
        self._writer.save(
            self.folder / str(step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                about=ocp.args.JsonSave(about),
                progress=ocp.args.JsonSave(progress or {}),
            ),
        )

    def _sign(self) -> None:
        """Called in the background when all files are written and the commit is not yet done."""
        for folder in self.folder.glob(f"{self._saving}{_UNFINISHED}*"):
            checksums.write(folder)

    def restore(
        self, step: int, params: Any, opt_state: Any, config: T5Config, optimizer: str
    ) -> tuple[Any, Any]:
        """(params, opt_state) of a step, whatever mesh they were saved from.

        Args:
          step: one that exists.
          params: the tree to fill: `jax.ShapeDtypeStruct` with shardings.
          opt_state: likewise.
          config: must agree with the checkpoint's in every size.
          optimizer: must be the checkpoint's.

        Raises:
          UserError: the checkpoint is of another size or another optimizer.
        """
        folder = self.folder / str(step)
        about = read_about(folder)
        refuse_other_model(folder, T5Config.from_dict(about["model"]), config)
        if about["optimizer"] != optimizer:
            raise UserError(
                f"checkpoint {folder} was written with optimizer {about['optimizer']!r}, this run has "
                f"{optimizer!r}; use another model_dir, or initial_checkpoint_path to take the parameters only"
            )
        restored = self._writer.restore(
            folder,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
            ),
        )
        return restored["params"], restored["opt_state"]

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress`; {} where nothing was."""
        file = self.folder / str(step) / "progress" / "metadata"
        return json.loads(file.read_text()) if file.exists() else {}

    def wait(self) -> None:
        """Returns when all that was saved is complete on disk; then deletes what need not be kept."""
        self._writer.wait_until_finished()
        if self._saving is not None and _is_primary():
            self._delete_old()
        self._saving = None

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self.wait()
        self._writer.close()

    def _delete_old(self) -> None:
        if self._keep is None:
            return
        steps = sorted(int(child.name) for child in _steps(self.folder) if not broken(child))
        for step in steps[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                # Renamed first: half a checkpoint must never stand under a checkpoint's name.
                (self.folder / str(step)).rename(self.folder / f"{step}{_DELETED}")
        for child in self.folder.glob(f"*{_DELETED}"):
            child.rmtree()


def _absolute(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path)
    return path if "://" in str(path) else path.expanduser().absolute()


def _is_primary() -> bool:
    return jax.process_index() == 0


def _steps(folder: epath.Path) -> list[epath.Path]:
    """The folders with a checkpoint's final name, whole or not."""
    return [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []


def broken(folder: epath.Path) -> str | None:
    """Why a checkpoint must not be read; None where it is whole."""
    if not (folder / COMMIT_MARKER).exists():
        return f"it has no commit marker ({COMMIT_MARKER})"
    for name in ("params", "about"):
        if not (folder / name).is_dir():
            return f"{name} is missing"
    found = checksums.differences(folder, contents=False)
    return found[0] if found else None


def _newest_whole(folder: epath.Path) -> tuple[epath.Path | None, list[str]]:
    """The newest whole checkpoint; and why each newer one is not, such as one left by a save that did not end."""
    reasons = []
    newest = None
    for child in sorted(_steps(folder), key=lambda child: int(child.name), reverse=True):
        reason = broken(child)
        if reason is None:
            newest = child
            break
        reasons.append(f"{child} is not whole ({reason})")
    for child in folder.glob(f"*{_UNFINISHED}*") if folder.is_dir() else ():
        number = re.match(r"\d+", child.name)
        if number and (newest is None or int(number[0]) > int(newest.name)):
            reasons.append(f"{child} was left by a save that did not end")
    return newest, reasons


def _warn(reasons: list[str], newest: epath.Path | None) -> None:
    for reason in reasons:
        instead = f"; {newest} is used" if newest else "; no older one is there"
        _tell(f"warning: checkpoint {reason}{instead}")


def _make_room(folder: epath.Path, step: int) -> None:
    """Takes aside what is not whole and in the way of a save of that step, and says so."""
    place = folder / str(step)
    if place.exists():
        reason = broken(place)
        if reason is None:
            raise UserError(f"checkpoint {place} exists; existing checkpoints are not overwritten")
        aside = folder / f"{step}.incomplete"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.again")
        place.rename(aside)
        _tell(f"warning: checkpoint {place} is not whole ({reason}); it is kept as {aside}")
    for unfinished in folder.glob(f"{step}{_UNFINISHED}*"):
        _tell(f"warning: {unfinished}, left by a save that did not end, is replaced")


def _tell(line: str) -> None:
    if _is_primary():
        print(line, file=sys.stderr, flush=True)


def find(path: epath.PathLike) -> epath.Path:
    """The folder of one checkpoint.

    Args:
      path: a checkpoint's own folder, or a run's folder, of which the newest whole one is taken.

    Raises:
      UserError: there is no whole checkpoint.
    """
    path = _absolute(path)
    if (path / "about").is_dir():
        reason = broken(path)
        if reason is not None:
            raise UserError(f"checkpoint {path} is not whole: {reason}")
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    newest, reasons = _newest_whole(folder)
    if newest is None:
        why = "; ".join(reasons) or "expected a folder <step>/about there or below"
        raise UserError(f"no checkpoint at {path}: {why}")
    _warn(reasons, newest)
    return newest


def read_about(folder: epath.PathLike) -> dict[str, Any]:
    """{"step", "optimizer", "model"} of the checkpoint in that folder."""
    file = epath.Path(folder) / "about" / "metadata"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected the JSON that describes a checkpoint: {error}"
        ) from error


def load(path: epath.PathLike, shardings: Any = None) -> tuple[Params, T5Config, int]:
    """The parameters of a checkpoint, without the optimizer.

    Args:
      path: as in `find`.
      shardings: a tree of the parameters' shardings; all on this process's first device where not given.

    Returns:
      (params, config, step).
    """
    folder = find(path)
    about = read_about(folder)
    config = T5Config.from_dict(about["model"])
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = with_shardings(abstract_params(config), shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder / "params", target)
    return params, config, int(about["step"])


def load_for(path: epath.PathLike, config: T5Config, shardings: Any = None) -> Params:
    """The parameters of a checkpoint that must be of the size of `config`; `UserError` where it is not."""
    folder = find(path)
    refuse_other_model(folder, T5Config.from_dict(read_about(folder)["model"]), config)
    return load(folder, shardings)[0]


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct`s that also say where to put the arrays; one sharding for all, or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, abstract)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def refuse_other_model(folder: epath.PathLike, there: T5Config, here: T5Config) -> None:
    """A `UserError` that names each size in which the checkpoint (`there`) and the run (`here`) differ."""
    differences = [
        f"{name} is {getattr(there, name)} there and {getattr(here, name)} here"
        for name in STRUCTURE_FIELDS
        if getattr(there, name) != getattr(here, name)
    ]
    if differences:
        raise UserError(f"checkpoint {folder} is of another model: {'; '.join(differences)}")
