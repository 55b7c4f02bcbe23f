"""The vocabulary in SeqIO's form, as its features and T5X name it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from flipped_tasks import tokens


class SeqioVocabulary(seqio.Vocabulary):
    """`tokens.Vocabulary` as SeqIO and T5X want it; vocab_size counts ids, not padded embedding rows."""

    def __init__(self, path: str):
        """Args: path: the SentencePiece model, which has no sentinels."""
        super().__init__(extra_ids=100)
        self.path = str(path)

    @functools.cached_property
    def tokens(self) -> tokens.Vocabulary:
        """The vocabulary itself, read when first needed."""
        return load_vocabulary(self.path)

    @property
    def eos_id(self) -> int:
        return tokens.Vocabulary.eos

    @property
    def pad_id(self) -> int:
        return tokens.Vocabulary.pad

    @property
    def bos_id(self) -> int:
        return tokens.Vocabulary.pad

    @property
    def unk_id(self) -> int:
        return tokens.Vocabulary.unk

    @property
    def _base_vocab_size(self) -> int:
        return self.tokens.sentinel(0) + 1

    @property
    def vocab_size(self) -> int:
        """Ids in use, sentinels included: 32,100 for T5."""
        return self._base_vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokens.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def run(text: bytes | np.ndarray) -> np.ndarray:
            plain = text if isinstance(text, bytes) else text.item()  # an array outside of graphs
            return np.asarray(self.tokens.encode(plain.decode()), np.int32)

        return tf.ensure_shape(tf.numpy_function(run, [tf.convert_to_tensor(s)], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def run(row: np.ndarray) -> bytes:
            return self.tokens.decode(row.tolist()).encode()

        return tf.ensure_shape(tf.numpy_function(run, [ids], tf.string), [])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


@functools.lru_cache(maxsize=8)
def load_vocabulary(path: str) -> tokens.Vocabulary:
    """The vocabulary of a SentencePiece file, read once in a process."""
    return tokens.Vocabulary.from_file(path)
