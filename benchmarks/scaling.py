"""The tables of docs/scaling.md: train steps of XL and XXL compiled for TPU topologies from 4 to 256 chips.

    python benchmarks/scaling.py run [--model xl] [--method flipped] [--topology v5p:4x4x4]
                                    [--model_parallelism 4] [--fsdp] [--no-quick]
    python benchmarks/scaling.py table

`run` compiles one configuration after the other, each in a process of its own (`flipped plan --json`), and appends a
line for each to `--out`, benchmarks/scaling.jsonl; started again, it goes on with those that have none. It needs
libtpu (extra: plan) and about two minutes of a core for each; with `--no-quick`, the compiler's full effort, five
minutes and more. `table` prints Markdown; the fastest way of each line is in bold.
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
OTHERS = ((1, True, "minimal"), (2, True, "full"), (4, True, "full"))
# The order of the numbers of chips: what differs most comes first.
ORDER = (256, 16, 4, 64)
BATCH = 240
METHODS = ("flipped", "direct")
KEY = ("name", "method", "topology", "model_parallelism", "fsdp", "remat", "microbatches", "quick")


def configurations() -> Iterator[dict[str, Any]]:
    """FSDP alone for each topology, method and model, then the others for FLIPPED."""
    alone = itertools.product((FSDP_ALONE,), METHODS, _by_size())
    others = itertools.product(OTHERS, ("flipped",), _by_size())
    for ((model_parallelism, fsdp, remat), method, topology), name in itertools.product(
        (*alone, *others), ("xl", "xxl")
    ):
        if model_parallelism < chips(topology):
            parts = microbatches(topology, model_parallelism)
            settings = (name, method, topology, model_parallelism, fsdp, remat, parts)
            for quick in (True, False):
                yield dict(zip(KEY, (*settings, quick), strict=True))


def _by_size() -> list[str]:
    return sorted(TOPOLOGIES, key=lambda topology: ORDER.index(chips(topology)))


def microbatches(topology: str, model_parallelism: int) -> int:
    """So many that a device holds 15 rows at a time for each device of its model axis."""
    rows = math.ceil(BATCH * model_parallelism / chips(topology))
    return math.ceil(rows / (15 * model_parallelism))


def chips(topology: str) -> int:
    return math.prod(map(int, topology.split(":")[1].split("x")))


def compiled(configuration: dict[str, Any]) -> dict[str, Any]:
    """The plan of a configuration, or what the command said instead."""
    words = [sys.executable, "-m", "flipped_cli.main", "plan", "--json", "--only", "train"]
    words += ["--no_fit", "--no_pack", "--dtype", "bfloat16"]
    words += ["--fsdp" if configuration["fsdp"] else "--no_fsdp"]
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


def tables(path: pathlib.Path) -> None:
    """Markdown: FSDP alone for all, the other ways for FLIPPED, and what the compiler's effort changes."""
    rows = {tuple(row[name] for name in KEY): row for row in read(path) if "error" not in row}
    topologies = sorted(TOPOLOGIES, key=lambda topology: (chips(topology), topology))

    def found(
        name: str, method: str, topology: str, way: tuple[int, bool, str], quick: bool = True
    ) -> dict[str, Any] | None:
        parts = microbatches(topology, way[0])
        return rows.get((name, method, topology, *way, parts, quick))

    heads = ["peak, GiB", "s a step", "collectives, s", "together", "MFU"]
    both = [f"{method}: {head}" for method in ("FLIPPED", "DIRECT") for head in heads]
    _line("model", "topology", "microbatches", *both)
    _line(*["---"] * (3 + len(both)))
    for name, topology in itertools.product(("xl", "xxl"), topologies):
        cells: list[Any] = [name, topology, microbatches(topology, 1)]
        for method in ("flipped", "direct"):
            cells += _cells(found(name, method, topology, FSDP_ALONE))
        _line(*cells)

    print("\nFLIPPED, arithmetic and collectives together, s:\n")
    ways = (FSDP_ALONE, *OTHERS)
    _line("model", "topology", *map(_in_words, ways))
    _line(*["---"] * (2 + len(ways)))
    for name, topology in itertools.product(("xl", "xxl"), topologies):
        several = [found(name, "flipped", topology, way) for way in ways]
        times = [row["seconds"] + row["travel_seconds"] for row in several if row and row["fits"]]
        _line(name, topology, *(_time(row, min(times, default=0)) for row in several))

    print()
    _line("model", "method", "topology", "least effort, s", "full effort, s", "least / full")
    _line(*["---"] * 6)
    for name, method, topology in itertools.product(("xl", "xxl"), METHODS, topologies):
        least, full = (found(name, method, topology, FSDP_ALONE, quick) for quick in (True, False))
        if least and full and least["fits"] and full["fits"]:
            times = [least["seconds"], full["seconds"]]
            ratio = f"{times[0] / times[1]:.2f}"
            _line(name, method.upper(), topology, *(f"{one:.3f}" for one in times), ratio)


def _cells(row: dict[str, Any] | None) -> list[str]:
    """Peak, seconds, seconds of collectives, both together, MFU; the peak alone where it does not fit."""
    if row is None:
        return [""] * 5
    peak = f"{row['memory']['peak'] / 2**30:.1f}"
    if not row["fits"]:
        return [f"{peak}: no", "", "", "", ""]
    seconds, travel = row["seconds"], row["travel_seconds"]
    return [
        peak,
        f"{seconds:.3f}",
        f"{travel:.3f}",
        f"{seconds + travel:.3f}",
        f"{row['mfu']:.0%}",
    ]


def _time(row: dict[str, Any] | None, best: float) -> str:
    if row is None or not row["fits"]:
        return "" if row is None else "does not fit"
    together = row["seconds"] + row["travel_seconds"]
    return f"**{together:.3f}**" if together == best else f"{together:.3f}"


def _in_words(way: tuple[int, bool, str]) -> str:
    model_parallelism, fsdp, remat = way
    words = ["FSDP"] if fsdp else []
    words += [f"model parallelism {model_parallelism}"] if model_parallelism > 1 else []
    return ", ".join([*words, f"remat {remat}"])


def _line(*cells: Any) -> None:
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
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.out, {name: getattr(arguments, name) for name in (*KEY[:5], "quick")})
    else:
        tables(arguments.out)


if __name__ == "__main__":
    main()
