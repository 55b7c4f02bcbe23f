"""Stopping a run on SIGTERM, Ctrl-C or SIGHUP: after a step on which all processes agree, or at once if asked twice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from flipped_core import interrupts


class Termination(interrupts.Handler):
    """While entered and `arm`ed, a first signal only makes `at(step)` true; a second one ends the process at once.

    Before `arm`, that is until the first step is done, nothing would be saved, and a signal does what it did before.
    """

    def __init__(self, kept: Callable[[], str]) -> None:
        """Args: kept: what a second signal says, such as which checkpoint is the newest."""
        self._kept = kept
        self._signal: int | None = None
        self._called = self._heard = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Termination:
        return self

    def __exit__(self, *_: object) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        self._previous = {}

    def arm(self) -> None:
        """From now on, signals save. Only the main thread may set handlers; elsewhere signals keep their meaning."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for signum in interrupts.SIGNALS:
            previous = signal.getsignal(signum)
            # With several processes JAX's own service notes SIGTERM, which only one of them may get.
            is_jax = signum == signal.SIGTERM and jax.process_count() > 1
            if previous is not signal.SIG_IGN and previous is not None and not is_jax:
                self._previous[signum] = signal.signal(signum, self)

    def at(self, step: int) -> bool:
        """Whether to stop after this step: the same answer in all processes, which must all ask after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def cause(self) -> str:
        """The signal's name."""
        return interrupts.name_of(signal.SIGTERM if self._signal is None else self._signal)

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM, by which a scheduler takes a machine back; else that of the signal."""
        if self._signal is None or self._signal == signal.SIGTERM:
            return 0
        return interrupts.exit_code(self._signal)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._called += 1
        if self._called > 1:
            self._end(signum)
        self._signal = signum
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes

    def received(self, signum: int) -> None:
        self._heard += 1
        if self._heard > 1:
            self._end(signum)

    def _end(self, signum: int) -> None:
        previous = self._previous.get(signum)
        if isinstance(previous, interrupts.AtOnce):
            previous.end(signum, self._kept)
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
            signal.raise_signal(signum)
