"""Identity of a process: whether the one that left a lock or a temporary file is still running."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import socket
import time
from typing import Any

_PROC = pathlib.Path("/proc")
_LATEST = 253_000_000_000  # seconds since 1970 that a date can still show: the year 9987


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
      host: the name of its machine.
      scope: the boot and the PID namespace in which `pid` means something; two containers may share a host's name.
      pid: its number there.
      ticks: when it started, in clock ticks since the boot; 0 where the system does not say.
      started: when it started, in seconds since 1970.
    """

    host: str
    scope: str
    pid: int
    ticks: int
    started: float

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        ticks = _start_ticks(pid) or 0
        return cls(socket.gethostname(), _scope(), pid, ticks, _seconds(ticks))

    @classmethod
    def from_json(cls, value: Any) -> Owner:
        """What `dataclasses.asdict` gave.

        Raises:
          ValueError: it is something else.
        """
        types = {"host": str, "scope": str, "pid": int, "ticks": int, "started": float}
        if not isinstance(value, dict) or any(
            type(value.get(name)) is not kind for name, kind in types.items()
        ):
            raise ValueError("not the description of a process")
        found = cls(**{name: value[name] for name in types})
        if not (
            0 < found.pid < 2**31 and 0 <= found.ticks < 2**63 and 0 <= found.started < _LATEST
        ):
            raise ValueError("not the numbers of a process")
        return found

    def is_alive(self) -> bool | None:
        """Whether it still runs; None where this machine cannot tell."""
        if self.scope != _scope() or self.host != socket.gethostname():
            return None
        ticks = _start_ticks(self.pid)
        return ticks is not None and ticks == self.ticks

    @property
    def token(self) -> str:
        """A name for its files; `of_token` reads it."""
        scope = f"{hash_of(self.host + self.scope):08x}"
        return f"{scope}-{self.pid}-{self.ticks}"

    def __str__(self) -> str:
        since = datetime.datetime.fromtimestamp(self.started).astimezone()
        return f"process {self.pid} on {self.host}, started {since.isoformat(' ', 'seconds')}"


def token_is_alive(token: str) -> bool | None:
    """`Owner.is_alive` of the process with that token; None also for what is no token."""
    scope, _, rest = token.partition("-")
    pid, _, ticks = rest.partition("-")
    if scope != Owner.current().token.partition("-")[0] or not (pid.isdigit() and ticks.isdigit()):
        return None
    found = _start_ticks(int(pid))
    return found is not None and found == int(ticks)


def hash_of(text: str) -> int:
    """32 bits that depend on the text only."""
    import zlib

    return zlib.crc32(text.encode())


def _scope() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink(_PROC / "self/ns/pid"))
    return " ".join(parts)


def _start_ticks(pid: int) -> int | None:
    """When a process started; 0 without /proc; None where it has ended, a zombie included."""
    if not (_PROC / "self").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZXx" else int(fields[19])


def _seconds(ticks: int) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = (_PROC / "stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        return float(boot + ticks / os.sysconf("SC_CLK_TCK"))
    return time.time()
