"""What it costs to verify a checkpoint before reading it.

    python benchmarks/verify_checkpoint.py --size large --folder FOLDER

Saves random parameters with Adafactor's state as training does, then resumes from them: the checks by lengths only, the
check of every byte, and the restoring, each with the files dropped from the page cache before ("cold") and once more
without ("warm"). FOLDER must not exist; it is deleted at the end. Takes about three times the checkpoint in memory.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax

from t5_engine import axes, checkpoints, config, optimizer, partitioning
from t5_engine.step import make_state, state_shardings


def main() -> None:
    """Saves, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="large", help="of the model, as T5 v1.1 names them")
    parser.add_argument("--folder", required=True, help="where the checkpoint is written")
    parser.add_argument("--rounds", type=int, default=3, help="of which the middle one is printed")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(parents=True)
    try:
        measure(folder, config.size(args.size), args.rounds)
    finally:
        shutil.rmtree(folder)


def measure(folder: pathlib.Path, model: config.T5Config, rounds: int) -> None:
    """Prints the size, and a line for each part of resuming."""
    tx = optimizer.make("adafactor", 1e-3)

    def fresh() -> Any:
        return make_state(model, tx, 0)

    layout = axes.Layout(partitioning.make_mesh(1), axes.rules())
    abstract = jax.eval_shape(fresh)
    target = checkpoints.with_shardings(abstract, state_shardings(abstract, model, layout))
    state = jax.jit(fresh)()
    store = checkpoints.Checkpoints(folder)
    began = time.perf_counter()
    store.save(1, state.params, state.opt_state, model, "adafactor")
    store.wait()
    print(f"save: {time.perf_counter() - began:.1f} s")
    del state
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{size / 1e9:.2f} GB in {len(files)} files, {os.cpu_count()} cores")

    quick = checkpoints.Checkpoints(folder, verify=False)

    def restore() -> None:
        jax.block_until_ready(store.restore(1, target.params, target.opt_state, model, "adafactor"))

    def both() -> None:
        store.resumable()
        restore()

    parts: dict[str, Callable[[], Any]] = {
        "quick check": quick.resumable,
        "every byte": store.resumable,
        "restore": restore,
        "every byte, then restore": both,
    }
    print("| part | cold, s | cold, GB/s | warm, s | warm, GB/s |\n|---|---|---|---|---|")
    for name, part in parts.items():
        seconds = {"cold": [], "warm": []}
        for _ in range(rounds):
            for state_of_cache, found in seconds.items():
                if state_of_cache == "cold":
                    forget(files)
                began = time.perf_counter()
                part()
                found.append(time.perf_counter() - began)
        cells = []
        for found in seconds.values():
            middle = sorted(found)[len(found) // 2]
            cells += [f"{middle:.2f}", f"{size / 1e9 / middle:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    quick.close()
    store.close()


def forget(files: list[pathlib.Path]) -> None:
    """Drops files from the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
