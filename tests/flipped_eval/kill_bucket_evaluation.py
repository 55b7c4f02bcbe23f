"""Kills an evaluation in a bucket again and again: each job that ends has the bytes of one in a folder.

python -m tests.flipped_eval.kill_bucket_evaluation FOLDER BUCKET KILLS SEED VOCAB

BUCKET is a folder such as gs://bucket/jobs on the server that the environment names. As in `kill_evaluation`, forked
children run the job; this process itself must not open the bucket, since its clients do not survive a fork.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import random
import sys
import time
import urllib.request
from urllib.parse import quote

from flipped_eval import shards
from t5_engine import manifest
from tests import killing
from tests.flipped_eval.conftest import evaluate
from tests.flipped_eval.kill_evaluation import JOB, SlowScorer, check

NOWHERE = pathlib.Path("/nowhere")  # no file operation is counted
shards.BUCKET_SHARD_BYTES = 10_000  # several shards


def job(folder: pathlib.Path | str, vocab: str) -> None:
    """All of it, or the rest."""
    evaluate(folder, vocab, scorer=SlowScorer(), **JOB)  # type: ignore[arg-type]


def check_copy(source: str, target: pathlib.Path) -> None:
    """`check` of a copy, which must have several shards."""
    manifest.copy(source, target)
    assert len(list((target / shards.FOLDER).iterdir())) > 1
    check(target)


def has_scores(folder: str) -> bool:
    """Whether a chunk was written there."""
    bucket, _, name = folder.removeprefix("gs://").partition("/")
    prefix = quote(f"{name}/{shards.FOLDER}/", safe="")
    address = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o?prefix={prefix}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bool(json.load(answer).get("items"))


def main(place: pathlib.Path, bucket: str, kills: int, seed: int, vocab: str) -> None:
    """Prints how many kills there were, how many of them after the first chunk, and how many jobs."""
    run = functools.partial(killing.run_child, folder=NOWHERE)
    assert not run(functools.partial(job, place / "alone", vocab))[0]
    began = time.monotonic()
    assert not run(functools.partial(job, f"{bucket}/cold", vocab))[0]
    seconds = time.monotonic() - began
    draw = random.Random(seed)
    told = {"seed": seed, "kills": 0, "with_scores": 0, "jobs": 0}
    while told["kills"] < kills:
        name = f"job_{told['jobs']}"
        again = functools.partial(job, f"{bucket}/{name}", vocab)
        while told["kills"] < kills and run(again, seconds=draw.uniform(0, seconds))[0]:
            told["kills"] += 1
            told["with_scores"] += has_scores(f"{bucket}/{name}")
        assert not run(again)[0]
        assert not run(functools.partial(check_copy, f"{bucket}/{name}", place / name))[0]
        told["jobs"] += 1
        print(told, file=sys.stderr, flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    import scipy.stats  # noqa: F401

    import flipped_eval.estimate  # noqa: F401

    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
