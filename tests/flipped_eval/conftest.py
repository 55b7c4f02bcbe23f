"""A scorer without a model, a small vocabulary, and a job that takes a second."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from flipped_eval import jobs, planning
from flipped_tasks.embedded import warmup_texts
from flipped_tasks.embedded.vocabulary import train_vocabulary


class HashScorer:
    """Scores that depend on nothing but the pair and `seed`; remembers what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.calls: list[list[Any]] = []

    def score(
        self, pairs: Sequence[Any], progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Uniform over [-10, -1]."""
        self.calls.append(list(pairs))
        if progress is not None:
            progress(len(pairs), len(pairs))
        texts = [
            repr((self.seed, list(inputs), list(targets))).encode() for inputs, targets in pairs
        ]
        numbers = [
            int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") for text in texts
        ]
        return np.array([-1 - 9 * number / 2**32 for number in numbers], np.float32)

    @property
    def pairs(self) -> int:
        return sum(map(len, self.calls))


@pytest.fixture(scope="session")
def small_vocab_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(warmup_texts(0, 400), path, size=400)
    return str(path)


REQUEST_FIELDS = {field.name for field in dataclasses.fields(planning.Request)}
RUN_FIELDS = {field.name for field in dataclasses.fields(jobs.Run)}


def evaluate(
    output_dir: pathlib.Path, vocab_path: str, *, weights: int = 0, **changes: Any
) -> dict[str, Any]:
    """`jobs.evaluate` on few rows of the embedded world, with a `HashScorer` and weights that `weights` names.

    `changes` are fields of the request, of the run or of the job; `methods` makes several runs.
    """
    scorer = changes.pop("scorer", None) or HashScorer(weights)
    methods = changes.pop("methods", [changes.pop("method", "direct")])
    request = {"suites": ("labels",), "max_examples": 12} | {
        name: changes.pop(name) for name in REQUEST_FIELDS & set(changes)
    }
    run = {"vocab_path": vocab_path, "params": {"w": np.full((2, 2), weights, np.float32)}} | {
        name: changes.pop(name) for name in RUN_FIELDS & set(changes)
    }
    runs = [jobs.Run(**({"method": method, "label": method} | run)) for method in methods]
    job: dict[str, Any] = {"resamples": 100, "scorer": lambda config, params: scorer}
    return jobs.evaluate(runs, planning.Request(**request), str(output_dir), **(job | changes))


@pytest.fixture
def run_job(small_vocab_path: str) -> Callable[..., dict[str, Any]]:
    """`evaluate` with the small vocabulary."""

    def run(output_dir: pathlib.Path, **changes: Any) -> dict[str, Any]:
        return evaluate(output_dir, **({"vocab_path": small_vocab_path} | changes))

    return run
