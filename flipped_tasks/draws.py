"""Random draws that depend on names and counters only: (seed, epoch, example), never on what was drawn before.

So a stream can start anywhere, on any host, and give what an uninterrupted run gives there.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np

_MASK = (1 << 64) - 1


def draw(size: int, *keys: int | str) -> int:
    """A number in 0..size-1, uniform over `keys` (blake2b of them; the bias is below size / 2^64)."""
    text = "\x1f".join(map(str, keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % size


def generator(*keys: int | str) -> np.random.Generator:
    """NumPy's generator for these keys; the same keys give the same stream on every machine."""
    return np.random.default_rng(
        [key & _MASK if isinstance(key, int) else zlib.crc32(key.encode()) for key in keys]
    )
