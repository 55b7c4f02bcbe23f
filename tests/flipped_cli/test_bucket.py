"""Paths in buckets, as a user types them: what is refused, in one line, before anything is written or compiled."""

from __future__ import annotations

import pathlib
import time

import pytest
from click.testing import CliRunner, Result

from flipped_cli.main import main
from tests.gcs_emulator import Emulator


@pytest.fixture(autouse=True)
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


COMMANDS = [
    ("eval", "--checkpoint", "{}", "--output", "out", "--suite", "nlp14"),
    ("eval", "--checkpoint", "gs://bucket/run", "--output", "{}", "--suite", "nlp14"),
    ("report", "{}"),
    ("ckpt", "init", "gs://bucket/out", "--model", "tiny", "--vocab", "{}"),
    ("ckpt", "info", "{}"),
    ("ckpt", "cp", "{}", "out"),
    ("data", "list", "--data_dir", "{}"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("path", ["s3://bucket/x", "gs:/bucket/x"])
def test_other_schemes_are_one_line(
    gcs: Emulator, here: pathlib.Path, words: tuple[str, ...], path: str
) -> None:
    said = call(*(word.format(path) for word in words))
    assert said.exit_code == 2, said.output
    [line] = said.stderr.strip().splitlines()
    assert "gs://BUCKET/NAME" in line and path in line
    assert list(here.iterdir()) == [] and gcs.names() == []


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_a_missing_bucket_is_one_line_in_time(
    gcs: Emulator, here: pathlib.Path, words: tuple[str, ...]
) -> None:
    began = time.monotonic()
    said = call(*(word.format("gs://absent/x") for word in words))
    assert said.exit_code == 2, (said.output, said.exception)
    [line] = said.stderr.strip().splitlines()
    assert "gs://absent" in line
    assert list(here.iterdir()) == [] and gcs.names() == []
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "words",
    [
        ("tasks", "new", "my_rows", "--folder", "gs://bucket/x"),
        ("demo", "--output", "gs://bucket/x"),
        ("data", "prepare", "imdb", "--from", "files:gs://bucket/x", "--data_dir", "data"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_cannot_be_in_a_bucket_is_refused_before_anything_is_written(
    gcs: Emulator, here: pathlib.Path, words: tuple[str, ...]
) -> None:
    said = call(*words)
    assert said.exit_code == 2, (said.output, said.exception)
    assert "expected a local path, got 'gs://bucket/x'" in said.stderr
    assert list(here.iterdir()) == [] and gcs.names() == []
