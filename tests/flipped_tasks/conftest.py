"""A vocabulary of its own, so that these tests run without the shared data."""

from __future__ import annotations

import pytest

from flipped_tasks.embedded import warmup_texts
from flipped_tasks.embedded.vocabulary import train_vocabulary


@pytest.fixture(scope="session")
def small_vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SentencePiece model of a few hundred pieces, with T5's layout of ids."""
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)
