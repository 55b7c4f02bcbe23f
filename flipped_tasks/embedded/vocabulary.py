"""A small SentencePiece vocabulary for the made-up world, with T5's layout of ids."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Iterable

VOCABULARY_SIZE = 1536


def train_vocabulary(
    texts: Iterable[str], path: str | os.PathLike[str], size: int = VOCABULARY_SIZE
) -> None:
    """Trains a byte-pair model on `texts` and writes it to `path` (through a temporary name).

    Ids are T5's: pad 0, eos 1, unk 2; the 100 sentinels are not in the file, they follow its last piece.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".partial")
    temporary.write_bytes(model.getvalue())
    temporary.rename(target)
