"""The files of T5X checkpoints, without a word about what the arrays in them mean.

Two layouts occur, and the public LM-adapted checkpoints are of the first:

- native: `checkpoint_<step>/checkpoint`, a msgpack file with the tree {"version", "optimizer": {"target",
  "state"}}. Small arrays stand in it; for the others it has a TensorStore specification that names a folder
  beside it, such as `target.encoder.layers_0.mlp.wo.kernel/`, one zarr array each.
- Orbax: `checkpoint_<step>/state/`, a tree {"target", "state"} as Orbax stores it.

Source: google-research/t5x, `checkpoints.py` and `checkpoint_utils.py` (its state of April 2026).
"""

from __future__ import annotations

import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from flipped_core.errors import UserError, unknown
from flipped_core.paths import is_bucket, to_path
from t5_engine.stored_arrays import (
    ORBAX_TREE,
    Folder,
    HeldArray,
    Opener,
    Path,
    Stored,
    name_in_spec,
    orbax_arrays,
)

LAYOUTS = ("native", "orbax")
TREE = "checkpoint"  # the msgpack file
STATE = "state"
VERSION = 3
CHUNK_BYTES = 64 * 2**20
_STEP = re.compile(r"checkpoint_(\d+)")
_BESIDE = "PLACEHOLDER://"  # early Orbax: the array of this name stands beside the msgpack file


class Tree(Mapping[Path, Stored]):
    """The arrays of a checkpoint by their path from the root, such as ("target", "encoder", …).

    Attributes:
      path: the checkpoint's folder.
      layout: "native" or "orbax".
    """

    def __init__(self, path: str, layout: str, openers: Mapping[Path, Opener]):
        self.path, self.layout, self._openers = path, layout, openers

    def __getitem__(self, path: Path) -> Stored:
        return self._openers[path]()

    def __iter__(self) -> Iterator[Path]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)

    def below(self, *names: str) -> dict[Path, Opener]:
        """The arrays below a path, by the rest of their paths; each is opened when it is called."""
        start = len(names)
        return {
            path[start:]: open_ for path, open_ in self._openers.items() if path[:start] == names
        }


def read(path: str | pathlib.Path) -> Tree:
    """The tree of a checkpoint; no array is read yet.

    Args:
      path: of `checkpoint_<step>`, of the file `checkpoint` in it, or of the folder that holds the steps, of
        which the newest is taken.

    Raises:
      UserError: there is no T5X checkpoint, or one of a layout that is not known.
    """
    folder = _find(path)
    for place in (folder.below(STATE), folder):
        if (openers := orbax_arrays(place)) is not None:
            return Tree(folder.path, "orbax", openers)
    for place in (folder, folder.below(STATE)):
        if (content := place.read(TREE)) is not None:
            return _read_msgpack(folder, place, content)
    raise UserError(
        f"no T5X checkpoint at {folder.path}: expected a file {TREE!r} or {STATE}/{ORBAX_TREE} there"
    )


def step_of(tree: Tree) -> int:
    """The training step of a checkpoint; what its folder is called where it does not say; else 0.

    Raises:
      UserError: the step is none, or not that of the folder's name.
    """
    match = _STEP.fullmatch(tree.path.rpartition("/")[2])
    named = int(match[1]) if match else None
    open_ = tree.below(STATE).get(("step",))
    if open_ is None:
        return named or 0
    stored = open_(fill_missing=True)
    if math.prod(stored.shape) != 1:  # before any memory is asked for
        raise UserError(
            f"{tree.path}: state/step: expected a number of steps, got shape {list(stored.shape)}"
        )
    step = stored.read()
    if not np.issubdtype(step.dtype, np.integer) or step.item() < 0:
        raise UserError(
            f"{tree.path}: state/step: expected a number of steps, got {str(step)[:80]!r}"
        )
    if named is not None and step.item() != named:
        raise UserError(
            f"{tree.path}: it was saved at step {step.item()}; expected that of its name"
        )
    return int(step.item())


def is_checkpoint(path: str | pathlib.Path) -> bool:
    """Whether the files of one of the layouts, or the folder of a step, are there."""
    if not is_bucket(path) and pathlib.Path(path).is_file():
        return pathlib.Path(path).name == TREE
    folder = Folder(path)
    files = (TREE, ORBAX_TREE, f"{STATE}/{ORBAX_TREE}", f"{STATE}/{TREE}")
    return bool(_steps(path)) or any(folder.read(name) is not None for name in files)


def write_native(
    folder: pathlib.Path,
    step: int,
    target: Iterable[tuple[Path, np.ndarray]],
    states: Mapping[Path, np.ndarray],
) -> None:
    """Writes `checkpoint_<step>` of the native layout, array by array.

    Args:
      folder: exists; gets the folder of the step.
      step: the training step.
      target: (path below "target", array) of each parameter.
      states: path below "param_states" -> array; written into the msgpack file.
    """
    folder = folder / f"checkpoint_{step}"
    folder.mkdir()
    written: dict[Path, Any] = {
        ("target", *path): _write_zarr(folder, path, a) for path, a in target
    }
    state: dict[str, Any] = {"step": np.asarray(step, np.int32)}
    if states:
        state["param_states"] = flax.traverse_util.unflatten_dict(dict(states))
    optimizer = {**flax.traverse_util.unflatten_dict(written), "state": state}
    content = flax.serialization.msgpack_serialize({"version": VERSION, "optimizer": optimizer})
    (folder / TREE).write_bytes(content)


