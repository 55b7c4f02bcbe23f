"""Fixtures for all tests: the shared worked cases and real rows, a small vocabulary, a clean registry."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests import gcs_emulator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _shared_dir() -> pathlib.Path:
    named = os.environ.get("FLIPPED_SHARED_DIR")
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared"
    return pathlib.Path(named) if named else beside


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder of worked cases and real rows; tests that need it skip where it is missing."""
    folder = _shared_dir()
    if not (folder / "gold" / "sample.jsonl").exists():
        pytest.skip(f"no shared data at {folder}; set FLIPPED_SHARED_DIR to run this test")
    return folder


@pytest.fixture(scope="session")
def t5_vocab_path(shared_dir: pathlib.Path) -> str:
    """The real T5 SentencePiece model (32,000 pieces, without sentinels)."""
    return str(shared_dir / "data" / "t5_vocab" / "sentencepiece.model")


@pytest.fixture(scope="session")
def real_rows_dir(shared_dir: pathlib.Path) -> str:
    """Real rows of real datasets, as `<dataset, / as __>/<split>.jsonl.gz`."""
    return str(shared_dir / "data" / "nlp")


@pytest.fixture(scope="session")
def small_vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SentencePiece model of a few hundred pieces, with T5's layout of ids; it needs no shared data."""
    from flipped_tasks.embedded import warmup_texts
    from flipped_tasks.embedded.vocabulary import train_vocabulary

    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcs_emulator.Emulator]:
    """A Cloud Storage stand-in on loopback with the empty bucket gs://bucket; etils, gcsfs and TensorStore reach it."""
    with gcs_emulator.running() as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        gcs_emulator.forget_clients()
        yield served
    gcs_emulator.forget_clients()


@pytest.fixture
def own_datasets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of one's own datasets run anew, and what they register is taken back."""
    from mixtures import modules, own

    monkeypatch.setattr(modules, "_loaded", set())
    yield
    own.forget_all()
