"""Ending a command on Ctrl-C (SIGINT), SIGTERM and SIGHUP: at once, in one line, without a traceback.

A command calls `install` before anything slow is imported. From then on a signal runs the handler in force: `AtOnce`
says what is kept, cleans up and leaves the process. Python runs handlers only between two steps of its main thread,
and an import, a compilation or a write may take minutes of native code; so a thread reads the signals too
(`signal.set_wakeup_fd`) and passes each to the handler's `received`. No exception is thrown into foreign code, which
might swallow or wrap it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_code(signum: int) -> int:
    """What a process that a signal ended returns: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + signum


def name_of(signum: int) -> str:
    """As the user knows it."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class Handler:
    """A signal handler that also hears of signals while native code keeps the main thread."""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread."""

    def received(self, signum: int) -> None:
        """In the thread that reads the signals, at once."""


class AtOnce(Handler):
    """Ends the process with one line."""

    def __init__(
        self,
        kept: Callable[[], str] | None = None,
        clean_up: tuple[Callable[[], object], ...] = (),
        ending: dict[str, tuple[int, object]] | None = None,
        output: int = 2,
    ) -> None:
        """Args:
        kept: what the line says behind the signal's name.
        clean_up: called before the end, the last first.
        ending: gets the thread that ends the process, and the call in which it does.
        output: the file descriptor of the line.
        """
        self.kept, self.clean_up, self.output = kept, clean_up, output
        self.ending = {} if ending is None else ending

    def within(
        self, kept: Callable[[], str] | None, clean_up: Callable[[], object] | None
    ) -> AtOnce:
        """The handler of a block in which more is to be said or cleaned up."""
        actions = self.clean_up + (() if clean_up is None else (clean_up,))
        return AtOnce(kept or self.kept, actions, self.ending, self.output)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.end(signum)

    def received(self, signum: int) -> None:
        self.end(signum)

    def end(self, signum: int, kept: Callable[[], str] | None = None) -> None:
        """Says so, cleans up and leaves; `kept` replaces the handler's own.

        Returns only where a further signal interrupts the ending of the same thread, which then continues.
        """
        this = (threading.get_ident(), object())
        # One atomic call, because a signal may come at any point of this method.
        first = self.ending.setdefault("by", this)
        if first is not this:
            if first[0] == this[0]:
                return
            while True:  # the other thread ends the process
                time.sleep(1)
        words = ""
        with contextlib.suppress(Exception):
            words = ((kept or self.kept) or str)()
        line = f"interrupted ({name_of(signum)})" + (f": {words}" if words else "")
        with contextlib.suppress(OSError):
            # Not print: the signal may have come while the main thread was writing to the same buffer.
            start = "\n" if os.isatty(self.output) else ""  # behind a progress bar
            os.write(self.output, f"{start}{line}\n".encode())
        for action in reversed(self.clean_up):
            with contextlib.suppress(Exception):
                action()
        os._exit(exit_code(signum))


def install() -> None:
    """Makes this process end at once on a signal; one that is ignored (nohup, a shell's `&`) stays so."""
    if isinstance(signal.getsignal(signal.SIGTERM), Handler):
        return
    handler = AtOnce(output=os.dup(2))  # 2 itself is held back while libraries greet
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_pass_on, args=(reading,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_forget)


def _pass_on(reading: int) -> None:
    while numbers := os.read(reading, 64):
        for signum in numbers:
            handler = signal.getsignal(signum)
            if isinstance(handler, Handler):
                handler.received(signum)


def _forget() -> None:
    """A forked child shares the pipe, and must not end its parent."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        if isinstance(signal.getsignal(signum), Handler):
            signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def at_once(
    kept: Callable[[], str] | None = None, clean_up: Callable[[], object] | None = None
) -> Iterator[None]:
    """Within, a signal says `kept` and calls `clean_up`, where a command has installed `AtOnce`; else nothing changes.

    Args:
      kept: for instance "the scores so far are in results"; None keeps that of the block around.
      clean_up: called before those of the blocks around.
    """
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    ours = {signum: one for signum, one in before.items() if isinstance(one, AtOnce)}
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    for signum, one in ours.items():
        signal.signal(signum, one.within(kept, clean_up))
    try:
        yield
    finally:
        for signum, one in ours.items():
            signal.signal(signum, one)
