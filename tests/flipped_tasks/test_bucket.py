"""Prepared datasets in a bucket: written, stopped, resumed, verified and read."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flipped_cli.main import main
from flipped_tasks import batches
from flipped_tasks.prepared import reading, writing
from flipped_tasks.prepared.schema import Schema
from flipped_tasks.seqio_tasks import register_task
from tests.gcs_emulator import Emulator

DATA = "gs://bucket/some/data"


@pytest.fixture(autouse=True)
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to stand in, in which nothing appears, such as a folder `gs:`."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


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


def call(*words: str, data_dir: str = DATA) -> Result:
    return CliRunner().invoke(main, [*words, "--data_dir", data_dir], catch_exceptions=False)


def ids(data_dir: str, vocab_path: str, method: str) -> list[bytes]:
    task = register_task("imdb", method, None, data_dir, vocab_path)
    found = batches.batches(task.name, {"inputs": 64, "targets": 32}, 8, seed=0, start_step=30)
    return [i for batch in itertools.islice(found, 5) for i in batch["example_ids"].tolist()]


def below(gcs: Emulator, data_dir: str) -> dict[str, bytes]:
    folder = data_dir.removeprefix("gs://bucket/") + "/"
    return {n.removeprefix(folder): gcs.read(n) for n in gcs.names() if n.startswith(folder)}


def test_a_bucket_is_written_listed_verified_and_read(
    gcs: Emulator, files: str, small_vocab_path: str
) -> None:
    words = ("data", "prepare", "imdb", "glue/mrpc", "--from", f"files:{files}", "--offline")
    made = call(*words)
    assert made.exit_code == 0, made.stderr
    assert f"imdb: train 258; stored in {DATA}/imdb/1.0.0" in made.stdout
    assert {name.rsplit("/", 1)[0] for name in gcs.names()} == {
        f"some/data/{dataset}/1.0.0" for dataset in ("imdb", "glue__mrpc")
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


def test_what_is_missing_is_reported(gcs: Emulator, files: str) -> None:
    empty = call("data", "list")
    assert empty.exit_code == 2 and "expected a folder, there is none" in empty.stderr
    call("data", "prepare", "imdb", "--from", f"files:{files}")
    missing = call("tasks", "lint", "glue/mrpc")
    assert missing.exit_code == 2
    assert f"dataset 'glue/mrpc' is not prepared in {DATA}; expected after" in missing.stderr


def test_a_stopped_run_resumes(gcs: Emulator, files: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert reading.find("imdb", DATA) is None and below(gcs, DATA)
    assert call(*words).exit_code == 0
    other = "gs://bucket/alone"
    assert call(*words, data_dir=other).exit_code == 0
    assert below(gcs, DATA) == below(gcs, other)


def test_the_manifest_appears_last_and_goes_first(gcs: Emulator, files: str) -> None:
    """A reader never meets a dataset of which something is missing, before each request of writing and replacing."""
    manifest, seen = f"imdb/1.0.0/{reading.MANIFEST}", []

    def record(method: str, path: str, number: int) -> None:
        seen.append(below(gcs, DATA))

    gcs.faults.append(record)
    call("data", "prepare", "imdb", "--from", f"files:{files}")
    first = below(gcs, DATA)
    again = call("data", "prepare", "imdb", "--from", "embedded", "--force")
    gcs.faults.clear()
    assert again.exit_code == 0, again.stderr
    second = below(gcs, DATA)
    assert second != first and call("data", "verify").exit_code == 0
    readable = [
        {name: text for name, text in state.items() if name.startswith("imdb/1.0.0/")}
        for state in seen
        if manifest in state
    ]
    assert len(readable) < len(seen) and all(state in (first, second) for state in readable)
