"""Where T5X reads weights from: the folder of one step, looked at before T5X opens it.

T5X draws the parameters that a checkpoint lacks, and reads of further ones nothing, so that one with fewer or more
layers would be trained on without a word.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict

from flipped_core.errors import UserError
from t5_engine import t5x_files

_NAME = re.compile(r"checkpoint_(\d+)")
_INPUTS = ("encoder_input_tokens", "decoder_input_tokens")


def folder(path: str) -> str:
    """The path of a run's folder as T5X wants it: absolute, or of a bucket."""
    return path if "://" in path else str(pathlib.Path(path).absolute())


def steps(model_dir: str) -> list[int]:
    """The steps of the T5X checkpoints in a folder, in order; none where there is no folder."""
    place = epath.Path(model_dir)
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def initial(path: str | None, model: Any, model_dir: str) -> str | None:
    """What a training begins from: `checked`, or None; not looked at where the run goes on from a step of its own."""
    return path if path is None or steps(model_dir) else checked(path, model)


def checked(path: str, model: Any) -> str:
    """The folder `checkpoint_<step>` at a path: that folder itself, or the newest in it.

    Args:
      path: of a T5X checkpoint, native or Orbax.
      model: T5X's, whose parameters must be there, no others, and of the same shapes.

    Raises:
      UserError: no T5X checkpoint, or one of another model.
    """
    try:
        tree = t5x_files.read(path)
    except UserError as error:
        hint = f"; a checkpoint of ours or of Hugging Face becomes one: flipped ckpt export --to t5x {path} OUT"
        raise UserError(f"{error}{hint if pathlib.Path(path).exists() else ''}") from None
    name = tree.path.rstrip("/").rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise UserError(f"{path}: T5X opens only folders named checkpoint_<step>, got {name!r}")
    shapes = jax.eval_shape(
        lambda key: model.get_initial_variables(key, dict.fromkeys(_INPUTS, (1, 1))),
        jax.random.PRNGKey(0),
    )
    _refuse_other_model(tree, flatten_dict(shapes["params"]))
    return tree.path


def _refuse_other_model(tree: t5x_files.Tree, expected: Mapping[tuple[str, ...], Any]) -> None:
    """Compares all names, and the shapes of what is not in a layer or in the first: the layers are alike."""
    there = {name[1:] for name in tree if name[0] == "target"}
    for names, what in (
        (set(expected) - there, "lacks"),
        (there - set(expected), "has, beyond the model's,"),
    ):
        if names:
            raise UserError(
                f"checkpoint {tree.path} is of another model: it {what} {len(names)} parameters, "
                f"such as {'/'.join(min(names))}"
            )
    for name, leaf in sorted(expected.items()):
        if any(re.fullmatch(r"layers_[1-9]\d*", part) for part in name):
            continue
        if (found := tuple(tree["target", *name].shape)) != leaf.shape:
            raise UserError(
                f"checkpoint {tree.path} is of another model: {'/'.join(name)} is {list(found)} there "
                f"and {list(leaf.shape)} here"
            )
