"""`flipped eval` in chunks of few choices, with one thing that goes wrong; the tests start several of it as one job.

    python -m tests.flipped_eval.job_program FAULT CHUNKS WORD…

FAULT happens after CHUNKS chunks: "none"; "full", the disk is full; "kill", SIGKILL before a chunk is scored;
"broken", the scorer of this process alone raises.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from flipped_cli import main
from flipped_eval import jobs, shards
from t5_engine.scorer import Scorer

PAIRS_TOGETHER = 60


def after(chunks: int, real: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """`real`, with a fault before its call number `chunks`."""
    calls = 0

    def patched(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > chunks:
            fault()
        return real(*args, **named)

    return patched


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def broken() -> None:
    raise RuntimeError("out of memory here")


def apply(fault: str, chunks: int) -> None:
    """Makes the fault happen."""
    if fault == "full":
        real = os.fsync
        shards.os.fsync = after(chunks, real, full)  # type: ignore[attr-defined]
    elif fault == "kill":
        Scorer.score = after(chunks, Scorer.score, kill)  # type: ignore[method-assign]
    elif fault == "broken":
        Scorer.score = after(chunks, Scorer.score, broken)  # type: ignore[method-assign]


if __name__ == "__main__":
    assert jobs.evaluate.__kwdefaults__ is not None
    jobs.evaluate.__kwdefaults__["pairs_together"] = PAIRS_TOGETHER
    apply(sys.argv[1], int(sys.argv[2]))
    main.main(sys.argv[3:], prog_name="flipped")
