"""Reads what `writing` has stored: any row at once, without reading those before it.

TFDS' own reader goes through a split from its start. A stream that can be entered at any place, in a shuffled
order, needs row n at once: an index beside the shards says where each record starts, and local shards are mapped
into memory. So opening a dataset costs milliseconds, whatever its size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from etils import epath

from flipped_core import bounded, locks
from flipped_core.errors import UserError, shown, unknown
from flipped_core.paths import is_bucket, to_path
from flipped_core.sealed import CHECKSUM, DAMAGED, seal
from flipped_tasks.datasets import get_dataset
from flipped_tasks.draws import generator
from flipped_tasks.prepared.schema import Schema

if TYPE_CHECKING:
    import seqio

FORMAT = 1
VERSION = "1.0.0"
MANIFEST = "manifest.json"
INFO_FILE = "dataset_info.json"
_FOOTER = 4  # bytes of a TFRecord behind what it holds: the checksum

Json = dict[str, Any]


def dataset_folder(dataset: str, data_dir: str) -> epath.Path:
    """Where a dataset lies in a folder of datasets; no name can lead out of it."""
    folder = dataset.replace("/", "__")
    if folder in ("", ".", "..") or "\\" in folder:
        raise UserError(f"dataset: expected a name such as 'super_glue/rte', got {dataset!r}")
    return to_path(data_dir, "data_dir") / folder


def index_name(split: str) -> str:
    """The file that says where each record of a split starts."""
    return f"index-{split}.npy"


def hold(dataset: str, data_dir: str) -> contextlib.AbstractContextManager[locks.Lock]:
    """Makes this process the only one that prepares a dataset in a folder, until the end of the block.

    Raises:
      UserError: another process does.
    """
    return locks.hold(dataset_folder(dataset, data_dir), "data folder")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One stored dataset: its folder and its manifest."""

    folder: epath.Path
    manifest: Json

    @property
    def dataset(self) -> str:
        return self.manifest["dataset"]

    def splits(self) -> tuple[str, ...]:
        """All splits of the source, also those of which no row has a label."""
        return tuple(sorted(self.manifest["splits"]))

    def split(self, name: str) -> Json:
        """What the manifest says of a split. Raises `UserError` with the nearest names."""
        if name not in self.manifest["splits"]:
            raise unknown(
                f"split of {self.dataset!r} in {os.fspath(self.folder)!r}", name, self.splits()
            )
        return self.manifest["splits"][name]

    def rows(self, split: str) -> PreparedRows:
        """The labelled rows of a split, in its order."""
        info = self.split(split)
        schema = Schema(get_dataset(self.dataset))
        name = index_name(split)
        file = self.manifest["files"].get(name)
        if file is None:
            raise UserError(f"{self.folder / MANIFEST}: files: expected {name!r}, which is missing")
        index = _load_index(self.folder / name, len(info["shards"]), file["sha256"])
        return PreparedRows(schema, [_Shard(self.folder / name) for name in info["shards"]], index)


def find(dataset: str, data_dir: str) -> Prepared | None:
    """The newest stored version of a dataset; None where there is none.

    Raises:
      UserError: its manifest cannot be read, or is of a format that this version does not know.
    """
    folder = dataset_folder(dataset, data_dir)
    if not folder.exists():
        return None
    versions = [
        path for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / MANIFEST).exists()
    ]  # fmt: skip
    if not versions:
        return None
    newest = max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    return Prepared(newest, _read_manifest(newest / MANIFEST))


def _read_manifest(path: epath.Path) -> Json:
    try:
        manifest = bounded.parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    expected = manifest.pop(CHECKSUM, None) if isinstance(manifest, dict) else None
    if expected is not None and seal(manifest)[CHECKSUM] != expected:
        raise UserError(
            f"{path}: {DAMAGED}: its content does not match its checksum; prepare it again, with --force"
        )
    got = manifest.get("format") if isinstance(manifest, dict) else None
    if got != FORMAT:
        raise UserError(
            f"{path}: expected a manifest of format {FORMAT}, got {shown(got)}; prepare it again, with --force"
        )
    if (wrong := _wrong_field(manifest)) is not None:
        raise UserError(f"{path}: {wrong}; the file is damaged: prepare it again, with --force")
    return manifest


