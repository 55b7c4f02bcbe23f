"""Where rows come from before they are stored: files of the user, the hub, the built-in world, BIG-bench."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import orjson

from flipped_core.errors import UserError, unknown
from flipped_core.paths import to_local_path
from flipped_tasks import bigbench, sources
from flipped_tasks.datasets import DatasetSpec
from flipped_tasks.files import SUFFIXES, check_split, read_csv, read_file, split_files
from flipped_tasks.row_values import fit_columns

KINDS = ("hub", "files:DIR", "embedded")
STORY_CLOZE = "story_cloze/2016"
# The columns of Story Cloze's manual download and what the hub calls them.
STORY_COLUMNS = {
    "InputStoryid": "story_id",
    **{f"InputSentence{n}": f"input_sentence_{n}" for n in range(1, 5)},
    "RandomFifthSentenceQuiz1": "sentence_quiz1",
    "RandomFifthSentenceQuiz2": "sentence_quiz2",
    "AnswerRightEnding": "answer_right_ending",
}
_STORY_FILE = re.compile(r"cloze_test_(val|test)__spring2016.*\.csv")

Row = dict[str, Any]


class Origin(Protocol):
    """A source of rows."""

    def describe(self) -> dict[str, Any]:
        """What identifies the rows, for the manifest: the same rows give the same description."""

    def splits(self) -> list[str]:
        """The names of all splits, sorted."""

    def rows(self, split: str) -> Iterator[Row]:
        """All rows of a split, in its order."""

    def remark(self, row: Row) -> str | None:
        """What should be counted of a row, in a short machine word."""


def open_origin(
    spec: DatasetSpec, source: str, revision: str | None = None, offline: bool = False
) -> Origin:
    """The origin that a `--from` names.

    Args:
      spec: the dataset.
      source: 'hub', 'files:DIR' or 'embedded'.
      revision: a commit of the hub instead of the catalog's revision.
      offline: the network must not be used.

    Raises:
      UserError: another source, or nothing for this dataset is there.
    """
    if revision is not None and source != "hub":
        raise UserError(f"revision: expected none with {source!r}, got {revision!r}")
    if source == "embedded":
        return EmbeddedOrigin(spec)
    if source == "hub":
        if not spec.hub_id:
            raise UserError(f"dataset {spec.name!r} is not on the hub; expected --from files:DIR")
        if offline:
            raise UserError(
                f"offline: dataset {spec.name!r} is not prepared from the hub yet; prepare it once without --offline"
            )
        from flipped_tasks.prepared.hub import HubOrigin

        return HubOrigin(spec, revision)
    kind, _, folder = source.partition(":")
    if kind != "files" or not folder:
        if pathlib.Path(source).is_dir():
            raise UserError(f"source: expected files:{source} for a folder, got {source!r}")
        raise unknown("source", source, KINDS)
    root = to_local_path(folder, "from")
    if not root.is_dir():
        raise UserError(f"from: expected a folder behind 'files:', there is none at {folder}")
    if bigbench.is_bigbench(spec.name):
        return BigBenchOrigin(spec, root)
    return FilesOrigin(spec, root)


class EmbeddedOrigin:
    """The made-up world."""

    def __init__(self, spec: DatasetSpec):
        self._name = spec.name
        self._splits = sorted(sources.split_names(spec.name, None))

    def describe(self) -> dict[str, Any]:
        return {"kind": "embedded"}

    def splits(self) -> list[str]:
        return self._splits

    def rows(self, split: str) -> Iterator[Row]:
        yield from sources.load_rows(self._name, split, None)

    def remark(self, row: Row) -> str | None:
        return None


class FilesOrigin:
    """`DIR/<dataset, / as __>/<split>.jsonl[.gz]`, `.parquet` or `.csv`, or the dataset's own folder as DIR.

    A split may be cut into `<split>-00000-of-00002.parquet` and so on.
    """

    def __init__(self, spec: DatasetSpec, root: pathlib.Path):
        self.spec = spec
        folder = root / spec.name.replace("/", "__")
        self._folder = folder if folder.is_dir() else root
        self._files = _split_files(self._folder)
        if not self._files:
            raise UserError(
                f"dataset {spec.name!r}: no {', '.join(SUFFIXES)} file in {folder} or {root}"
            )

    @functools.cached_property
    def _sums(self) -> dict[str, str]:
        return {path.name: file_sum(path) for paths in self._files.values() for path in paths}

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "sha256": self._sums}

    def splits(self) -> list[str]:
        return sorted(self._files)

    def rows(self, split: str) -> Iterator[Row]:
        for path in self._files[split]:
            yield from self._read(path)

    def _read(self, path: pathlib.Path) -> Iterator[Row]:
        if self.spec.name == STORY_CLOZE and path.suffix == ".csv":
            yield from read_csv(path, self.spec.columns, STORY_COLUMNS)
            return
        for line in read_file(path, self.spec.columns):
            yield orjson.loads(line)

    def remark(self, row: Row) -> str | None:
        return None


class BigBenchOrigin:
    """`DIR/<task>[/<sub-task>]/task.json[.gz]` of BIG-bench."""

    def __init__(self, spec: DatasetSpec, root: pathlib.Path):
        self._path = bigbench.find_file(spec.name, root)

    def describe(self) -> dict[str, Any]:
        return {"kind": "bigbench", "sha256": {self._path.name: file_sum(self._path)}}

    def splits(self) -> list[str]:
        return [bigbench.SPLIT]

    def rows(self, split: str) -> Iterator[Row]:
        yield from bigbench.read_rows(self._path)

    def remark(self, row: Row) -> str | None:
        return "several_best" if len(bigbench.best(row)) > 1 else None


def file_sum(path: pathlib.Path) -> str:
    """The sha256 of a file. Raises `UserError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _split_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    found = split_files(folder)
    for path in sorted(folder.iterdir()):
        if story := _STORY_FILE.fullmatch(path.name):
            del found[path.name.removesuffix(".csv")]
            split = "validation" if story[1] == "val" else "test"
            found.setdefault(split, []).append(path)
            if len(found[split]) > 1:
                check_split(folder, split, found[split])
    return found


def fit(row: Row, columns: Mapping[str, Any], where: str = "row") -> Row:
    """A row with the types of the catalog; a list of structs, as in some Parquet files, becomes a dict of lists."""
    fit_columns(row, columns, where)
    return row
