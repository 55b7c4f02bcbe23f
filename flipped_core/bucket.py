"""A lock's object in a bucket, by TensorStore's conditional writes (for `gs://`, `ifGenerationMatch`)."""

from __future__ import annotations

import os
from typing import Any

from flipped_core.locks import FILE, Version
from flipped_core.paths import to_path

TIMEOUT = 60.0  # seconds for one request, TensorStore's own retries included


class BucketStore:
    """`flipped_core.locks.Store` over a TensorStore key-value store; a version is an object's generation."""

    def __init__(self, kvstore: Any, name: str) -> None:
        """Args: kvstore: a `tensorstore.KvStore`, opened at the folder; name: the object, for messages."""
        self._kvstore, self._name = kvstore, name

    @classmethod
    def open(cls, folder: str) -> BucketStore:
        """The store of a folder such as `gs://bucket/run`."""
        import tensorstore

        place = f"{os.fspath(to_path(folder))}/"
        kvstore = tensorstore.KvStore.open(place).result(timeout=TIMEOUT)
        return cls(kvstore, f"{place}{FILE}")

    @property
    def name(self) -> str:
        return self._name

    def read(self) -> tuple[bytes, Version]:
        with _as_os_errors():
            found = self._kvstore.read(FILE).result(timeout=TIMEOUT)
        return (found.value if found.state == "value" else b""), found.stamp.generation

    def swap(self, expected: Version, content: bytes) -> Version | None:
        with _as_os_errors():
            write = self._kvstore.write(FILE, content or None, if_equal=expected)
            stamp = write.result(timeout=TIMEOUT)
        return stamp.generation or None

    def close(self) -> None:
        pass


class _as_os_errors:
    """TensorStore raises ValueError and TimeoutError for a bucket that cannot be reached or written."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, TimeoutError)):
            raise OSError(str(error).partition("[")[0].strip() or "no answer") from error
