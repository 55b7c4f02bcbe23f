"""What a checkpoint says of itself (`about`) and of the run that it is of (`progress`): two small JSON files, typed."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import read_json
from t5_engine.config import T5Config

_JSON_NAMES: dict[type, str] = {int: "integer", str: "string", dict: "object"}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
      step: the number of steps done.
      optimizer: whose state is stored beside the parameters.
      config: the model's.
    """

    step: int
    optimizer: str
    config: T5Config


def read_metadata(folder: epath.PathLike) -> Metadata:
    """The metadata of the checkpoint in that folder; `UserError` where they are not as a save writes them."""
    file = epath.Path(folder) / "about" / "metadata"
    fields = read_json(file)
    kinds = {"step": int, "optimizer": str, "model": dict}
    for name, kind in kinds.items():
        if type(fields.get(name)) is not kind:
            shown = str(fields.get(name))[:80]
            raise UserError(f"{file}: {name}: expected a JSON {_JSON_NAMES[kind]}, got {shown!r}")
    try:
        return Metadata(fields["step"], fields["optimizer"], T5Config.from_dict(fields["model"]))
    except UserError as error:
        raise UserError(f"{file}: model: {error}") from None


def read_progress(folder: epath.Path) -> dict[str, Any]:
    """What was saved as `progress`; {} where nothing was.

    Raises:
      UserError: it is not as a training run writes it.
    """
    file = folder / "progress" / "metadata"
    if not file.exists():
        return {}
    progress = read_json(file)
    expected = {
        "batches": (_is_count, "a number of batches"),
        "dropout_key": (_is_key, "two integers of 32 bits"),
        "unreported": (_are_sums, "an object of finite numbers"),
    }
    for name, (fits, what) in expected.items():
        if name in progress and not fits(progress[name]):
            shown = str(progress[name])[:80]
            raise UserError(f"{file}: {name}: expected {what}, got {shown!r}")
    return progress


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_key(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_count(word) and word < 1 << 32 for word in value)
    )


def _are_sums(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(number) in (int, float) and abs(number) <= sys.float_info.max
        for number in value.values()
    )
