"""Users' paths: schemes, buckets that do not answer, and writes that are whole or absent."""

from __future__ import annotations

import os
import pathlib
import time

import pytest
from etils import epath

from flipped_core import paths
from flipped_core.errors import UserError
from flipped_core.files import read_json, write_atomically
from tests.gcs_emulator import Emulator


def test_local_paths_are_absolute_and_the_home_folder_is_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert os.fspath(paths.to_path("~/run")) == str(tmp_path / "run")
    assert os.fspath(paths.to_path("run")) == str(tmp_path / "run")
    assert paths.to_local_path("~/run") == tmp_path / "run"


@pytest.mark.parametrize(
    "text",
    [
        "s3://b/x",
        "az://b/x",
        "http://h/x",
        "gs:/b/x",
        "a b://c",
        "gs://",
        "gs://B/x",
        "gs://bucket/../x",
    ],
)
def test_other_schemes_and_malformed_buckets_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="MODEL_DIR: expected .*gs://BUCKET/NAME, got") as caught:
        paths.to_path(text, "MODEL_DIR")
    assert "\n" not in str(caught.value) and not os.path.exists(text.split("/")[0])


def test_what_must_be_local_is_no_bucket() -> None:
    with pytest.raises(UserError, match="PROFILE_DIR: expected a local path, got 'gs://bucket/x'"):
        paths.to_local_path("gs://bucket/x", "PROFILE_DIR")


def test_a_bucket_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gcsfs: pip install .*\[gcs\]"):
        paths.to_path("gs://bucket/x")


def test_a_good_bucket_passes_and_keeps_nothing(gcs: Emulator) -> None:
    paths.check_bucket("gs://bucket/run", "MODEL_DIR", write=True)
    assert gcs.names() == [] and any(request.startswith("POST") for request in gcs.requests)


@pytest.mark.parametrize("status", [401, 403])
def test_a_forbidden_bucket_is_one_line(gcs: Emulator, status: int) -> None:
    gcs.faults.append(lambda method, path, number: status)
    with pytest.raises(UserError, match="MODEL_DIR: expected a bucket that can be read") as caught:
        paths.check_bucket("gs://bucket/run", "MODEL_DIR", write=False)
    assert "\n" not in str(caught.value)


def test_a_read_only_bucket_is_refused_for_writing_only(gcs: Emulator) -> None:
    gcs.faults.append(lambda method, path, number: 403 if method == "POST" else None)
    paths.check_bucket("gs://bucket/run", "DATA_DIR", write=False)
    with pytest.raises(UserError, match="MODEL_DIR: expected a bucket that can be written"):
        paths.check_bucket("gs://bucket/run", "MODEL_DIR", write=True)


def test_a_missing_bucket_is_named(gcs: Emulator) -> None:
    with pytest.raises(UserError, match="there is no bucket gs://absent"):
        paths.check_bucket("gs://absent/run", "MODEL_DIR", write=True)


@pytest.mark.parametrize("status", [0, 503])
def test_a_bucket_that_does_not_answer_is_reported_in_time(
    gcs: Emulator, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(paths, "BUCKET_TIMEOUT", 1.0)
    gcs.faults.append(lambda method, path, number: status)
    began = time.monotonic()
    with pytest.raises(UserError, match="gs://bucket did not answer within 1 s"):
        paths.check_bucket("gs://bucket/run", "MODEL_DIR", write=True)
    assert time.monotonic() - began < 5


def test_a_write_to_a_bucket_is_whole_or_absent(gcs: Emulator) -> None:
    write_atomically("gs://bucket/a/results.json", '{"accuracy": 1}')
    assert read_json("gs://bucket/a/results.json") == {"accuracy": 1}
    gcs.faults.append(lambda method, path, number: 403 if "upload_id" in path else None)
    with pytest.raises(UserError, match="cannot write gs://bucket/a/results.json: "):
        write_atomically("gs://bucket/a/results.json", '{"accuracy": 2}')
    gcs.faults.clear()
    assert read_json("gs://bucket/a/results.json") == {"accuracy": 1}
    assert gcs.names() == ["a/results.json"]


def test_another_host_s_writes_are_seen_at_once(gcs: Emulator) -> None:
    folder = epath.Path("gs://bucket/a")
    (folder / "x").write_text("1")
    assert [child.name for child in folder.iterdir()] == ["x"]
    gcs.write("a/y", b"2")
    assert sorted(child.name for child in folder.iterdir()) == ["x", "y"]
