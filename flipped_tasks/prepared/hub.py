"""Rows of the Hugging Face hub, through the `datasets` library, from Parquet files only.

The hub keeps a Parquet copy of each dataset at the revision `refs/convert/parquet`. Its files are listed, pinned to
the commit, and given by name to the library's own Parquet reader, so that no code of a dataset is ever run.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from flipped_core.errors import UserError, unknown
from flipped_tasks.datasets import DatasetSpec
from flipped_tasks.row_values import clean_row

_INSTALL = "pip install 'datasets>=4' (the extra 'hub')"
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
_USUAL = ("default", "plain_text")


class HubOrigin:
    """One configuration of one dataset, at one commit."""

    def __init__(self, spec: DatasetSpec, revision: str | None = None):
        """Args: revision: a branch, tag or commit instead of the catalog's."""
        self.spec = spec
        self._asked = revision or spec.hub_revision

    @functools.cached_property
    def _found(self) -> tuple[str, dict[str, list[str]]]:
        """The commit, and split → Parquet files."""
        commit, names = list_files(self.spec.hub_id, self._asked)
        where = f"{self.spec.hub_id} at {self._asked}"
        return commit, split_files(names, self.spec.hub_config, where)

    def describe(self) -> dict[str, Any]:
        commit, files = self._found
        return {
            "kind": "hub",
            "id": self.spec.hub_id,
            "config": self.spec.hub_config,
            "revision": commit,
            "asked": self._asked,
            "files": files,
        }

    def splits(self) -> list[str]:
        return sorted(self._found[1])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        from flipped_tasks.prepared.origins import fit

        commit, files = self._found
        urls = [file_url(self.spec.hub_id, commit, name) for name in files[split]]
        number = 0
        for batch in load_parquet(urls, split).with_format("arrow").iter(batch_size=1000):
            for found in batch.to_pylist():
                number += 1
                where = f"dataset {self.spec.name!r}, split {split!r}, row {number}"
                yield fit(clean_row(found, where), self.spec.columns, where)

    def remark(self, row: dict[str, Any]) -> str | None:
        return None


def list_files(hub_id: str, revision: str) -> tuple[str, list[str]]:
    """The commit that a revision stands for, and the names of its Parquet files. Asks the hub."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise UserError(f"hub: {error.name} is not installed; expected after {_INSTALL}") from error
    try:
        info = HfApi().dataset_info(hub_id, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"hub: cannot list {hub_id} at {revision}: {error}") from error
    except Exception as error:  # the client's own network errors change with its version
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise UserError(f"hub: cannot list {hub_id} at {revision}: {error}") from error
    names = [file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet")]
    return str(info.sha), names


def file_url(hub_id: str, commit: str, name: str) -> str:
    """The address of a file of a commit, as the `datasets` library reads it."""
    return f"hf://datasets/{hub_id}@{commit}/{name}"


def load_parquet(urls: Sequence[str], split: str) -> Any:
    """A `datasets.Dataset` of Parquet files, in their order; they are kept in the library's own cache."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hub: {error.name} is not installed; expected after {_INSTALL}") from error
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files={split: list(urls)}, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"hub: cannot read {urls[0]}: {error}") from error


def split_files(names: Sequence[str], config: str | None, where: str) -> dict[str, list[str]]:
    """split → files of a configuration.

    Knows `<config>/<split>/0000.parquet`, as the hub converts, and `[<folder>/]<split>-00000-of-00001.parquet`.

    Args:
      names: all Parquet files of the repository.
      config: the configuration; None for the only one, or the one called default or plain_text.
      where: for messages.

    Raises:
      UserError: no such configuration, or the hub has converted a part of it only.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        path = pathlib.PurePosixPath(name)
        if part := _SHARD.fullmatch(path.stem):
            folder, split = path.parent.name, part[1]
            folder = "default" if folder in ("", "data") else folder
        elif path.stem.isdigit() and len(path.parts) >= 3:
            folder, split = path.parts[-3], path.parts[-2]
        else:
            folder, split = path.parent.name or "default", path.stem
        found.setdefault(folder, {}).setdefault(split, []).append(name)
    if not found:
        raise UserError(f"hub: {where} has no Parquet files")
    if config is None:
        usual = [name for name in _USUAL if name in found]
        config = next(iter(found)) if len(found) == 1 else usual[0] if usual else None
    if config not in found:
        if config is None:
            raise UserError(f"hub: {where}: expected one configuration, got {', '.join(found)}")
        raise unknown(f"configuration of {where}", config, found)
    for split in found[config]:
        if split.startswith("partial-"):
            raise UserError(
                f"hub: {where} holds only a part of split {split.removeprefix('partial-')!r}; "
                "download it and use --from files:DIR"
            )
    return found[config]
