"""Checkpoints: `<model_dir>/checkpoints/<step>/{params,opt_state,about}`, written by Orbax.

A checkpoint appears under its final name only when it is complete. `about` is a JSON file with the step, the
model's config and the optimizer's name, so that a checkpoint can be read without knowing what it holds.
"""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from flipped_errors import UserError
from t5_engine.config import STRUCTURE_FIELDS, T5Config
from t5_engine.model import Params, abstract_params

FOLDER = "checkpoints"
_ITEMS = ("params", "opt_state", "about")

# Orbax tells every step of its work at level INFO and warns about habits of its own.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one training run."""

    def __init__(self, model_dir: str | pathlib.Path, keep: int | None = None) -> None:
        """Opens (or makes) the folder.

        Args:
          model_dir: the run's folder.
          keep: how many of the newest to keep; None keeps all.
        """
        self.folder = pathlib.Path(model_dir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(
        self, step: int, params: Any, opt_state: Any, config: T5Config, optimizer: str
    ) -> None:
        """Writes a checkpoint in the background; `wait` for it, or save the next one, to be sure that it stands."""
        about = {"step": step, "optimizer": optimizer, "model": config.to_dict()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                about=ocp.args.JsonSave(about),
            ),
            force=True,
        )

    def restore(
        self, step: int, params: Any, opt_state: Any, config: T5Config, optimizer: str
    ) -> tuple[Any, Any]:
        """(params, opt_state) of a step.

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
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
            ),
        )
        return restored["params"], restored["opt_state"]

    def wait(self) -> None:
        """Returns when all that was saved is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self.wait()
        self._manager.close()


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
      path: a checkpoint's own folder, or a run's folder, of which the newest is taken.

    Raises:
      UserError: there is no checkpoint.
    """
    path = pathlib.Path(path).absolute()
    if (path / "about").is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    found = [child for child in _children(folder) if (child / "about").is_dir()]
    if not found:
        raise UserError(f"no checkpoint at {path}: expected a folder <step>/about there or below")
    return max(found, key=lambda child: int(child.name))


def _children(folder: pathlib.Path) -> list[pathlib.Path]:
    return [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []


def read_about(folder: str | pathlib.Path) -> dict[str, Any]:
    """{"step", "optimizer", "model"} of the checkpoint in that folder."""
    file = pathlib.Path(folder) / "about" / "metadata"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected the JSON that describes a checkpoint: {error}"
        ) from error


def load(path: str | pathlib.Path, shardings: Any = None) -> tuple[Params, T5Config, int]:
    """The parameters of a checkpoint, without the optimizer.

    Args:
      path: as in `find`.
      shardings: a tree of the parameters' shardings; all on the first device where not given.

    Returns:
      (params, config, step).
    """
    folder = find(path)
    about = read_about(folder)
    config = T5Config.from_dict(about["model"])
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = with_shardings(abstract_params(config), shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder / "params", target)
    return params, config, int(about["step"])


def load_for(path: str | pathlib.Path, config: T5Config, shardings: Any = None) -> Params:
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


def refuse_other_model(folder: pathlib.Path, there: T5Config, here: T5Config) -> None:
    """A `UserError` that names each size in which the checkpoint (`there`) and the run (`here`) differ."""
    differences = [
        f"{name} is {getattr(there, name)} there and {getattr(here, name)} here"
        for name in STRUCTURE_FIELDS
        if getattr(there, name) != getattr(here, name)
    ]
    if differences:
        raise UserError(f"checkpoint {folder} is of another model: {'; '.join(differences)}")
