"""One owner per folder: a lock file that says which process works there, and that outlives no dead process.

A lock is one small object beside the results, `.lock`, which is only changed by compare-and-swap (`Store`): in a local
folder under `flock`, in a bucket by its object's generation (`flipped_core.bucket`). Its owner rewrites it every
`RENEWAL` seconds. It is stale, and taken over with a line that says so, when its owner was a process of this machine
and has ended, or has not renewed it for `STALE` seconds and runs elsewhere. A swap that loses a race looks again, so of
several processes that find a stale lock one gets it. An owner that was suspended and lost its lock meanwhile
finds out in `Lock.check`, before its next write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from flipped_core import interrupts
from flipped_core.errors import UserError
from flipped_core.owners import Owner
from flipped_core.paths import is_bucket, to_local_path
from flipped_core.sealed import parse_json

FILE = ".lock"
RENEWAL = 15.0  # seconds from one renewal to the next
STALE = 90.0  # seconds without a renewal after which a process of another machine is taken for dead
_AHEAD = 86_400.0  # seconds; a renewal later than that from now is none
_SIZE = 1024  # bytes of a lock file: one write replaces all of it
_ATTEMPTS = 20

Version = bytes
Tell = Callable[[str], object]


class Store(Protocol):
    """The one object behind a lock."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def read(self) -> tuple[bytes, Version]:
        """(content, version); the content is empty where there is no object."""

    def swap(self, expected: Version, content: bytes) -> Version | None:
        """Replaces the object if it still has the version `expected`.

        Args:
          expected: as `read` or `swap` gave it, that of an absent object included.
          content: the new content; empty removes the object.

        Returns:
          The new version; None, and nothing has changed, where the object has another one.
        """

    def close(self) -> None:
        """Called when the lock is released: takes back what was made for it."""


class LocalStore:
    """The lock file of a folder on a disk; its content is its version. The folder is made where it is missing."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / FILE
        parents = (folder, *folder.parents)
        self._made = [path for path in parents if not path.exists()]  # deepest first
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_lock(self.name, error) from error

    @property
    def name(self) -> str:
        return str(self._path)

    def read(self) -> tuple[bytes, Version]:
        with self._opened(os.O_RDONLY) as handle:
            content = b"" if handle is None else _content(handle)
        return content, content

    def swap(self, expected: Version, content: bytes) -> Version | None:
        with self._opened(os.O_RDWR if expected else os.O_RDWR | os.O_CREAT) as handle:
            if handle is None or _content(handle) != expected:
                return None
            if not content:
                self._path.unlink()
                return b""
            try:
                os.pwrite(handle, content.ljust(_SIZE), 0)
            except OSError:
                if not expected:
                    self._path.unlink()
                raise
        return content

    def close(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int | None]:
        """The file that has the name now, under an exclusive `flock`; None where there is none."""
        # A link that leads nowhere, or a pipe that nobody writes, must not be waited for.
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            try:
                handle = os.open(self._path, flags, 0o644)
            except FileNotFoundError:
                if flags & os.O_CREAT:
                    self._path.parent.mkdir(parents=True, exist_ok=True)  # another owner left
                    continue
                yield None
                return
            try:
                # A file system without flock leaves a race between two processes that start in the same millisecond.
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if self._is_current(handle):
                    yield handle
                    return
            finally:
                os.close(handle)

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except FileNotFoundError:
            return False


def _content(handle: int) -> bytes:
    return os.pread(handle, _SIZE, 0).rstrip(b" \0\n")


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a lock says: its owner, when that renewed it, and a number of its own."""

    owner: Owner
    renewed: float
    number: str

    def encode(self) -> bytes:
        value = {**dataclasses.asdict(self.owner), "renewed": self.renewed, "number": self.number}
        return json.dumps(value, sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes) -> _Record | None:
        """None for what no lock has written, such as the rest of a crash."""
        try:
            value = parse_json(content)
            owner, renewed, number = Owner.from_json(value), value["renewed"], value["number"]
        except (ValueError, KeyError, TypeError):
            return None
        # No clock is ahead by a day: such a lock would never become stale.
        known = type(renewed) is float and renewed < time.time() + _AHEAD and type(number) is str
        return cls(owner, renewed, number) if known else None

    def stale(self) -> str | None:
        """Why it does not count any more; None where it does."""
        alive = self.owner.is_alive()
        if alive is not None:
            return None if alive else "which is no longer running"
        silent = time.time() - self.renewed
        return f"which was last heard of {silent:.0f} s ago" if silent > STALE else None


