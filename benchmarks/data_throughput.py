"""How fast real rows become batches with each method, rendering alone, the first batch, a restart, memory.

    python benchmarks/data_throughput.py --data_dir FOLDER --vocab sentencepiece.model [--only stream,render,…]

Prints Markdown tables. FOLDER holds rows as `--data_dir` of the commands does; imdb, anli and quail are read for the
streams. One process; 'examples/s' is by the clock, 'a CPU second' by the processor time of all threads, which other
work on the machine disturbs less. promptsource's own `apply` is timed where promptsource can be imported (it needs
pandas and setuptools < 81).
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import seqio  # noqa: E402

from flipped_tasks import promptsource, sources  # noqa: E402
from flipped_tasks.batches import batches  # noqa: E402
from flipped_tasks.datasets import usable_templates  # noqa: E402
from flipped_tasks.methods import METHODS  # noqa: E402
from flipped_tasks.mixing import RowMixture  # noqa: E402
from flipped_tasks.rendering import compile_template, template_rng  # noqa: E402
from flipped_tasks.seqio_tasks import register_task  # noqa: E402
from mixtures import own, registration  # noqa: E402

LENGTHS = {"inputs": 512, "targets": 128}
BATCH = 240
PARTS = ("stream", "render", "first", "restart", "memory")
ROUNDS = ("r1", "r2", "r3")


def mixed_datasets(data_dir: str) -> list[str]:
    """imdb-, anli- and multiple-choice-like rows; ANLI's three rounds become one split 'train'."""
    folder = pathlib.Path(data_dir)

    def rows() -> Iterator[dict[str, Any]]:
        for number in ROUNDS:
            yield from sources.load_rows("anli", f"train_{number}", str(folder))

    own.add_dataset("anli_all", {"train": rows}, "label", "anli", label_values=(0, 1, 2))
    return ["imdb", "anli_all", "quail"]


def stream(data_dir: str, vocab: str, count: int) -> None:
    """Examples a second, from rows to batches of the full lengths."""
    names = mixed_datasets(data_dir)
    print("| method | examples/s | a CPU second |\n|---|---|---|")
    for method in METHODS:
        tasks = [register_task(name, method, None, data_dir, vocab).name for name in names]
        name = f"benchmark_{method}"
        seqio.MixtureRegistry.add_provider(name, RowMixture(name, [(task, 1.0) for task in tasks]))
        found = batches(name, LENGTHS, BATCH, seed=0)
        for _ in range(10):
            next(found)
        clock, cpu = time.monotonic(), time.process_time()
        for _ in range(count // BATCH):
            next(found)
        done = count // BATCH * BATCH
        clock, cpu = time.monotonic() - clock, time.process_time() - cpu
        found.close()  # type: ignore[attr-defined]
        print(f"| {method} | {done / clock:,.0f} | {done / cpu:,.0f} |", flush=True)


def render(data_dir: str, vocab: str, count: int) -> None:
    """Rendering alone: prompt, target, choices and spans; beside it promptsource's own `apply`."""
    del vocab
    cases = []
    for dataset, split in (("imdb", "train"), ("anli", "train_r1"), ("quail", "train")):
        rows = sources.load_rows(dataset, split, data_dir)[:100]
        cases += [
            (dataset, name, row) for name in usable_templates(dataset, "direct") for row in rows
        ]
    random.Random(0).shuffle(cases)
    specs = {(d, n): promptsource.load_template(d, n) for d, n, _ in cases}
    compiled = {key: compile_template(spec) for key, spec in specs.items()}

    def ours(dataset: str, name: str, row: dict[str, Any]) -> None:
        compiled[dataset, name].render(row, template_rng(0, name, 0))

    print("| rendering | examples a CPU second |\n|---|---|")
    speed = _speed(ours, cases, min(count, 3 * len(cases)))
    print(f"| flipped_tasks | {speed:,.0f} |", flush=True)
    try:
        from promptsource.templates import Template
    except ImportError as error:
        print(f"| promptsource | not importable: {error} |")
        return
    theirs = {
        key: Template(s.name, s.jinja, s.reference, answer_choices=s.answer_choices)
        for key, s in specs.items()
    }
    slow = _speed(lambda d, n, row: theirs[d, n].apply(row), cases, 600)
    print(f"| promptsource's apply | {slow:,.0f} |\n| ratio | {speed / slow:.0f} |")


def _speed(function: Callable[..., Any], cases: list[Any], count: int) -> float:
    for case in cases[:100]:
        function(*case)
    began = time.process_time()
    for number in range(count):
        function(*cases[number % len(cases)])
    return count / (time.process_time() - began)


def first(data_dir: str, vocab: str, count: int) -> None:
    """Seconds from registration to the first batch of the mixture of 20 datasets."""
    del count
    began = time.monotonic()
    registration.register(data_dir, vocab, ["flipped"])
    next(batches("flipped_train", LENGTHS, BATCH, seed=0))
    print(f"first batch of flipped_train (20 datasets): {time.monotonic() - began:.1f} s")


def restart(data_dir: str, vocab: str, count: int) -> None:
    """Seconds to the batch of step 5,000 of 240, beside those to step 0, in the same process."""
    del count
    registration.register(data_dir, vocab, ["flipped"])
    print("| restart at step | first batch after |\n|---|---|")
    for step in (0, 5_000, 500_000):
        began = time.monotonic()
        found = batches("flipped_train", LENGTHS, BATCH, seed=0, start_step=step)
        next(found)
        print(f"| {step:,} | {time.monotonic() - began:.1f} s |", flush=True)
        found.close()  # type: ignore[attr-defined]


def memory(data_dir: str, vocab: str, count: int) -> None:
    """Growth of the resident set over 200,000 examples, after the first 20,000."""
    del count
    registration.register(data_dir, vocab, ["direct"])
    found = batches("direct_train", LENGTHS, BATCH, seed=0)
    readings = collections.deque[float]()
    for step in range(237_000 // BATCH + 1):
        next(found)
        if step * BATCH >= 20_000 and step % 100 == 84:
            gc.collect()
            readings.append(_resident())
            print(f"{step * BATCH:,} examples: {readings[-1]:,.0f} MiB", flush=True)
    print(f"growth: {readings[-1] / readings[0] - 1:.1%}")


def _resident() -> float:
    """MiB of this process in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--vocab", required=True)
    parser.add_argument("--examples", type=int, default=24_000, help="of each method")
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    for part in arguments.only.split(","):
        if part not in PARTS:
            parser.error(f"--only: expected of {', '.join(PARTS)}, got {part}")
        print(f"\n## {part}\n", flush=True)
        globals()[part](arguments.data_dir, arguments.vocab, arguments.examples)


if __name__ == "__main__":
    main()
