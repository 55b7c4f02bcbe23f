"""Failures of the machine and not of the program: a full or broken disk.

Libraries wrap them: gin raises a copy without `errno`, TensorStore a `ValueError` and TensorFlow an error of its own,
with the system's words in the message. Here they become one line again.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

# What the disk, the rights or the limits of the machine refuse; any other `OSError` may be a bug.
_CODES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO, errno.EBADF,
    errno.ETIMEDOUT, errno.ENOTCONN, errno.EBUSY, errno.ETXTBSY, errno.ELOOP,
)  # fmt: skip
# Words that stand for a disk wherever they occur in a message.
_WORDS = tuple(
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
)
_PATH = re.compile(r"""["'](/[^"']+)["']|(?:^|[\s:])(/[^\s;:,"']+)""")


def storage(error: BaseException) -> str | None:
    """`PATH: No space left on device` and the like, for an error that comes from a disk; None for any other."""
    for one in _chain(error):
        if isinstance(one, BrokenPipeError):
            continue
        if isinstance(one, OSError) and one.errno in _CODES:
            return _line(one.filename2 or one.filename, one.strerror)
    for one in _chain(error):
        text = str(one)
        for words in _WORDS:
            if words in text:
                found = _PATH.search(text)
                return _line(found and (found[1] or found[2]), words)
    return None


def _line(path: object, why: str | None) -> str:
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return f"{name}: {why}" if name else str(why)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]
