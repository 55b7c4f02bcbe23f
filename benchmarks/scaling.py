"""The table of docs/scaling.md: train steps of XL and XXL compiled for TPU topologies from 4 to 256 chips.

    python benchmarks/scaling.py run [--model xl] [--method flipped] [--topology v5p:4x4x4]
                                    [--model_parallelism 4] [--fsdp]
    python benchmarks/scaling.py table

`run` compiles one configuration after the other, each in a process of its own (`flipped plan --json`), and appends a
line for each to `--out`, benchmarks/scaling.jsonl; started again, it goes on with those that have none. It needs
libtpu (extra: plan) and some minutes of a core for each. `table` prints Markdown: all configurations, the fastest that
fits of each model, method and topology in bold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOPOLOGIES = (
    *("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v6e:2x2", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    *("v4:2x2x1", "v4:2x2x4", "v4:4x4x4", "v4:4x8x8"),
    *("v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8"),
)
FSDP_ALONE = (1, True)
OTHER_MESHES = ((1, False), (2, True), (2, False), (4, True), (4, False), (8, True))
KEY = ("name", "method", "topology", "model_parallelism", "fsdp", "remat")


def configurations() -> Iterator[dict[str, Any]]:
    """FSDP alone for each model, method and topology, then the other meshes; topologies of 16 and 256 chips first."""
    for meshes in ((FSDP_ALONE,), OTHER_MESHES):
        for topology in sorted(TOPOLOGIES, key=lambda one: (16, 256, 64, 4).index(chips(one))):
            for name, method in itertools.product(("xl", "xxl"), ("flipped", "direct")):
                for model_parallelism, fsdp in meshes:
                    if model_parallelism < chips(topology):
                        settings = (name, method, topology, model_parallelism, fsdp, "full")
                        yield dict(zip(KEY, settings, strict=True))


def chips(topology: str) -> int:
    return math.prod(map(int, topology.split(":")[1].split("x")))


def compiled(configuration: dict[str, Any]) -> dict[str, Any]:
    """The plan of a configuration, or what the command said instead."""
    words = [sys.executable, "-m", "flipped_cli.main", "plan", "--json", "--only", "train"]
    words += ["--no-fit", "--dtype", "bfloat16"]
    words += ["--fsdp" if configuration["fsdp"] else "--no-fsdp"]
    for name in ("method", "topology", "model_parallelism", "remat"):
        words += [f"--{name}", str(configuration[name])]
    result = subprocess.run(
        [*words, "--model", configuration["name"]], cwd=ROOT, capture_output=True, text=True
    )
    if result.returncode:
        return {**configuration, "error": result.stderr.strip().splitlines()[-1]}
    report = json.loads(result.stdout)
    step = report["programs"]["train step"]
    return {
        **configuration,
        "compiler": report["compiler"],
        "rows": report["rows_with_padding"],
        **step,
    }


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(path: pathlib.Path, only: dict[str, Any]) -> None:
    done = {tuple(row[name] for name in KEY) for row in read(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for configuration in configurations():
        key = tuple(configuration[name] for name in KEY)
        wanted = all(value in (None, configuration[name]) for name, value in only.items())
        if wanted and key not in done:
            row = compiled(configuration)
            with path.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(*key, row.get("seconds"), row.get("error", ""), flush=True)


def table(path: pathlib.Path) -> None:
    rows = [row for row in read(path) if "error" not in row]
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["seconds"] and row["fits"]:
            key = tuple(row[name] for name in KEY[:3])
            best[key] = min(best.get(key, math.inf), row["seconds"])
    heads = ["model", "method", "topology", "model parallelism", "FSDP", "memory, GiB", "fits"]
    heads += ["s a step", "MFU", "collectives, GiB", "compiled in, s"]
    print("|", " | ".join(heads), "|\n" + "|---" * len(heads) + "|")
    for row in sorted(rows, key=lambda row: [row[name] for name in KEY[:2]]):
        travel = sum(one["bytes"] for one in row["collectives"].values()) / 2**30
        seconds = f"{row['seconds']:.3f}" if row["seconds"] else ""
        if row["seconds"] == best.get(tuple(row[name] for name in KEY[:3])):
            seconds = f"**{seconds}**"
        mfu = f"{row['mfu']:.0%}" if "mfu" in row else ""
        cells = [row[name] for name in KEY[:5]]
        cells += [f"{row['memory']['total'] / 2**30:.1f}", "yes" if row["fits"] else "no", seconds]
        cells += [mfu, f"{travel:.2f}" if row["collectives"] else "", round(row["compile_seconds"])]
        print("|", " | ".join(map(str, cells)), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "scaling.jsonl")
    parser.add_argument("--model", dest="name", choices=["xl", "xxl"])
    parser.add_argument("--method", choices=["direct", "flipped"])
    parser.add_argument("--topology", choices=TOPOLOGIES)
    parser.add_argument("--model_parallelism", type=int)
    parser.add_argument("--fsdp", action=argparse.BooleanOptionalAction)
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.out, {name: getattr(arguments, name) for name in KEY[:5]})
    else:
        table(arguments.out)


if __name__ == "__main__":
    main()
