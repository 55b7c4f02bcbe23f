"""What the processes of a run tell each other: that one has failed, and what the first one alone knows.

All processes do the same things in the same order. Before they compute together they `agree`; a failure of one of
them elsewhere reaches the others there, and ends all of them with its line and its exit code. So a process ends with
code 2 only where it, or a peer, met a mistake of the user; a peer that died is another code, and is worth another try.
Where the run is one process, nothing of this does anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from flipped_core import failures, interrupts, locks, paths
from flipped_core.errors import UserError

_GATHERED = "_told_to_all"  # an attribute of an exception
_SMALLEST = 1024  # bytes; longer messages are rounded up to few lengths, for each of which a program is compiled


class OtherFailed(UserError):
    """What a process raises because of another one; it ends with that one's exit code."""

    def __init__(self, problem: str, exit_code: int = UserError.exit_code) -> None:
        super().__init__(problem)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """The code with which a command ends after that error: 2 for a mistake or a disk, 1 for a bug."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return interrupts.exit_code(signal.SIGINT)
    refused = failures.storage(error) or paths.bucket_failure(error)
    return UserError.exit_code if refused else 1


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
            problem = f"{_name()}: {str(error) or type(error).__name__}"
            _gather(json.dumps([exit_code_of(error), problem]))
            setattr(error, _GATHERED, True)  # not again in a block around this one
        raise
    agree()


@dataclasses.dataclass(frozen=True)
class Hold:
    """A folder that this run owns, in each of its processes; the first one has the lock."""

    lock: locks.Lock | None

    def check(self) -> None:
        """As `locks.Lock.check`; nothing in the other processes."""
        if self.lock is not None:
            self.lock.check()


@contextlib.contextmanager
def hold(folder: str, what: str) -> Iterator[Hold]:
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
        yield Hold(lock)


def agree() -> None:
    """Returns when all processes have come here.

    Raises:
      OtherFailed: one of them has failed on the way; in its words.
    """
    if count() == 1:
        return
    if said := next(filter(None, _gather("")), None):
        code, problem = json.loads(said)
        raise OtherFailed(problem, code)


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
    """All processes compute together within. A process that fails here cannot notify its peers: it exits immediately.

    A `UserError` is of the arguments, which are the same everywhere, and is raised.
    """
    try:
        with leaving_lost_peers():
            yield
    except UserError:
        raise
    except BaseException:
        if count() == 1:
            raise
        traceback.print_exc()
        _exit()


@contextlib.contextmanager
def leaving_lost_peers() -> Iterator[None]:
    """Ends the process with one line and code 1 where a computation of all processes fails, as when a peer died."""
    try:
        yield
    except Exception as error:
        import jax

        failed = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if count() == 1 or isinstance(error, UserError) or not failed:
            raise
        why = " ".join(str(error).split())[:200]
        hint = "" if "RESOURCE_EXHAUSTED" in why else " did another process end?"
        print(f"error: {_name()}: the computation failed;{hint} {why}", file=sys.stderr)
        _exit()


def _exit() -> NoReturn:
    """An orderly end would wait for the other processes, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


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
