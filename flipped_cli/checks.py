"""Checks of settings that training and evaluation share, before anything slow or written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from flipped_cli.runs import METHODS
from flipped_core.errors import UserError, unknown
from flipped_core.paths import check_bucket, is_hub, to_local_path, to_path
from flipped_core.settings import declared

if TYPE_CHECKING:
    from flipped_tasks.datasets import DatasetSpec

_LOCAL = ("task_modules",)
# The texts that the demo's checkpoint is pre-trained on; they are of no method.
WORLD_TEXTS = ("world_text", "world_text_with_lists")


def check_paths(run: Any, written: Collection[str] = ()) -> None:
    """Refuses paths of a run that cannot be reached, before anything slow: of each bucket, within seconds.

    Args:
      run: a `TrainRun` or `EvalRun`.
      written: the fields of paths that are written; the others are read.
    """
    for name, one in declared(type(run)).items():
        if not one.setting.path:
            continue
        value = getattr(run, name)
        for path in (value,) if isinstance(value, str) else value or ():
            if name in _LOCAL:
                to_local_path(path, one.label)
            elif not is_hub(path):
                check_bucket(path, one.label, write=name in written)


def check_data_dir(data_dir: str | None) -> None:
    """Refuses a folder that is not there; None stands for the made-up world."""
    if data_dir is not None and not to_path(data_dir, "data_dir").is_dir():
        raise UserError(f"data_dir: expected a folder, there is none at {data_dir}")


def find_dataset(name: str, modules: Sequence[str]) -> DatasetSpec:
    """The dataset of that name; the error says what is missing where no module of one's own was named."""
    from flipped_tasks.datasets import get_dataset
    from mixtures import catalog

    assert catalog.TRAINING, "importing the catalog registers its datasets"
    try:
        return get_dataset(name)
    except UserError as error:
        hint = "" if modules else "; one of your own is known after --module"
        raise UserError(f"{error}{hint}") from None


def method_of(mixture: str) -> str:
    """The method whose name a mixture's or task's name begins with, such as "flipped_train".

    Raises:
      UserError: it begins with no method's name.
    """
    for method in METHODS:
        if mixture.startswith((f"{method}_", f"{method}.")):
            return method
    raise unknown(
        "mixture or task", mixture, [*(f"{method}_train" for method in METHODS), *WORLD_TEXTS]
    )
