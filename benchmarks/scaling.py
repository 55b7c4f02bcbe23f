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
# Model parallelism, FSDP and remat.
FSDP_ALONE = (1, True, "full")
OTHERS = ((1, True, "minimal"), (4, True, "full"), (2, True, "full"), (4, False, "full"))
# The order of the numbers of chips: what differs most comes first.
ORDER = (256, 16, 4, 64)
BATCH = 240
KEY = ("name", "method", "topology", "model_parallelism", "fsdp", "remat", "microbatches", "quick")


def configurations() -> Iterator[dict[str, Any]]:
    """FSDP alone for each topology, method and model, then the others for FLIPPED."""
    methods = ("flipped", "direct")
    alone = itertools.product((FSDP_ALONE,), methods, _by_size())
    others = itertools.product(OTHERS, methods[:1], _by_size())
    for ((model_parallelism, fsdp, remat), method, topology), name in itertools.product(
        (*alone, *others), ("xl", "xxl")
    ):
        if model_parallelism < chips(topology):
            parts = microbatches(name, topology, model_parallelism)
            settings = (name, method, topology, model_parallelism, fsdp, remat, parts)
            for quick in (True, False):
                yield dict(zip(KEY, (*settings, quick), strict=True))


def _by_size() -> list[str]:
    return sorted(TOPOLOGIES, key=lambda topology: ORDER.index(chips(topology)))


def microbatches(name: str, topology: str, model_parallelism: int) -> int:
    """So many that a device holds 15 rows at a time for each device of its model axis; 5 for XXL on v5e's 16 GiB."""
    rows = math.ceil(BATCH * model_parallelism / chips(topology))
    at_a_time = 5 if name == "xxl" and topology.startswith("v5e") else 15
    return math.ceil(rows / (at_a_time * model_parallelism))


def chips(topology: str) -> int:
    return math.prod(map(int, topology.split(":")[1].split("x")))


def compiled(configuration: dict[str, Any]) -> dict[str, Any]:
    """The plan of a configuration, or what the command said instead."""
    words = [sys.executable, "-m", "flipped_cli.main", "plan", "--json", "--only", "train"]
    words += ["--no-fit", "--dtype", "bfloat16"]
    words += ["--fsdp" if configuration["fsdp"] else "--no-fsdp"]
    words += ["--quick"] if configuration["quick"] else []
    for name in ("method", "topology", "model_parallelism", "remat", "microbatches"):
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
        if row["fits"]:
            key = _compared(row)
            best[key] = min(best.get(key, math.inf), _together(row))
    heads = ["model", "method", "topology", "model parallelism", "FSDP", "remat", "microbatches"]
    heads += ["effort", "peak, GiB", "fits", "s a step", "collectives, s", "together", "MFU"]
    print("|", " | ".join(heads), "|\n" + "|---" * len(heads) + "|")
    for row in sorted(rows, key=_place):
        cells = [*(row[name] for name in KEY[:7]), "least" if row["quick"] else "full"]
        cells += [f"{row['memory']['peak'] / 2**30:.1f}" if "peak" in row["memory"] else ""]
        cells += ["yes" if row["fits"] else "no"]
        if row["seconds"]:
            together = f"{_together(row):.3f}"
            if row["fits"] and _together(row) == best[_compared(row)]:
                together = f"**{together}**"
            cells += [f"{row['seconds']:.3f}", f"{row['travel_seconds']:.3f}", together]
            cells.append(f"{row['mfu']:.0%}")
        else:
            cells += [""] * 4
        print("|", " | ".join(map(str, cells)), "|")


def _compared(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows have in common that are compared with each other."""
    return (*(row[name] for name in KEY[:3]), row["quick"])


def _together(row: dict[str, Any]) -> float:
    """Seconds of arithmetic and collectives, one after the other."""
    return row["seconds"] + row["travel_seconds"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["method"], chips(row["topology"]), row["topology"], row["seconds"] or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "scaling.jsonl")
    parser.add_argument("--model", dest="name", choices=["xl", "xxl"])
    parser.add_argument("--method", choices=["direct", "flipped"])
    parser.add_argument("--topology", choices=TOPOLOGIES)
    parser.add_argument("--model_parallelism", type=int)
    parser.add_argument("--fsdp", action=argparse.BooleanOptionalAction)
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.out, {name: getattr(arguments, name) for name in (*KEY[:5], "quick")})
    else:
        table(arguments.out)


if __name__ == "__main__":
    main()
