"""Opening parameters in whatever layout they are, and writing them as a checkpoint of ours.

Who needs parameters calls `load` (or `load_for`) with the path that the user gave: a run's folder or one of its
checkpoints, a Hugging Face folder, `hf://OWNER/NAME[@REVISION]` on its hub, or a T5X checkpoint in a folder or in a
bucket.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from flipped_core import hub
from flipped_core.errors import UserError, unknown
from flipped_core.paths import to_path
from t5_engine import (
    checkpoints,
    checksums,
    huggingface_folder,
    manifest,
    t5x_adafactor,
    t5x_files,
)
from t5_engine.config import T5Config
from t5_engine.huggingface_folder import HuggingFaceWeights
from t5_engine.model import Params
from t5_engine.stored_arrays import Path
from t5_engine.t5x_format import T5XWeights
from t5_engine.weights import OwnWeights, Weights, to_params

FORMATS = ("flipped", "hf", "t5x")
ADAFACTOR = "adafactor"
NO_OPTIMIZER = "none"
# What is read of a folder in another format: patterns of the files whose checksums matter.
_READ = {
    "hf": ("config.json", "*.safetensors", "*.bin", "*.index.json"),
    "t5x": ("*",),
}


def open_checkpoint(path: str | pathlib.Path, *, verify: bool = True) -> Weights:
    """The parameters that stand at a path, in the layout that is found there.

    Args:
      path: a run's folder or one of its checkpoints, a Hugging Face folder, or a T5X checkpoint.
      verify: whether to compare the checksums of all files that will be read, where some stand beside them.

    Raises:
      UserError: there is nothing, or nothing that is known; or it is incomplete or damaged.
    """
    return open_as(detect(path), path, verify=verify)


def detect(path: str | pathlib.Path) -> str:
    """The format of what stands at a path: "flipped", "hf" or "t5x".

    Raises:
      UserError: none of them.
    """
    if hub.is_reference(path):
        return "hf"
    if t5x_files.is_checkpoint(path):
        return "t5x"
    folder = to_path(path)
    if not folder.exists():
        raise UserError(f"no checkpoint at {path}: there is nothing")
    if _is_own(folder):
        return "flipped"
    if huggingface_folder.is_folder(path):
        return "hf"
    raise UserError(
        f"no checkpoint at {path}: expected {checkpoints.FOLDER}/<step> (ours), "
        f"{huggingface_folder.CONFIG} (Hugging Face) or checkpoint_<step> (T5X)"
    )


def open_as(name: str, path: str | pathlib.Path, *, verify: bool = True) -> Weights:
    """Like `open_checkpoint`, of a format that the user named: "flipped", "hf" or "t5x"."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    if name == "flipped":
        return OwnWeights(path, verify=verify)
    weights: Weights = HuggingFaceWeights(path) if name == "hf" else T5XWeights(path)
    if verify:
        manifest.refuse_damaged(weights.path, _READ[name])
    return weights


def load(
    path: str | pathlib.Path,
    shardings: Callable[[T5Config], Any] | None = None,
    *,
    verify: bool = True,
) -> tuple[Params, T5Config, int]:
    """The parameters that stand at a path, whatever their layout.

    Args:
      path: as in `open_checkpoint`.
      shardings: from the model's sizes to where they go: one sharding, or a tree of them, of devices of this process
        or of several, which all load the same path; all on this process's first device where not given.
      verify: as in `open_checkpoint`.

    Returns:
      (params, config, step).
    """
    weights = open_checkpoint(path, verify=verify)
    where = None if shardings is None else shardings(weights.config)
    return to_params(weights, where), weights.config, weights.step


def prepare(path: str, config: T5Config) -> None:
    """Downloads a checkpoint of the hub; `UserError` before its tensors where it is of another size than `config`."""
    checkpoints.refuse_other_model(path, huggingface_folder.read_config(path), config)
    HuggingFaceWeights(path)


def load_for(
    path: str | pathlib.Path, config: T5Config, shardings: Any = None, *, verify: bool = True
) -> Params:
    """The parameters that stand at a path, which must be of the size of `config`; `UserError` where not."""
    if detect(path) == "flipped":
        return checkpoints.load_for(path, config, shardings, verify=verify)
    if hub.is_reference(path):
        path = hub.pin(path)
        prepare(path, config)
    weights = open_checkpoint(path, verify=verify)
    checkpoints.refuse_other_model(weights.path, weights.config, config)
    return to_params(weights, shardings)


def save(
    folder: pathlib.Path,
    params: Any,
    config: T5Config,
    step: int,
    moments: Mapping[Path, np.ndarray] | None = None,
) -> None:
    """Writes a checkpoint of ours, as training does, into `folder`.

    Orbax copies what it writes, so that the parameters are in memory twice.

    Args:
      folder: exists; gets `checkpoints/<step>`.
      params: the parameters.
      config: their model.
      step: the training step that they are of.
      moments: what Adafactor remembers; None leaves it out, and training can then only begin with the parameters.
    """
    optimizer = NO_OPTIMIZER if moments is None else ADAFACTOR
    about = {"step": step, "optimizer": optimizer, "model": config.to_dict()}
    items = {"params": ocp.args.StandardSave(params), "about": ocp.args.JsonSave(about)}
    if moments is not None:
        state = t5x_adafactor.to_ours(config, step, moments)
        items["opt_state"] = ocp.args.StandardSave(state)
    place = folder / checkpoints.FOLDER / str(step)
    place.parent.mkdir()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(place.absolute(), args=ocp.args.Composite(**items))
    checksums.write(place)


def moments_of(weights: Weights) -> dict[Path, np.ndarray] | None:
    """What Adafactor remembers beside stored parameters; None where it is not there or has no counterpart here."""
    if isinstance(weights, T5XWeights):
        return weights.moments()
    if not isinstance(weights, OwnWeights):
        return None
    if weights.optimizer != ADAFACTOR:
        return None
    stored = weights.optimizer_arrays()
    return t5x_adafactor.moments_in_ours(stored) if stored else None


def _is_own(path: epath.Path) -> bool:
    if not path.is_dir():
        return False
    if (path / checkpoints.FOLDER).is_dir() or checkpoints.is_step(path):
        return True
    return any(child.name.isdigit() and checkpoints.is_step(child) for child in path.iterdir())