def write_orbax(
    folder: pathlib.Path,
    step: int,
    target: Iterable[tuple[Path, np.ndarray]],
    states: Mapping[Path, np.ndarray],
) -> None:
    """Like `write_native`, in the Orbax layout; Orbax wants the whole tree in memory, and copies it."""
    tree: dict[Path, np.ndarray] = {("target", *path): np.asarray(array) for path, array in target}
    tree |= {(STATE, "param_states", *path): array for path, array in states.items()}
    tree[STATE, "step"] = np.asarray(step, np.int32)
    options = ocp.CheckpointManagerOptions(
        create=True, step_prefix="checkpoint", enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(folder, item_names=(STATE,), options=options) as manager:
        item = ocp.args.PyTreeSave(flax.traverse_util.unflatten_dict(tree))
        manager.save(step, args=ocp.args.Composite(**{STATE: item}), force=True)


WRITERS = {"native": write_native, "orbax": write_orbax}


def writer(layout: str) -> Callable[..., None]:
    """`write_native` or `write_orbax`; an unknown layout is a `UserError`."""
    if layout not in WRITERS:
        raise unknown("T5X layout", layout, WRITERS)
    return WRITERS[layout]


def _find(path: str | pathlib.Path) -> Folder:
    """The folder of one checkpoint."""
    if is_bucket(path):
        place = str(to_path(path)).removesuffix(f"/{TREE}")
        steps = [] if _STEP.fullmatch(place.rpartition("/")[2]) else _steps(place)
        return Folder(f"{place}/checkpoint_{max(steps)}" if steps else place)
    local = pathlib.Path(path).absolute()
    if local.is_file() and local.name == TREE:
        local = local.parent
    if not local.is_dir():
        raise UserError(f"no T5X checkpoint at {path}: there is no such folder")
    if steps := _steps(local):
        return Folder(local / f"checkpoint_{max(steps)}")
    return Folder(local)


def _steps(path: str | pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    folder = to_path(path)
    if not folder.is_dir():
        return []
    found = [_STEP.fullmatch(child.name) for child in folder.iterdir()]
    return [int(match[1]) for match in found if match]


def _read_msgpack(folder: Folder, place: Folder, content: bytes) -> Tree:
    """The tree of a `checkpoint` file; `place` is the folder that it stands in."""
    where = f"{place.path}/{TREE}"
    if content.startswith(b"model_checkpoint_path"):
        raise UserError(
            f"{where} belongs to a TensorFlow checkpoint of the Mesh TensorFlow T5; convert it with T5X first"
        )
    try:
        tree = flax.serialization.msgpack_restore(content)
    except Exception as error:  # msgpack and numpy raise a dozen kinds for damaged bytes
        raise UserError(f"{where}: not a whole msgpack file: {error}") from None
    for name in (
        "optimizer",
        "_optimizer",
    ):  # T5X, early Orbax; before T5X's version 1: the tree itself
        if isinstance(tree, dict) and name in tree:
            tree = tree[name]
    if not isinstance(tree, dict) or not isinstance(tree.get("target"), dict):
        raise UserError(f"{where}: expected a tree with 'target', the parameters")
    try:
        flat = flax.traverse_util.flatten_dict(
            tree, is_leaf=lambda _, value: {"driver", "kvstore", "metadata"} <= set(value)
        )
    except RecursionError:
        raise UserError(f"{where}: a tree this deep is none of T5X's") from None
    openers: dict[Path, Opener] = {}
    native = True
    for path, value in flat.items():
        if not all(isinstance(name, str) for name in path):
            raise UserError(f"{where}: expected names of arrays, got {str(path)[:80]!r}")
        if isinstance(value, dict):
            openers[path] = functools.partial(place.array, name_in_spec(value, where))
        elif isinstance(value, str) and value.startswith(_BESIDE):
            name = name_in_spec({"path": value.removeprefix(_BESIDE)}, where)
            openers[path] = functools.partial(place.array, name)
            native = False
        elif value is not None:
            openers[path] = functools.partial(_held, ".".join(path), value, where)
    return Tree(folder.path, "native" if native else "orbax", openers)


def _held(name: str, value: Any, where: str, *, fill_missing: bool = False) -> HeldArray:
    """An array that stands in the msgpack file."""
    try:
        return HeldArray(name, np.asarray(value))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: {name}: expected an array: {error}") from None


def _write_zarr(folder: pathlib.Path, path: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes one array; returns the specification that the msgpack file holds of it."""
    name = ".".join(("target", *path))
    row = array.nbytes // max(1, array.shape[0])
    rows = max(1, min(array.shape[0], CHUNK_BYTES // max(1, row)))
    # Weights hardly shrink: compressing would only cost time.
    metadata = {
        "chunks": [rows, *array.shape[1:]],
        "compressor": None,
        "shape": list(array.shape),
    }
    file = {"driver": "file", "path": f"{folder / name}/"}
    spec = {
        "driver": "zarr",
        "kvstore": file,
        "metadata": {**metadata, "dtype": array.dtype.str},
        # A chunk of zeros is written too: a missing one is then known to be lost.
        "store_data_equal_to_fill_value": True,
    }
    tensorstore.open(spec, create=True).result().write(array).result()
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }
