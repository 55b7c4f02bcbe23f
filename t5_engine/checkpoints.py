"""Checkpoints: `<model_dir>/checkpoints/<step>/{params,opt_state,about,progress}`, written by Orbax.

A checkpoint appears under its final name, with its commit marker, only when it is complete (in a bucket, which cannot
rename, the marker is written last and removed first); one without the marker,
or that is not as its checksums say, is never read and never deleted without a message. `about` is a JSON file with the
step, the model's config and the optimizer's name, so that a checkpoint can be read without knowing what it holds;
`progress` is one with what else a run resumes from: position in the data, random key, metrics not yet reported.

Two checks: the quick one (`broken`) reads metadata and file lengths; `damage` reads every byte and compares CRC-32.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from flipped_core.errors import UserError
from flipped_core.paths import is_bucket, to_path
from t5_engine import checksums, processes
from t5_engine.checkpoint_metadata import read_metadata, read_progress
from t5_engine.config import STRUCTURE_FIELDS, T5Config
from t5_engine.model import Params, abstract_params

FOLDER = "checkpoints"
COMMIT_MARKER = "commit_success.txt"  # Orbax writes it last, before the folder gets its final name
PARAMETERS = ("about", "params")  # what is read of a checkpoint where only its parameters are
_NO_MARKER = f"it has no commit marker ({COMMIT_MARKER})"
_STEP = re.compile(r"0|[1-9][0-9]*")
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX  # behind the step in the name of a save under way
_DELETED = ".deleted"

# Why a folder is not a whole checkpoint, or None.
Check = Callable[[epath.Path], str | None]

# Orbax logs every step of its work, and with a traceback each error that it then raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one training run. Where it has several processes, all of them call each method."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        keep: int | None = None,
        keep_every: int | None = None,
        *,
        verify: bool = True,
    ) -> None:
        """Opens (or makes) the folder.

        Args:
          model_dir: the run's folder.
          keep: how many of the newest to keep; None keeps all.
          keep_every: those of each so many steps are kept whatever their age.
          verify: whether `resumable` reads every byte and compares checksums.
        """
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise UserError(f"{name}_checkpoints: expected at least 1 or None, got {value!r}")
        self.folder = to_path(model_dir, "model_dir") / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every, self._verify = keep, keep_every, verify
        self._damaged: dict[
            str, str
        ] = {}  # folder name -> why it is not whole, as `resumable` found
        self._saving: int | None = None
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sign),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint that passes the quick check; None where there is none."""
        for child in _newest_first(self.folder):
            if self._broken(child) is None:
                return int(child.name)
        return None

    def resumable(self) -> int | None:
        """The step of the newest checkpoint that is whole, the same in all processes; None where nothing was saved.

        Each process reads its share of the files, and all hear what the others found. Newer checkpoints that are not
        whole are named in a warning, and are out of the way of later saves.

        Raises:
          UserError: checkpoints were saved, and none of them is whole.
        """
        newest, reasons = _newest_whole(self.folder, _check(None, self._verify))
        if newest is not None:
            self._damaged = reasons
            _warn(self.folder, reasons, newest)
            return int(newest.name)
        saved = {name: reason for name, reason in reasons.items() if reason != _NO_MARKER}
        if saved:
            raise UserError(
                f"{'; '.join(_said(self.folder, saved))}; there is no whole checkpoint to resume from: move "
                f"{'it' if len(saved) == 1 else 'them'} away to start again from step 0"
            )
        _warn(self.folder, reasons, None)
        return None

    def _broken(self, folder: epath.Path) -> str | None:
        return self._damaged.get(folder.name) or broken(folder, self._verify)

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
            _make_room(self.folder, step, self._broken)
            self._damaged.pop(str(step), None)
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
        if not _is_primary():
            return
        if is_bucket(
            self.folder
        ):  # where it is written under its final name, and its marker comes last
            checksums.write(self.folder / str(self._saving))
            return
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
        metadata = read_metadata(folder)
        refuse_other_model(folder, metadata.config, config)
        if metadata.optimizer != optimizer:
            raise UserError(
                f"checkpoint {folder} was written with optimizer {metadata.optimizer!r}, this run has "
                f"{optimizer!r}; use another model_dir, or initial_checkpoint_path to take the parameters only"
            )
        return _restore(folder, "params", params), _restore(folder, "opt_state", opt_state)

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress`; {} where nothing was."""
        return read_progress(self.folder / str(step))

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
        steps = sorted(int(child.name) for child in _steps(self.folder) if not self._broken(child))
        for step in steps[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                _delete(self.folder / str(step))
        if is_bucket(self.folder):
            for child in _steps(self.folder):  # of deletions and saves that did not end
                if int(child.name) < steps[-1] and not (child / COMMIT_MARKER).exists():
                    child.rmtree()
        for child in self.folder.glob(f"*{_DELETED}"):
            child.rmtree()


def _delete(folder: epath.Path) -> None:
    """Takes a checkpoint away so that half of it never counts: in a bucket its marker goes first."""
    if is_bucket(folder):
        (folder / COMMIT_MARKER).unlink()
        folder.rmtree()
    else:
        folder.rename(folder.with_name(f"{folder.name}{_DELETED}"))


def _is_primary() -> bool:
    return jax.process_index() == 0


def _steps(folder: epath.Path) -> list[epath.Path]:
    """The folders with a checkpoint's final name, whole or not."""
    if not folder.is_dir():
        return []
    return [child for child in folder.iterdir() if _STEP.fullmatch(child.name)]


def _newest_first(folder: epath.Path) -> list[epath.Path]:
    return sorted(_steps(folder), key=lambda child: int(child.name), reverse=True)


def broken(folder: epath.Path, verify: bool = True) -> str | None:
    """Why a checkpoint must not be read, by its metadata and the lengths of its files; None where all are right.

    Args:
      folder: the checkpoint's.
      verify: whether one without checksums is refused.
    """
    if not (folder / COMMIT_MARKER).exists():
        return _NO_MARKER
    for name in PARAMETERS:
        if not (folder / name).is_dir():
            return f"{name} is missing"
    if verify or (folder / checksums.FILE).exists():
        # The small files, which decide what the others mean, are read at each check.
        if found := checksums.differences(folder, read=("about", "progress")):
            return _first_of(found)
    try:
        step = read_metadata(folder).step
        read_progress(folder)
    except UserError as error:
        return str(error).removeprefix(f"{folder}/")
    if _STEP.fullmatch(folder.name) and step != int(folder.name):
        return f"it was saved at step {step}"
    return None


def damage(
    folder: epath.Path, items: Collection[str] | None = None, share: tuple[int, int] = (0, 1)
) -> str | None:
    """Why the bytes of a checkpoint are not those that were written; None where they are.

    Args:
      folder: the checkpoint's.
      items: the folders in it to read, such as `PARAMETERS`; None stands for all.
      share: as in `checksums.differences`.
    """
    found = checksums.differences(folder, read=items, share=share)
    return _first_of(found) if found else None


def _first_of(lines: list[str]) -> str:
    return lines[0] + (f", and {len(lines) - 1} more" if len(lines) > 1 else "")


def _check(items: Collection[str] | None, verify: bool) -> Check:
    """Why a checkpoint is not whole, in the words of the first process that finds it so.

    All processes of a run check the same folder; each reads its share of the files and hears what the others found.
    """

    def check(folder: epath.Path) -> str | None:
        reason = broken(folder, verify)
        if reason is None and verify:
            reason = damage(folder, items, (processes.index(), processes.count()))
        said = (json.loads(text) for text in processes.from_all(json.dumps(reason)))
        return next((reason for reason in said if reason is not None), None)

    return check


def _newest_whole(folder: epath.Path, check: Check) -> tuple[epath.Path | None, dict[str, str]]:
    """The newest checkpoint that passes a check; and the name of each newer one with the reason why it does not."""
    reasons: dict[str, str] = {}
    for name in processes.from_first(lambda: [child.name for child in _newest_first(folder)]):
        reason = check(folder / name)
        if reason is None:
            return folder / name, reasons
        reasons[name] = reason
    return None, reasons


def _said(folder: epath.Path, reasons: Mapping[str, str]) -> list[str]:
    return [f"{folder / name} is not whole ({reason})" for name, reason in reasons.items()]


def _unfinished(folder: epath.Path, newest: epath.Path | None) -> list[str]:
    """A line for each save that did not end and would be newer than `newest`."""
    lines = []
    for child in folder.glob(f"*{_UNFINISHED}*") if folder.is_dir() else ():
        number = re.match(r"[0-9]+", child.name)
        if number and (newest is None or int(number[0]) > int(newest.name)):
            lines.append(f"{child} was left by a save that did not end")
    return lines


def _warn(folder: epath.Path, reasons: Mapping[str, str], newest: epath.Path | None) -> None:
    for line in _said(folder, reasons) + _unfinished(folder, newest):
        instead = f"; {newest} is used" if newest else "; no older one is there"
        _log(f"warning: checkpoint {line}{instead}")


def _make_room(folder: epath.Path, step: int, check: Check) -> None:
    """Takes aside what is not whole and in the way of a save of that step, and says so."""
    place = folder / str(step)
    if place.exists():
        reason = check(place)
        if reason is None:
            raise UserError(f"checkpoint {place} exists; existing checkpoints are not overwritten")
        if is_bucket(folder) and not (place / COMMIT_MARKER).exists():
            place.rmtree()
            _log(f"warning: {place}, left by a save or deletion that did not end, is replaced")
            return
        aside = folder / f"{step}.incomplete"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.again")
        if is_bucket(folder):
            (place / COMMIT_MARKER).unlink()
        place.rename(aside)
        _log(f"warning: checkpoint {place} is not whole ({reason}); it is kept as {aside}")
    for unfinished in folder.glob(f"{step}{_UNFINISHED}*"):
        _log(f"warning: {unfinished}, left by a save that did not end, is replaced")


def _log(line: str) -> None:
    if _is_primary():
        print(line, file=sys.stderr, flush=True)


def find(
    path: epath.PathLike, *, items: Collection[str] | None = PARAMETERS, verify: bool = True
) -> epath.Path:
    """The folder of one checkpoint that is whole.

    Args:
      path: a checkpoint's own folder, or a run's folder, of which the newest whole one is taken.
      items: what will be read of it, such as `PARAMETERS`; None stands for all.
      verify: whether to read every byte of these and compare checksums.

    Raises:
      UserError: there is no whole checkpoint, or the one asked for is not.
    """
    path, check = to_path(path), _check(items, verify)
    if is_step(path):
        reason = check(path)
        if reason is not None:
            raise UserError(f"checkpoint {path} is not whole: {reason}")
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    newest, reasons = _newest_whole(folder, check)
    if newest is None:
        lines = _said(folder, reasons) + _unfinished(folder, None)
        why = "; ".join(lines) or "expected a folder <step>/about there or below"
        raise UserError(f"no checkpoint at {path}: {why}")
    _warn(folder, reasons, newest)
    return newest


def is_step(path: epath.Path) -> bool:
    """Whether a folder is one checkpoint of ours, whole or not."""
    return any((path / name).is_dir() for name in PARAMETERS) and not (path / FOLDER).is_dir()


def _restore(folder: epath.Path, item: str, target: Any) -> Any:
    """One item of a checkpoint, as Orbax reads it; `UserError` where it cannot."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / item, target)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax raises bare exceptions around those of TensorStore
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"checkpoint {folder}: {item} cannot be read: {why[:300]}") from error


def load(
    path: epath.PathLike, shardings: Any = None, *, verify: bool = True
) -> tuple[Params, T5Config, int]:
    """The parameters of a checkpoint, without the optimizer.

    Args:
      path: as in `find`.
      shardings: a tree of the parameters' shardings; all on this process's first device where not given.
      verify: as in `find`.

    Returns:
      (params, config, step).
    """
    folder = find(path, verify=verify)
    metadata = read_metadata(folder)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = with_shardings(abstract_params(metadata.config), shardings)
    return _restore(folder, "params", target), metadata.config, metadata.step


def load_for(
    path: epath.PathLike, config: T5Config, shardings: Any = None, *, verify: bool = True
) -> Params:
    """The parameters of a checkpoint that must be of the size of `config`; `UserError` where it is not."""
    folder = find(path, verify=verify)
    refuse_other_model(folder, read_metadata(folder).config, config)
    return load(folder, shardings, verify=False)[0]


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
