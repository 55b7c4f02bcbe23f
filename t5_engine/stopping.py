"""Ending a run when the scheduler asks for it (SIGTERM), at a step on which all processes agree."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Termination:
    """While entered, SIGTERM does not end the process; `at(step)` says when to save and end."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> Termination:
        # With several processes JAX's own service notes the signal, which only one of them may get. And only the main
        # thread may set handlers; elsewhere a signal keeps its meaning.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def at(self, step: int) -> bool:
        """Whether to end after this step: the same answer in all processes, which must all ask after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._asked = True