def _wrong_field(manifest: Json) -> str | None:
    """What is not as `writing` writes it."""
    kinds: dict[str, type] = {
        "dataset": str,
        "version": str,
        "source": dict,
        "splits": dict,
        "files": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name}: expected {kind.__name__}, got {type(manifest.get(name)).__name__}"
    names = list(manifest["files"])
    of_split: dict[str, type] = {
        "rows": int,
        "examples": int,
        "dropped": dict,
        "notes": dict,
        "shards": list,
    }
    for split, info in manifest["splits"].items():
        for name, kind in of_split.items():
            value = info.get(name) if isinstance(info, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                return (
                    f"split {split!r}: {name}: expected {kind.__name__}, got {type(value).__name__}"
                )
        names += info["shards"]
        if any(
            type(count) is not int for part in ("dropped", "notes") for count in info[part].values()
        ):
            return f"split {split!r}: expected whole numbers of dropped and noted rows"
    for name, file in manifest["files"].items():
        if not isinstance(file, dict) or not {"bytes", "sha256"} <= set(file):
            return f"files: expected bytes and sha256 of {name!r}"
    for name in [*names, *manifest["splits"]]:
        if (
            not isinstance(name, str)
            or not name
            or "/" in name
            or "\\" in name
            or name in (".", "..")
        ):
            return f"expected the name of a file in this folder, got {name!r}"
    return None


def _load_index(path: epath.Path, shards: int, sha256: str) -> np.ndarray:
    """int64 [rows, 4]: shard, where the record starts, its size, the row's number in the source."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: its sha256 is not the manifest's; run `flipped data verify`")
        index = np.load(io.BytesIO(content), allow_pickle=False)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise UserError(f"cannot read {path}: {error}; run `flipped data verify`") from error
    if index.ndim != 2 or index.shape[1] != 4 or index.dtype.kind != "i":
        raise UserError(f"{path}: expected four columns of numbers, got the shape {index.shape}")
    if len(index) and (index.min() < 0 or index[:, 0].max() >= shards):
        raise UserError(
            f"{path}: expected places in {shards} files, got others; run `flipped data verify`"
        )
    return index


def _masked_crc(record: bytes) -> int:
    """The checksum behind a record of a TFRecord file: CRC-32C, rotated and shifted as TensorFlow's format says."""
    crc = google_crc32c.value(record)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _Shard:
    """The bytes of a file, mapped into memory where it is local, when they are first needed."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._data: mmap.mmap | bytes | None = None

    def read(self, start: int, size: int) -> bytes:
        data = self._data
        if data is None:
            data = self._data = self._open()
        return data[start : start + size]

    def _open(self) -> mmap.mmap | bytes:
        try:
            if is_bucket(self._path):
                return self._path.read_bytes()
            with open(self._path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self._path}: {error}") from error


class PreparedRows(Sequence[bytes]):
    """The rows of a split as JSON bytes, each made when it is asked for.

    Attributes:
      numbers: int64 [n], each row's number in the source's split.
    """

    def __init__(self, schema: Schema, shards: Sequence[_Shard], index: np.ndarray):
        self._schema, self._shards, self._index = schema, shards, index

    @property
    def numbers(self) -> np.ndarray:
        return self._index[:, 3]

    def select(self, keep: np.ndarray) -> PreparedRows:
        """Those rows for which `keep`, bool [n], is true."""
        return PreparedRows(self._schema, self._shards, self._index[keep])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return PreparedRows(self._schema, self._shards, self._index[place])
        try:
            return self._schema.decode_json(self.record(place))
        except UserError:
            raise
        except Exception as error:  # protobuf's errors, and those of fields that are not there
            shard = self._shards[self._index[place][0]]
            raise UserError(
                f"{shard._path}: the row at {self._index[place][1]} cannot be read: {type(error).__name__}; "
                "run `flipped data verify`"
            ) from error

    def record(self, place: int) -> bytes:
        """A row as it is stored, a serialized `tf.train.Example`.

        Raises:
          UserError: its bytes are not those that its checksum, TFRecord's own, was made of.
        """
        shard, start, size, _ = self._index[place]
        found = self._shards[shard].read(int(start), int(size) + _FOOTER)
        if len(found) != size + _FOOTER:
            raise UserError(
                f"{self._shards[shard]._path}: expected {size} bytes at {start}, got fewer; "
                "run `flipped data verify`"
            )
        record, footer = found[:-_FOOTER], found[-_FOOTER:]
        if _masked_crc(record) != int.from_bytes(footer, "little"):
            raise UserError(
                f"{self._shards[shard]._path}: {DAMAGED}: the row at {start} does not match its checksum; "
                "run `flipped data verify`"
            )
        return record


def labelled_rows(
    prepared: Prepared, split: str, limit: int | None, sampling_seed: int
) -> tuple[PreparedRows, Counter[str]]:
    """The rows that the same source would give as files, and what was dropped when it was stored.

    Args:
      limit: a split of which the source has more rows is sampled down as the source would be.

    Raises:
      UserError: no row has a label.
    """
    info = prepared.split(split)
    rows = prepared.rows(split)
    if limit is not None and info["rows"] > limit:
        order = generator(sampling_seed, prepared.dataset, split).permutation(info["rows"])
        rows = rows.select(np.isin(rows.numbers, order[:limit]))
    dropped: Counter[str] = Counter(info["dropped"])
    if not len(rows):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no rows"
        raise UserError(
            f"dataset {prepared.dataset!r}, split {split!r}: no example is left ({why})"
        )
    return rows, dropped


def tfds_source(prepared: Prepared) -> seqio.TfdsDataSource:
    """SeqIO's own source of the stored features, in the order of the files."""
    import seqio  # TensorFlow takes seconds to load, and reading rows does not need all of it

    return seqio.TfdsDataSource(tfds_data_dir=os.fspath(prepared.folder), read_only=True)


def verify(
    prepared: Prepared, progress: Callable[[str, int], None] = lambda split, rows: None
) -> list[str]:
    """What is wrong with a stored dataset: sizes and sha256 of all files, counts, every row; [] for nothing."""
    wrong = []
    for name, expected in prepared.manifest["files"].items():
        path = prepared.folder / name
        if not path.exists():
            wrong.append(f"{name}: missing")
            continue
        data = path.read_bytes()
        if len(data) != expected["bytes"]:
            wrong.append(f"{name}: expected {expected['bytes']} bytes, got {len(data)}")
        elif hashlib.sha256(data).hexdigest() != expected["sha256"]:
            wrong.append(f"{name}: its sha256 is not the manifest's")
    if wrong:
        return wrong
    spec = get_dataset(prepared.dataset)
    for split in prepared.splits():
        info = prepared.split(split)
        rows = prepared.rows(split)
        left = info["rows"] - sum(info["dropped"].values())
        if not len(rows) == info["examples"] == left:
            wrong.append(f"split {split}: {len(rows)} rows, {info['examples']} in the manifest")
        schema = Schema(spec)
        for place in range(len(rows)):
            try:
                spec.check_row(schema.decode(rows.record(place)), int(rows.numbers[place]) + 1)
            except (UserError, ValueError, LookupError, TypeError) as error:
                wrong.append(f"split {split}: {error}")
                break
            if place % 1000 == 999:
                progress(split, 1000)
        progress(split, len(rows) % 1000)
    return wrong
