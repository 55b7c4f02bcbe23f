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

from flipped_core import hub
from flipped_core.errors import UserError, unknown
from t5_engine import checkpoints, checksums, huggingface_folder, t5x_adafactor, t5x_files
from t5_engine.config import T5Config
from t5_engine.huggingface_folder import HuggingFaceWeights
from t5_engine.model import Params
from t5_engine.stored_arrays import BUCKET, Folder, Path, orbax_arrays
from t5_engine.t5x_format import T5XWeights
from t5_engine.weights import OwnWeights, Weights, to_params

FORMATS: dict[str, Callable[[str | pathlib.Path], Weights]] = {
    "flipped": OwnWeights,
    "hf": HuggingFaceWeights,
    "t5x": T5XWeights,
}
ADAFACTOR = "adafactor"
NO_OPTIMIZER = "none"


def open_checkpoint(path: str | pathlib.Path) -> Weights:
    """The parameters that stand at a path, in the layout that is found there.

    Raises:
      UserError: there is nothing, or nothing that is known; or the layout's reader finds it incomplete.
    """
    return FORMATS[detect(path)](path)


def detect(path: str | pathlib.Path) -> str:
    """The format of what stands at a path: "flipped", "hf" or "t5x".

    Raises:
      UserError: none of them.
    """
    if hub.is_reference(path):
        return "hf"
    if t5x_files.is_checkpoint(path):
        return "t5x"
    if str(path).startswith(BUCKET):
        return "flipped"  # whose reader lists the bucket, and says what it misses there
    if not pathlib.Path(path).exists():
        raise UserError(f"no checkpoint at {path}: there is nothing")
    if _is_own(pathlib.Path(path)):
        return "flipped"
    if huggingface_folder.is_folder(path):
        return "hf"
    raise UserError(
        f"no checkpoint at {path}: expected {checkpoints.FOLDER}/<step> (ours), "
        f"{huggingface_folder.CONFIG} (Hugging Face) or checkpoint_<step> (T5X)"
    )


def open_as(name: str, path: str | pathlib.Path) -> Weights:
    """Like `open_checkpoint`, of a format that the user named: "flipped", "hf" or "t5x"."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name](path)


def load(
    path: str | pathlib.Path, shardings: Callable[[T5Config], Any] | None = None
) -> tuple[Params, T5Config, int]:
    """The parameters that stand at a path, whatever their layout.

    Args:
      path: as in `open_checkpoint`.
      shardings: from the model's sizes to where they go: one sharding, or a tree of them, of devices of this process
        or of several, none of which waits for another; all on this process's first device where not given.

    Returns:
      (params, config, step).
    """
    weights = open_checkpoint(path)
    where = None if shardings is None else shardings(weights.config)
    return to_params(weights, where), weights.config, weights.step


def prepare(path: str, config: T5Config) -> None:
    """Downloads a checkpoint of the hub; `UserError` before its tensors where it is of another size than `config`."""
    checkpoints.refuse_other_model(path, huggingface_folder.read_config(path), config)
    HuggingFaceWeights(path)


def load_for(path: str | pathlib.Path, config: T5Config, shardings: Any = None) -> Params:
    """The parameters that stand at a path, which must be of the size of `config`; `UserError` where not."""
    if detect(path) == "flipped":
        return checkpoints.load_for(path, config, shardings)
    if hub.is_reference(path):
        path = hub.pin(path)
        prepare(path, config)
    weights = open_checkpoint(path)
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
    if checkpoints.read_about(weights.path)["optimizer"] != ADAFACTOR:
        return None
    stored = orbax_arrays(Folder(f"{weights.path}/opt_state"))
    return None if stored is None else t5x_adafactor.moments_in_ours(stored)


def _is_own(path: pathlib.Path) -> bool:
    if not path.is_dir():
        return False
    if (path / "about").is_dir() or (path / checkpoints.FOLDER).is_dir():
        return True
    return any(child.name.isdigit() and (child / "about").is_dir() for child in path.iterdir())
