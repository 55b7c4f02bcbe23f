"""Standard streams of a process that may have none: closed by a daemon's parent, or whose reader goes away."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator


def open_closed() -> None:
    """Opens the standard streams that are closed: output goes nowhere, and reading stdin is an error.

    Call it before any file is opened: the next one would get the number of a closed stream, and what libraries print
    would end in that file.
    """
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            # Opened for writing only, stdin refuses to be read instead of being empty.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:  # a higher one than this was free
                os.dup2(null, number)
                os.close(null)
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            stream = io.TextIOWrapper(_buffered(number, mode), "utf-8", "backslashreplace")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _buffered(number: int, mode: str) -> io.BufferedReader | io.BufferedWriter:
    raw = io.FileIO(number, mode, closefd=False)
    return io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)


class ReaderGone(BaseException):
    """Nobody reads stdout any more. No `Exception`, so that no library ends the process for it in its own way."""


class _Lasting(io.FileIO):
    """Takes everything, whether it arrives or not; `lost` is the first error."""

    lost: OSError | None = None

    def write(self, data: object) -> int:
        if self.lost is None:
            try:
                return super().write(data)  # type: ignore[arg-type]
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


class _Ending(io.FileIO):
    """Raises `ReaderGone` where nobody reads."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise ReaderGone from None


def watch_readers(*, lasting: bool) -> None:
    """Decides what happens when nobody reads the output any more, as behind `| head`.

    Args:
      lasting: work goes on, and `lost_output` says afterwards whether something did not arrive; else `ReaderGone` is
        raised where something is printed. What goes to stderr is never waited for.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            if stream.fileno() != number or not isinstance(stream, io.TextIOWrapper):
                continue
            stream.flush()
        except (OSError, ValueError):
            continue
        kind = _Lasting if lasting or number == 2 else _Ending
        watched = io.TextIOWrapper(
            io.BufferedWriter(kind(number, "w", closefd=False)),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, watched)
        setattr(sys, f"__{name}__", watched)


def is_lasting() -> bool:
    """Whether work goes on without a reader."""
    return _raw_stdout() is not None


def lost_output() -> OSError | None:
    """Why what a lasting stdout was asked to print did not arrive; None also where its reader has just gone."""
    raw = _raw_stdout()
    lost = None if raw is None else raw.lost
    return None if isinstance(lost, BrokenPipeError) else lost


def _raw_stdout() -> _Lasting | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Lasting) else None


@contextlib.contextmanager
def native_stderr_held_back(*, show: bool = True) -> Iterator[None]:
    """Keeps what native code writes to stderr from being seen; with `show`, only until the block raises."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        saved = os.dup(2)
        stack.callback(os.close, saved)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            if show:
                with os.fdopen(os.dup(2), "wb") as stderr:
                    shutil.copyfileobj(held, stderr)
            raise
        finally:
            os.dup2(saved, 2)
