"""Checks of settings that training and evaluation share, before anything slow or written."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flipped_cli.runs import METHODS
from flipped_core.errors import UserError, unknown

if TYPE_CHECKING:
    from flipped_tasks.datasets import DatasetSpec

# The texts that the demo's checkpoint is pre-trained on; they are of no method.
WORLD_TEXTS = ("world_text", "world_text_with_lists")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_model_dir(model_dir: str) -> None:
    """Refuses a bucket, written with one slash too, as what has passed through `pathlib` is."""
    if _ADDRESS.match(model_dir):
        raise UserError(
            f"model_dir: expected a folder that all hosts see, got {model_dir}; mount the bucket as a folder "
            f"on every host, with Cloud Storage FUSE for instance"
        )


def check_data_dir(data_dir: str | None) -> None:
    """Refuses a folder that is not there; None stands for the made-up world."""
    if data_dir is None or "://" in data_dir:  # a bucket tells itself what is missing
        return
    if not pathlib.Path(data_dir).is_dir():
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