class Lock:
    """A folder of this process. `hold` is how to get one."""

    def __init__(self, store: Store, record: _Record, version: Version, folder: str) -> None:
        self._store, self._record, self._version, self._folder = store, record, version, folder
        self._swapping = threading.Lock()
        self._released = threading.Event()
        self._lost = False
        threading.Thread(target=self._keep, name=f"lock of {folder}", daemon=True).start()

    def check(self) -> None:
        """Call it before what must not happen twice.

        Raises:
          UserError: another process has taken the folder over, because this one was suspended or cut off.
        """
        if time.time() - self._record.renewed > STALE / 2:
            self._renew()
        if self._lost:
            raise UserError(
                f"{self._folder} now belongs to another process, because this one did not renew "
                f"{self._store.name} for {STALE:.0f} s; nothing more is written there"
            )

    def release(self) -> None:
        """Gives the folder back; also called while a signal ends the process."""
        if self._released.is_set():
            return
        self._released.set()
        # A signal may interrupt a renewal of this very thread: then the dead process's lock is taken over later.
        if self._swapping.acquire(timeout=2):
            try:
                with contextlib.suppress(Exception):
                    if not self._lost and self._store.swap(self._version, b"") is not None:
                        self._store.close()
            finally:
                self._swapping.release()

    def _keep(self) -> None:
        while not self._released.wait(RENEWAL) and not self._lost:
            self._renew()

    def _renew(self) -> None:
        with self._swapping:
            if self._released.is_set() or self._lost:
                return
            record = dataclasses.replace(self._record, renewed=time.time())
            try:
                version = self._store.swap(self._version, record.encode())
            except Exception:  # noqa: BLE001 - a full disk, a network that is away: the next renewal may succeed
                return
            if version is None:
                self._lost = True
            else:
                self._record, self._version = record, version


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str], what: str, tell: Tell = _say) -> Iterator[Lock]:
    """Makes this process the owner of a folder, which is made where it is missing, until the end of the block.

    Args:
      folder: local, or `gs://…`.
      what: how the user calls it, such as "MODEL_DIR".
      tell: gets a line where the lock of a dead process is taken over.

    Raises:
      UserError: another process holds it (which, where, since when), or it cannot be written.
    """
    lock = acquire(open_store(os.fspath(folder)), f"{what} {os.fspath(folder)}", tell)
    with interrupts.at_once(clean_up=lock.release):
        try:
            yield lock
        finally:
            lock.release()


def acquire(store: Store, folder: str, tell: Tell = _say) -> Lock:
    """As `hold`, for a store."""
    record = _Record(Owner.current(), time.time(), uuid.uuid4().hex)
    try:
        for _ in range(_ATTEMPTS):
            content, version = store.read()
            found = _Record.decode(content) if content else None
            reason = found.stale() if found else None
            if found is not None and reason is None:
                raise _held(folder, found, store)
            new = store.swap(version, record.encode())
            if new is None:
                continue  # another process was quicker
            if found is not None:
                tell(f"note: {folder} is taken over from {found.owner}, {reason}")
            return Lock(store, record, new, folder)
    except OSError as error:
        raise _cannot_lock(store.name, error) from error
    raise UserError(f"{folder}: {store.name} changes all the time; try again")


def _held(folder: str, found: _Record, store: Store) -> UserError:
    owner = found.owner
    if owner == Owner.current():
        return UserError(f"{folder} is in use by this very process")
    hint = "wait for it, or end it"
    if owner.is_alive() is None:
        silent = max(0.0, time.time() - found.renewed)
        hint += (
            f"; it gave a sign of life {silent:.0f} s ago, and {STALE:.0f} s after the last one {store.name} "
            "no longer counts"
        )
    return UserError(f"{folder} is in use by {owner}; {hint}")


def _cannot_lock(name: str, error: OSError) -> UserError:
    return UserError(f"cannot write {name}: {error.strerror or error}")


def open_store(folder: str) -> Store:
    """Where the lock of a folder is."""
    if is_bucket(folder):
        from flipped_core.bucket import BucketStore

        return BucketStore.open(folder)
    return LocalStore(to_local_path(folder))
