"""What the processes of a run tell each other: that one has failed, and what the first one alone knows.

All processes do the same things in the same order. Before they compute together they `agree`; what has failed in one of
them elsewhere is told to the others there, and ends all of them with that one line. Where the run is one process,
nothing of this does anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flipped_core import locks
from flipped_core.errors import UserError

_GATHERED = "_told_to_all"  # an attribute of an exception
_SMALLEST = 1024  # bytes; longer messages are rounded up to few lengths, for each of which a program is compiled


class OtherFailed(UserError):
    """What a process raises because of another one."""


def count() -> int:
    """The number of processes of the run; where they have not joined, no device is looked for."""
    jax = sys.modules.get("jax")  # processes that have joined have imported it
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    import jax

    return 0 if count() == 1 else jax.process_index()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    if count() == 1:
        return True
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def one_for_all() -> Iterator[None]:
    """What one process raises within, outside `computing`, all others raise too: where they next agree, or here."""
    try:
        yield
    except OtherFailed:
        raise
    except BaseException as error:
        if count() > 1 and not hasattr(error, _GATHERED):
            _gather(f"{_name()}: {str(error) or type(error).__name__}")
            setattr(error, _GATHERED, True)  # not again in a block around this one
        raise
    agree()


@contextlib.contextmanager
def hold(folder: str, what: str) -> Iterator[locks.Lock | None]:
    """Makes this run the owner of a folder; of several processes the first holds it, and all are refused together.

    Args:
      folder: local or in a bucket.
      what: how the user calls it, such as "MODEL_DIR".

    Raises:
      UserError: another run holds it.
    """
    with contextlib.ExitStack() as stack:
        lock = None
        with one_for_all():
            if is_first():
                lock = stack.enter_context(locks.hold(folder, what))
        yield lock


def agree() -> None:
    """Returns when all processes have come here.

    Raises:
      OtherFailed: one of them has failed on the way; in its words.
    """
    if count() == 1:
        return
    if problem := next(filter(None, _gather("")), None):
        raise OtherFailed(problem)


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, which alone calls it; in the others by way of JSON."""
    if count() == 1:
        return make()
    from jax.experimental import multihost_utils

    made = make() if is_first() else None
    agree()
    text = json.dumps(made).encode() if is_first() else b""
    with computing():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        told = multihost_utils.broadcast_one_to_all(_padded(text, _rounded(size)))
    return made if is_first() else json.loads(np.asarray(told).tobytes()[:size])


def from_all(text: str) -> list[str]:
    """What each process says, in their order; all of them call it."""
    if count() == 1:
        return [text]
    agree()
    return _gather(text)


def refuse_differences(known: Mapping[str, str]) -> None:
    """Refuses what is not the same in all processes.

    Args:
      known: what it is called, in the plural, and a hash of it.

    Raises:
      OtherFailed: in all processes; names the process, and the first thing that differs.
    """
    if count() == 1:
        return
    agree()
    told = [json.loads(text) for text in _gather(json.dumps([_name(), dict(known)]))]
    for name, theirs in told:
        for what, first in told[0][1].items():
            if theirs.get(what) != first:
                raise OtherFailed(f"{name}: its {what} are not those of {told[0][0]}")


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """All processes compute together within. Who fails there cannot tell the others any more, and ends at once.

    A `UserError` is of the arguments, which are the same everywhere, and is raised.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if count() == 1:
            raise
        import jax

        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            why = " ".join(str(error).split())[:200]
            told = f"error: {_name()}: the computation failed; did another process end? {why}"
            print(told, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an orderly end would wait for the others, which wait for this one


def _name() -> str:
    import jax

    return f"process {jax.process_index()} of {count()} on {socket.gethostname()}"


def _gather(text: str) -> list[str]:
    """What each process says, in their order."""
    from jax.experimental import multihost_utils

    said = text.encode()
    with computing():
        sizes = multihost_utils.process_allgather(np.int32(len(said)))
        if not sizes.any():
            return [""] * len(sizes)
        told = multihost_utils.process_allgather(_padded(said, _rounded(int(sizes.max()))))
    return [
        row.tobytes()[:size].decode() for row, size in zip(np.asarray(told), sizes, strict=True)
    ]


def _rounded(size: int) -> int:
    return max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST


def _padded(text: bytes, size: int) -> np.ndarray:
    """The bytes as whole numbers, which every kind of device can add."""
    return np.frombuffer(text.ljust(size, b"\0"), np.int32)
