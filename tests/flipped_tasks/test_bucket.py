"""`gs://` without a network: a bucket in memory behind etils.epath, as flat as a real one.

It has no folders, renames no more than one object at a time, and whatever goes past epath does not reach it: `open`
of a gs:// path fails, and pathlib would make a folder called `gs:`.
"""

from __future__ import annotations

import fnmatch
import io
import itertools
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import tensorstore
from click.testing import CliRunner, Result
from etils import epath
from etils.epath import stat_utils
from etils.epath.backend import Backend

from flipped_cli import offline
from flipped_cli.main import main
from flipped_core import locks
from flipped_core.bucket import BucketStore
from flipped_tasks import batches
from flipped_tasks.prepared import reading, writing
from flipped_tasks.prepared.schema import Schema
from flipped_tasks.seqio_tasks import register_task

DATA = "gs://bucket/some/data"


class _Writer(io.BytesIO):
    def __init__(self, bucket: Bucket, name: str):
        super().__init__()
        self._bucket, self._name = bucket, name

    def close(self) -> None:
        if not self.closed:
            self._bucket.objects[self._name] = self.getvalue()
        super().close()


class Bucket(Backend):
    """Objects by name."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def _below(self, path: Any) -> list[str]:
        head = os.fspath(path).rstrip("/") + "/"
        return [name for name in self.objects if name.startswith(head)]

    def _take(self, path: Any) -> bytes:
        if os.fspath(path) not in self.objects:
            raise FileNotFoundError(os.fspath(path))
        return self.objects.pop(os.fspath(path))

    def open(self, path: Any, mode: str) -> Any:
        if "r" in mode:
            if os.fspath(path) not in self.objects:
                raise FileNotFoundError(os.fspath(path))
            data = io.BytesIO(self.objects[os.fspath(path)])
            return data if "b" in mode else io.TextIOWrapper(data, "utf-8")
        data = _Writer(self, os.fspath(path))
        return data if "b" in mode else io.TextIOWrapper(data, "utf-8")

    def exists(self, path: Any) -> bool:
        return os.fspath(path) in self.objects or self.isdir(path)

    def isdir(self, path: Any) -> bool:
        return bool(self._below(path))

    def listdir(self, path: Any) -> list[str]:
        if not (names := self._below(path)):
            raise FileNotFoundError(os.fspath(path))
        start = len(os.fspath(path).rstrip("/")) + 1
        return sorted({name[start:].split("/")[0] for name in names})

    def glob(self, path: Any) -> list[str]:
        return sorted(fnmatch.filter(self.objects, os.fspath(path)))

    def walk(self, top: Any, **how: Any) -> Iterator[Any]:
        raise NotImplementedError

    def makedirs(self, path: Any, **how: Any) -> None:
        pass

    def mkdir(self, path: Any, **how: Any) -> None:
        pass

    def rmtree(self, path: Any) -> None:
        if not (names := self._below(path)):
            raise FileNotFoundError(os.fspath(path))
        for name in names:
            del self.objects[name]

    def remove(self, path: Any) -> None:
        self._take(path)

    def rename(self, path: Any, dst: Any) -> None:
        self.objects[os.fspath(dst)] = self._take(path)

    def replace(self, path: Any, dst: Any) -> None:
        self.rename(path, dst)

    def copy(self, path: Any, dst: Any, overwrite: bool) -> None:
        self.objects[os.fspath(dst)] = self.objects[os.fspath(path)]

    def stat(self, path: Any) -> Any:
        size = len(self.objects[os.fspath(path)])
        return stat_utils.StatResult(is_directory=False, length=size, mtime=0)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Bucket]:
    """What epath finds behind gs://, with every socket refused and an empty folder to stand in."""
    found = Bucket()
    cls: Any = type(epath.Path("gs://bucket"))
    local = cls._backend.fget
    choose = property(lambda path: found if os.fspath(path).startswith("gs://") else local(path))
    monkeypatch.setattr(cls, "_backend", choose)
    monkeypatch.setattr("flipped_cli.data.check_bucket", lambda *path, **how: None)

    # TensorStore reaches buckets past epath.
    context = tensorstore.Context()
    open_local = locks.open_store

    def open_store(folder: str) -> locks.Store:
        if not folder.startswith("gs://"):
            return open_local(folder)
        place = tensorstore.KvStore.open(
            {"driver": "memory", "path": folder + "/"}, context=context
        )
        return BucketStore(place.result(), f"{folder}/{locks.FILE}")

    monkeypatch.setattr(locks, "open_store", open_store)

    def refuse(*args: Any, **how: Any) -> Any:
        raise AssertionError(f"a socket was opened: {args}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for name in offline.SETTINGS:
        monkeypatch.setenv(name, "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield found
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture
def files(tmp_path: pathlib.Path) -> str:
    for dataset, column in (("imdb", "text"), ("glue/mrpc", "sentence1")):
        place = tmp_path / "files" / dataset.replace("/", "__")
        place.mkdir(parents=True)
        rows = [
            {column: f"the {n} cats", "sentence2": f"{n} dogs", "idx": n, "label": n % 2 - (n % 7 == 6) * 2}
            for n in range(300)
        ]  # fmt: skip
        rows = [row | {"label": max(row["label"], -1)} for row in rows]
        (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "files")


def call(*words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--data_dir", DATA], catch_exceptions=False)


def ids(data_dir: str, vocab_path: str, method: str) -> list[bytes]:
    task = register_task("imdb", method, None, data_dir, vocab_path)
    found = batches.batches(task.name, {"inputs": 64, "targets": 32}, 8, seed=0, start_step=30)
    return [i for batch in itertools.islice(found, 5) for i in batch["example_ids"].tolist()]


def test_a_bucket_is_written_listed_verified_and_read(bucket, files, small_vocab_path) -> None:
    words = ("data", "prepare", "imdb", "glue/mrpc", "--from", f"files:{files}", "--offline")
    made = call(*words)
    assert made.exit_code == 0, made.stderr
    assert f"imdb: train 258; stored in {DATA}/imdb/1.0.0" in made.stdout
    assert {name.rsplit("/", 1)[0] for name in bucket.objects} == {
        f"{DATA}/{dataset}/1.0.0" for dataset in ("imdb", "glue__mrpc")
    }
    assert "is already in" in call(*words).stdout
    listed = call("data", "list", "--json", "--offline").stdout.splitlines()
    assert [json.loads(line)["dataset"] for line in listed] == ["glue/mrpc", "imdb"]
    assert call("data", "verify", "--offline").stdout.splitlines() == [
        "glue/mrpc: good",
        "imdb: good",
    ]
    for method in ("direct", "channel", "flipped"):
        assert ids(DATA, small_vocab_path, method) == ids(files, small_vocab_path, method)


def test_what_is_not_there_is_said(bucket, files) -> None:
    empty = call("data", "list")
    assert empty.exit_code == 2 and "expected a folder, there is none" in empty.stderr
    call("data", "prepare", "imdb", "--from", f"files:{files}")
    missing = call("tasks", "lint", "glue/mrpc")
    assert missing.exit_code == 2
    assert f"dataset 'glue/mrpc' is not prepared in {DATA}; expected after" in missing.stderr


def test_a_stopped_run_goes_on_in_a_bucket(bucket, files, monkeypatch) -> None:
    """Nothing can be read of it before, and then it is what one run would have written."""
    words = ("data", "prepare", "imdb", "--from", f"files:{files}")
    encode, calls = Schema.encode, []

    def dying(self: Schema, row: Any, number: int) -> bytes:
        calls.append(number)
        if len(calls) == 200:
            raise KeyboardInterrupt
        return encode(self, row, number)

    prepare = writing.prepare
    monkeypatch.setattr(
        writing, "prepare", lambda *args, **how: prepare(*args, **how, shard_bytes=2_000)
    )
    with monkeypatch.context() as stopped:
        stopped.setattr(Schema, "encode", dying)
        assert call(*words).exit_code != 0
    assert reading.find("imdb", DATA) is None and bucket.objects
    assert call(*words).exit_code == 0
    whole = dict(bucket.objects)
    bucket.objects.clear()
    assert call(*words).exit_code == 0
    assert whole == bucket.objects


def test_the_manifest_is_published_last(bucket, files, monkeypatch) -> None:
    """A reader never meets a dataset of which something is still on its way."""
    rename, seen = Bucket.rename, []

    def noted(self: Bucket, path: Any, dst: Any) -> None:
        seen.append((os.path.basename(os.fspath(dst)), reading.find("imdb", DATA) is None))
        rename(self, path, dst)

    monkeypatch.setattr(Bucket, "rename", noted)
    call("data", "prepare", "imdb", "--from", f"files:{files}")
    assert all(unread for _, unread in seen) and seen[-1][0] == reading.MANIFEST
    assert reading.find("imdb", DATA) is not None
