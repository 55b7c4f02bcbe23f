"""Writes a dataset once, as a TFDS dataset: `<data_dir>/<dataset, / as __>/<version>/`.

Everything is written into `<version>.incomplete` beside it, shard by shard; a run that was stopped goes on behind
the last whole shard. The folder gets its name when all of it is there, so a reader sees a whole dataset or none.
On storage without an atomic rename (`gs://`) the manifest, without which nothing is read, is moved last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from flipped_core import failures, locks
from flipped_core.errors import UserError
from flipped_core.files import temporary_folder
from flipped_core.paths import is_bucket, move_object
from flipped_core.sealed import CHECKSUM, DAMAGED, is_intact, read_json_file, seal
from flipped_tasks.datasets import DatasetSpec
from flipped_tasks.prepared.origins import Origin
from flipped_tasks.prepared.reading import (
    FORMAT,
    MANIFEST,
    VERSION,
    dataset_folder,
    find,
    hold,
    index_name,
)
from flipped_tasks.prepared.schema import Schema

SHARD_BYTES = 64 << 20
_HEADER, _FOOTER = 12, 4  # bytes of a TFRecord before and after what it holds
_SOURCE = "source.json"

Progress = Callable[[str, int], None]  # (split, rows more)
Json = dict[str, Any]


def prepare(
    spec: DatasetSpec,
    origin: Origin,
    data_dir: str,
    progress: Progress = lambda split, rows: None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    lock: locks.Lock | None = None,
) -> tuple[Json, bool]:
    """Stores a dataset and returns its manifest, and whether anything was written.

    Args:
      spec: what the rows must be like; rows without a label are dropped and counted.
      origin: where they come from.
      data_dir: the folder of all datasets, local or `gs://`.
      progress: hears of rows that were read.
      force: replaces what was prepared from another source.
      shard_bytes: a file is closed when it has so many bytes.
      lock: of the dataset's folder, where the caller has it (`reading.hold`); else it is taken here.

    Raises:
      UserError: the dataset is there from another source, a row contradicts the catalog or its types, no row has
        a label, a file cannot be read or written, or another process prepares it.
    """
    source = origin.describe()
    try:
        there = find(spec.name, data_dir)
    except UserError:  # what lies there is damaged
        if not force:
            raise
        there = None
    if there is not None:
        if there.manifest["source"] == source:
            return there.manifest, False
        if not force:
            raise UserError(
                f"dataset {spec.name!r} in {data_dir} was prepared from {_brief(there.manifest['source'])}, "
                f"now asked from {_brief(source)}; add --force to replace it, or name another --data_dir"
            )
    try:
        with hold(spec.name, data_dir) if lock is None else contextlib.nullcontext(lock) as held:
            writer = _Writer(spec, origin, source, data_dir, progress, shard_bytes, held)
            return writer.write(), True
    except UserError:
        raise
    except Exception as error:
        problem = failures.storage(error) or (str(error) if isinstance(error, OSError) else None)
        if problem is None:
            raise
        raise UserError(
            f"cannot write dataset {spec.name!r} into {data_dir}: {problem}; whole shards are kept, and the same "
            "command resumes behind them"
        ) from error


def _brief(source: Json) -> str:
    parts = [str(source[key]) for key in ("kind", "id", "revision") if source.get(key)]
    return f"{' '.join(parts)} ({_digest(json.dumps(source, sort_keys=True).encode())[:8]})"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass
class _Split:
    """What is written of a split so far, as `<split>.progress.json` keeps it.

    Attributes:
      rows_read: rows of the source behind which to go on.
      shards: for each whole file, its examples, bytes, sha256 and that of its index.
      dropped, notes: reason → rows that were left out; remark → rows that it is true of.
      left_out: columns of the source that the catalog does not name.
      done: the source has no more rows.
    """

    rows_read: int = 0
    shards: list[Json] = dataclasses.field(default_factory=list)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    left_out: list[str] = dataclasses.field(default_factory=list)
    done: bool = False

    @classmethod
    def read(cls, path: epath.Path) -> _Split:
        """What a stopped run wrote. Raises `UserError` where it is damaged."""
        if not path.exists():
            return cls()
        if not is_intact(path):
            raise UserError(f"{path}: {DAMAGED}")
        content = read_json_file(path)
        del content[CHECKSUM]
        found = cls(**content)
        found.dropped, found.notes = Counter(found.dropped), Counter(found.notes)
        return found

    @property
    def examples(self) -> int:
        return sum(shard["examples"] for shard in self.shards)


class _Writer:
    """Writes one dataset."""

    def __init__(
        self, spec: DatasetSpec, origin: Origin, source: Json, data_dir: str, progress: Progress,
        shard_bytes: int, lock: locks.Lock,
    ):  # fmt: skip
        self.spec, self.origin, self.source, self.progress = spec, origin, source, progress
        self.shard_bytes, self.lock = shard_bytes, lock
        self.schema = Schema(spec)
        self.final = dataset_folder(spec.name, data_dir) / VERSION
        self.staging = self.final.parent / f"{VERSION}.incomplete"
        self.name = tfds_name(spec.name)

    def write(self) -> Json:
        splits = self.origin.splits()
        self._open_staging()
        done = {split: self._write_split(split) for split in splits}
        if not any(one.examples for one in done.values()):
            why = sum((one.dropped for one in done.values()), Counter())
            raise UserError(
                f"dataset {self.spec.name!r}: no example is left "
                f"({', '.join(f'{n} {reason}' for reason, n in why.items()) or 'no rows'})"
            )
        for split, one in done.items():
            self._finish_split(split, one)
        self._write_info(done)
        manifest = self._manifest(done)
        _put(self.staging / MANIFEST, _json(seal(manifest)))
        self.lock.check()
        self._publish()
        return manifest

    def _open_staging(self) -> None:
        """Goes on with a stopped run from the same source; anything else that lies there is removed."""
        marker = self.staging / _SOURCE
        asked = _json({"source": self.source, "format": FORMAT, "shard_bytes": self.shard_bytes})
        if self.staging.exists():
            if marker.exists() and marker.read_bytes() == asked:
                if (wrong := self._damage()) is None:
                    return
                print(f"warning: {wrong}; the dataset is written from its start", file=sys.stderr)
            self.staging.rmtree()
        self.staging.mkdir(parents=True)
        _put(marker, asked)

    def _damage(self) -> str | None:
        """What of a stopped run's files is not as it was written; None where all is."""
        for split in self.origin.splits():
            try:
                state = _Split.read(self._state_file(split))
            except UserError as error:
                return str(error)
            for number, shard in enumerate(state.shards):
                names = (
                    _shard_name(split, number),
                    self._file_name(split, number, len(state.shards)),
                )
                found = [self.staging / n for n in names if (self.staging / n).exists()]
                if not found or _digest(found[0].read_bytes()) != shard["sha256"]:
                    return f"{self.staging / names[0]}: {DAMAGED}"
                part = self.staging / f"{names[0]}.npy"
                if part.exists() and _digest(part.read_bytes()) != shard["index"]:
                    return f"{part}: {DAMAGED}"
        return None

    def _state_file(self, split: str) -> epath.Path:
        return self.staging / f"{split}.progress.json"

    def _write_split(self, split: str) -> _Split:
        state_file = self._state_file(split)
        state = _Split.read(state_file)
        if state.done:
            self.progress(split, state.rows_read)
            return state
        if state.rows_read:
            self.progress(split, state.rows_read)
        rows = itertools.islice(self.origin.rows(split), state.rows_read, None)
        while not state.done:
            data, index = self._next_shard(split, rows, state)
            self.lock.check()
            if len(index):
                number = len(state.shards)
                _put(self.staging / _shard_name(split, number), data)
                places = _npy(index)
                _put(self.staging / f"{_shard_name(split, number)}.npy", places)
                state.shards.append(
                    {
                        "examples": len(index),
                        "bytes": len(data),
                        "sha256": _digest(data),
                        "index": _digest(places),
                    }
                )
            _put(state_file, _json(seal(vars(state))))
        return state

    def _next_shard(
        self, split: str, rows: Iterator[dict[str, Any]], state: _Split
    ) -> tuple[bytes, np.ndarray]:
        """The bytes of a file, and for each record where it starts, its size and its row's number."""
        index: list[tuple[int, int, int]] = []
        size = since = 0
        with temporary_folder() as folder:
            path = str(folder / "shard")
            with tf.io.TFRecordWriter(path) as file:
                while size < self.shard_bytes:
                    row = next(rows, None)
                    if row is None:
                        state.done = True
                        break
                    since += 1
                    if since == 1000:
                        self.progress(split, since)
                        since = 0
                    number, state.rows_read = state.rows_read, state.rows_read + 1
                    if (drop := self.spec.check_row(row, number + 1)) is not None:
                        state.dropped[drop.reason] += 1
                        continue
                    if (note := self.origin.remark(row)) is not None:
                        state.notes[note] += 1
                    if number == 0:
                        state.left_out = [name for name in row if name not in self.spec.columns]
                    record = self.schema.encode(row, number)
                    file.write(record)
                    index.append((size + _HEADER, len(record), number))
                    size += _HEADER + len(record) + _FOOTER
            self.progress(split, since)
            data = pathlib.Path(path).read_bytes()
        assert len(data) == size, (len(data), size)
        return data, np.array(index, np.int64).reshape(-1, 3)

    def _finish_split(self, split: str, state: _Split) -> None:
        """Gives the files their final names, which hold their number, and joins their indices."""
        count = len(state.shards)
        parts = []
        for number in range(count):
            part = self.staging / f"{_shard_name(split, number)}.npy"
            if part.exists():
                rows = np.load(io.BytesIO(part.read_bytes()), allow_pickle=False)
                parts.append(np.insert(rows, 0, number, axis=1))
        if len(parts) == count:  # or else a stopped run has joined them already
            joined = np.concatenate(parts) if parts else np.zeros((0, 4), np.int64)
            _put(self.staging / index_name(split), _npy(joined))
        for number in range(count):
            old = self.staging / _shard_name(split, number)
            if old.exists():
                old.rename(self.staging / self._file_name(split, number, count))
        for number in range(count):
            (self.staging / f"{_shard_name(split, number)}.npy").unlink(missing_ok=True)

    def _file_name(self, split: str, number: int, count: int) -> str:
        return f"{self.name}-{split}.tfrecord-{number:05d}-of-{count:05d}"

    def _write_info(self, done: dict[str, _Split]) -> None:
        template = tfds.core.ShardedFileTemplate(
            dataset_name=self.name, data_dir=self.staging, filetype_suffix="tfrecord"
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self.staging,
            features=self.schema.features(),
            split_infos=[
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard["examples"] for shard in one.shards],
                    num_bytes=sum(shard["bytes"] for shard in one.shards),
                    filename_template=template.replace(split=split),
                )
                for split, one in done.items()
                if one.shards
            ],
            version=VERSION,
            filename_template=template,
            check_data=False,
            description=f"{self.spec.name}, stored by `flipped data prepare`.",
        )

    def _manifest(self, done: dict[str, _Split]) -> Json:
        sums: dict[str, Json] = {}
        for path in self.staging.iterdir():
            if path.suffix in (".npy", ".json", ".txt") and path.name != MANIFEST:
                if _is_state(path.name):
                    continue
                data = path.read_bytes()
                sums[path.name] = {"bytes": len(data), "sha256": _digest(data)}
        splits = {}
        for split, one in done.items():
            for number, shard in enumerate(one.shards):
                name = self._file_name(split, number, len(one.shards))
                sums[name] = {"bytes": shard["bytes"], "sha256": shard["sha256"]}
            splits[split] = {
                "rows": one.rows_read,
                "examples": one.examples,
                "published": self.spec.splits.get(split),
                "dropped": dict(one.dropped),
                "notes": dict(one.notes),
                "columns_left_out": one.left_out,
                "shards": [
                    self._file_name(split, number, len(one.shards))
                    for number in range(len(one.shards))
                ],
            }
        return {
            "format": FORMAT,
            "dataset": self.spec.name,
            "version": VERSION,
            "source": self.source,
            "splits": splits,
            "files": dict(sorted(sums.items())),
        }

    def _publish(self) -> None:
        for path in list(self.staging.iterdir()):
            if _is_state(path.name):
                path.unlink()
        if not is_bucket(self.final):
            old = self.final.parent / f"{VERSION}.replaced"
            if self.final.exists():
                self.final.rename(old)
            self.staging.rename(self.final)
            old.rmtree(missing_ok=True)
            return
        (self.final / MANIFEST).unlink(missing_ok=True)
        self.final.rmtree(missing_ok=True)
        for path in sorted(self.staging.iterdir(), key=lambda path: path.name == MANIFEST):
            move_object(path, self.final / path.name)


def _is_state(name: str) -> bool:
    """Whether a file is there for a run that goes on, and no part of the dataset."""
    return name == _SOURCE or name.endswith(".progress.json") or name.startswith(".")


def tfds_name(dataset: str) -> str:
    """A dataset's name as TFDS allows it in file names: letters, digits and `_`."""
    return "".join(c if c.isalnum() else "_" for c in dataset).lower()


def _shard_name(split: str, number: int) -> str:
    return f"{split}.part-{number:05d}"


def _put(path: epath.Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    if is_bucket(path):
        path.write_bytes(data)
        return
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(data)
    temporary.replace(path)


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
