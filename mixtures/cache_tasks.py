"""Imported by `seqio_cache_tasks --module_import=mixtures.cache_tasks`: registers `rows.<dataset>` for each dataset.

`FLIPPED_DATA_DIR` names the folder of prepared datasets; without it the embedded world is cached. See docs/data.md.
"""

from __future__ import annotations

import os

from flipped_core.errors import UserError
from flipped_tasks.caching import register_rows_task
from flipped_tasks.sources import split_names
from mixtures import catalog

DATA_DIR = os.environ.get("FLIPPED_DATA_DIR") or None


def register_all(data_dir: str | None) -> list[str]:
    """Registers the tasks of all training datasets that are there; returns their names.

    Raises:
      UserError: none is there.
    """
    names = []
    for dataset in (*catalog.TRAINING, *catalog.ALTERNATIVES.values()):
        try:
            split_names(dataset, data_dir)
        except UserError:
            continue
        names.append(register_rows_task(dataset, data_dir).name)
    if not names:
        raise UserError(f"FLIPPED_DATA_DIR: no training dataset is in {data_dir}")
    return names


register_all(DATA_DIR)
