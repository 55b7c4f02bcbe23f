"""Hashes of what a score depends on: weights, template, data, tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flipped_core.errors import UserError
from flipped_core.paths import explain, to_path

# Part of every key: raised when the same request would be scored differently by a newer version of this code.
VERSION = 1


def fingerprint(params: Any) -> str:
    """A hash of all weights: of each parameter's path, shape, dtype and bytes, in the order of paths."""
    import jax

    digest = hashlib.blake2b(digest_size=16)
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        array = np.asarray(leaf)
        digest.update(f"{path}\n{array.shape}\n{array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_hash(path: str, field: str = "vocab_path") -> str:
    """A hash of a file's bytes; `UserError` with the setting's name where it cannot be read."""
    try:
        return hashlib.blake2b(to_path(path, field).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"{field}: cannot read {path}: {explain(error)}") from error


def rows_hash(rows: Iterable[tuple[int, Mapping]]) -> str:
    """A hash of (place, row): the version of a split."""
    digest = hashlib.blake2b(digest_size=16)
    for number, row in rows:
        digest.update(f"{number}\n{_text(row)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def value_hash(value: Any, size: int = 16) -> str:
    """A hash of JSON-like data that does not depend on the order of keys; 2 · `size` hexadecimal digits."""
    return hashlib.blake2b(
        _text(value).encode("utf-8", "surrogatepass"), digest_size=size
    ).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)
