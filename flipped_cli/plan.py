"""`flipped plan`: what a training step and scoring would take on TPUs or GPUs, compiled here and run nowhere."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from flipped_core.errors import UserError

if TYPE_CHECKING:
    from t5_engine.planning import CompileStats, StepConfig
    from t5_engine.topologies import Name, Topology

LENGTHS_FILE = "mixture_lengths.json"
UNKNOWN_ON_CPU = (
    "Without libtpu (pip install 'flipped-learning[plan]') this is compiled for virtual CPU devices: time, MFU and "
    "whether it fits are not known; memory and collectives are the CPU compiler's, which arranges programs differently."
)
UNKNOWN_ON_GPU = (
    "For GPUs this is compiled for virtual CPU devices: time and MFU are not known. Memory is the CPU compiler's; it "
    "keeps bfloat16 in float32's room and has no cuDNN attention: an upper estimate, held to 90% of the GPU's memory."
)


@click.command()
@click.option("--model", "name", required=True, help="A size: tiny … xl, xxl.")
@click.option("--method", default="flipped", show_default=True, help="direct, channel or flipped.")
@click.option(
    "--topology",
    required=True,
    help="Such as v5p-64, v5e:4x4*2 (two slices) or h100:8*2 (two nodes).",
)
@click.option("--model_parallelism", type=int, help="Devices that share one copy of the weights.")
@click.option("--fsdp/--no_fsdp", default=None, help="Split weights over the data axis too.")
@click.option("--remat", help="none, minimal or full.")
@click.option("--microbatches", type=int, help="Parts of the batch, one after the other.")
@click.option("--dtype", help="Of activations: float32 or bfloat16.")
@click.option("--batch_size", type=int, default=240, show_default=True, help="Examples per step.")
@click.option(
    "--inputs_length",
    "inputs",
    type=int,
    default=512,
    show_default=True,
    help="Tokens of an input.",
)
@click.option(
    "--targets_length",
    "targets",
    type=int,
    default=128,
    show_default=True,
    help="Tokens of a target.",
)
@click.option(
    "--pack/--no_pack",
    default=True,
    show_default=True,
    help="Packed rows, by the mixture's lengths, or padded ones.",
)
@click.option("--only", type=click.Choice(["train", "score"]), help="One of the two programs.")
@click.option("--virtual", is_flag=True, help="Virtual CPU devices even where libtpu is there.")
@click.option("--quick", is_flag=True, help="The TPU compiler's least effort: a rougher estimate.")
@click.option(
    "--fit/--no_fit",
    default=True,
    help="Where it does not fit, try what would; for GPUs, propose settings.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def plan(
    topology: str,
    only: str | None,
    virtual: bool,
    quick: bool,
    fit: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Compile the train step and the scorer for TPUs or GPUs that are not at hand, and say what they would take.

    \b
    flipped plan --model xl --method flipped --topology v5p-64
    flipped plan --model xxl --topology v6e:8x8*2 --model_parallelism 4 --remat full --json
    flipped plan --model xl --topology h100:8*2 --only train --dtype bfloat16

    A topology is Google Cloud's name of a slice (v4-32, v5p-64, v5litepod-16, v6e-8), a torus (v5e:4x4) or a node of
    GPUs (h100:8; a100, h200); *2 are two of them. Options that are not given come from the model's gin file and the
    method's recipe; for GPUs mesh, remat and microbatches are proposed. Compiling takes minutes; no parameter is
    allocated.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    config = config_of(**asked)
    from t5_engine import partitioning, planning, topologies

    name = topologies.parse(topology)
    _check_model_axis(config, name)  # before the compiler is loaded, which takes a while
    target = topologies.topology(name, False if virtual else None, quick)
    mesh = partitioning.make_mesh(config.model_parallelism, target.devices)
    partitioning.param_shardings(config.model, mesh)
    found: dict[str, CompileStats] = {}
    change = None
    proposing = fit and name.is_gpu and only != "score"
    if proposing:
        config, found["train step"] = _proposed(config, target, asked)
    elif only != "score":
        found["train step"] = planning.train_step(config, target)
        if fit and found["train step"].fits is False:
            change = _change(config, target)
    if only != "train":
        found |= {f"score, {k}": v for k, v in planning.scoring(config, target).items()}
    report = as_dict(config, target, found, change)
    report["proposed"] = proposing and bool(found["train step"].fits)
    report["asked"] = topology
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _show(report)


def config_of(name: str, method: str, pack: bool, **asked: Any) -> StepConfig:
    """What is to be planned: the options, and what they leave open from `gin/models/<name>.gin` and the recipe.

    With `pack`, the lengths are those of 480 examples of the method's training mixture (`mixture_lengths.json`).

    Raises:
      UserError: an unknown model or method, or a number that cannot be.
    """
    from t5_engine import config
    from t5_engine.planning import StepConfig

    chosen = {key: value for key, value in asked.items() if value is not None}
    model = config.size(name, dropout_rate=0.1)
    recipe = _from_gin(name, method)
    if recipe is not None:
        model, macros = recipe
        chosen = {**macros, **chosen}
    changes = {key: chosen.pop(key) for key in ("remat", "dtype") if key in chosen}
    step = StepConfig(model.replace(**changes), method, **chosen)
    if not pack:
        return step
    known = json.loads(pathlib.Path(__file__).with_name(LENGTHS_FILE).read_text())[method]
    lengths = tuple(zip(known["inputs"], known["targets"], strict=True))
    return dataclasses.replace(step, lengths=lengths)


def _from_gin(name: str, method: str) -> tuple[Any, dict[str, Any]] | None:
    """The model and its mesh from its gin file and the method's recipe, where they exist."""
    from flipped_cli import gin_config
    from t5_engine.config import T5Config

    folder = gin_config.PROJECT_DIR / "gin"
    paths = [folder / "models" / f"{name}.gin", folder / "recipes" / f"{method}.gin"]
    if not all(path.is_file() for path in paths):
        return None
    import gin

    gin.clear_config()
    for path in paths:
        gin.parse_config_file(str(path))
    model = gin_config.make(T5Config)
    names = ("MODEL_PARALLELISM", "FSDP", "MICROBATCHES")
    return model, {macro.lower(): gin.query_parameter(f"%{macro}") for macro in names}


def _check_model_axis(config: StepConfig, name: Name) -> None:
    if name.per_slice % config.model_parallelism:
        kind = "node" if name.is_gpu else "slice"
        where = f"each {kind} of {name}" if name.slices > 1 else str(name)
        raise UserError(
            f"model_parallelism: expected a divisor of the {name.per_slice} chips of {where}, "
            f"got {config.model_parallelism}"
        )


def _change(config: StepConfig, topology: Topology) -> str:
    from t5_engine import planning

    def fits(words: str, tried: StepConfig) -> bool | None:
        print(f"does not fit; compiling with {words} …", file=sys.stderr, flush=True)
        return planning.train_step(tried, topology).fits

    candidates = planning.changes(config, topology.name.per_slice)
    found = planning.smallest_fit(candidates, fits)
    return found or "none of those that were tried; use more chips"


def _proposed(
    config: StepConfig, topology: Topology, asked: dict[str, Any]
) -> tuple[StepConfig, CompileStats]:
    """The first proposal for GPUs that fits and keeps what was asked for; else the last that was tried."""
    from t5_engine import planning

    name = topology.name
    tried: list[tuple[StepConfig, CompileStats]] = []

    def agrees(candidate: StepConfig) -> bool:
        return all(
            asked.get(key) in (None, value)
            for key, value in (
                ("remat", candidate.model.remat),
                ("microbatches", candidate.microbatches),
                ("model_parallelism", candidate.model_parallelism),
                ("fsdp", candidate.fsdp),
            )
        )

    def compiled(candidate: StepConfig) -> CompileStats:
        print(f"compiling with {_settings(candidate)} …", file=sys.stderr, flush=True)
        tried.append((candidate, planning.train_step(candidate, topology)))
        return tried[-1][1]

    candidates: Iterator[StepConfig] = filter(
        agrees, planning.proposals(config, name.chips, name.per_slice)
    )
    first = next(candidates, None)  # options that no proposal has are planned as they are
    found = planning.first_fit(itertools.chain([first or config], candidates), compiled)
    return found or tried[-1]


def _settings(config: StepConfig) -> str:
    """The gin flags of a configuration."""
    return (
        f"--gin.MODEL_PARALLELISM={config.model_parallelism} --gin.FSDP={config.fsdp} "
        f"--gin.REMAT={config.model.remat} --gin.MICROBATCHES={config.microbatches} --gin.DTYPE={config.model.dtype}"
    )


def as_dict(
    config: StepConfig, target: Topology, found: dict[str, CompileStats], change: str | None
) -> dict[str, Any]:
    """The plan as plain values, ready for JSON."""
    from t5_engine import planning

    name, count = target.name, target.name.chips
    data = count // config.model_parallelism
    programs = {}
    for program, stats in found.items():
        programs[program] = dataclasses.asdict(stats)
        known = target.is_tpu and stats.fits
        travel = planning.travel_seconds(stats.collectives, target) if known else None
        programs[program]["travel_seconds"] = travel
        if program == "train step" and stats.seconds and travel is not None:
            programs[program]["mfu"] = planning.mfu(config, target, stats.seconds + travel)
    settings = dataclasses.asdict(config)
    packed = settings.pop("lengths") is not None
    rows, inputs, targets = planning.shape(config, data)
    means = planning.mean_lengths(config)
    return {
        "topology": str(name),
        "chips": count,
        "slices": name.slices,
        "is_gpu": name.is_gpu,
        "compiler": f"libtpu {importlib.metadata.version('libtpu')}" if target.is_tpu else "cpu",
        "mesh": {"data": data, "model": config.model_parallelism},
        "packed": packed,
        "rows_with_padding": rows,
        "row_lengths": {"inputs": inputs, "targets": targets},
        "mean_lengths": {"inputs": means[0], "targets": means[1]} if packed else None,
        "chip_memory": target.memory,
        "quick": target.quick,
        **settings,
        "programs": programs,
        "smallest_change_that_fits": change,
        "settings": _settings(config),
        "not_known": None if target.is_tpu else UNKNOWN_ON_GPU if name.is_gpu else UNKNOWN_ON_CPU,
    }


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    from flipped_cli import tables

    mesh, model, parts = report["mesh"], report["model"], report["microbatches"]
    name, lengths, means = report["topology"], report["row_lengths"], report["mean_lengths"]
    asked = "" if report["asked"] == name else f"{report['asked']}, "
    click.echo(
        f"{asked}{name}: {report['chips']} chips, mesh data {mesh['data']} x model {mesh['model']}, "
        f"FSDP {report['fsdp']}, remat {model['remat']}, {parts} microbatch{'es' if parts > 1 else ''}, "
        f"{model['dtype']}; {report['method']}, batch {report['batch_size']} ({report['rows_with_padding']} rows), "
        f"{lengths['inputs']}/{lengths['targets']} tokens; compiler {report['compiler']}"
        f"{', least effort' if report['quick'] else ''}"
    )
    if means:
        click.echo(
            f"Rows are packed for examples of {means['inputs']:.1f}/{means['targets']:.1f} tokens in the mean, as "
            f"measured on {report['method']}_train (docs/scaling.md); --no_pack pads."
        )
    programs = report["programs"]
    table = Table("", *programs)
    for label, cells in _rows(programs, report):
        table.add_row(label, *cells)
    tables.show(table)
    if report["smallest_change_that_fits"]:
        click.echo(f"The smallest change that fits: {report['smallest_change_that_fits']}")
    if report["proposed"]:
        click.echo(f"Proposed: {report['settings']}")
    elif report["is_gpu"] and any(one["fits"] is False for one in programs.values()):
        click.echo("None of the settings that were tried fits; use more GPUs.")
    if report["not_known"]:
        click.echo(report["not_known"])


def _rows(programs: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The lines of the table: a label, and a cell for each program."""
    answers = {True: "yes", False: "no", None: "not known"}

    def gib(number: float | None) -> str:
        return "" if number is None else f"{number / 2**30:.2f} GiB"

    def seconds(number: float | None) -> str:
        return "not known" if number is None else f"{number:.4f} s"

    every = list(programs.values())
    kinds = dict.fromkeys(kind for one in every for kind in one["memory"])
    lines = [(f"memory, {kind}", [gib(one["memory"].get(kind)) for one in every]) for kind in kinds]
    lines += [
        (f"fits in {gib(report['chip_memory'])}", [answers[one["fits"]] for one in every]),
        ("FLOPs, all chips", [f"{one['flops']:.4g}" for one in every]),
        ("estimated time, without collectives", [seconds(one["seconds"]) for one in every]),
        ("… each loop body once", [seconds(one["seconds_once"]) for one in every]),
        ("collectives, at least", [seconds(one["travel_seconds"]) for one in every]),
        (
            "MFU, one after the other"
            + (", without the network between slices" if report["slices"] > 1 else ""),
            [f"{one['mfu']:.1%}" if "mfu" in one else "" for one in every],
        ),
    ]
    for kind in dict.fromkeys(kind for one in every for kind in one["collectives"]):
        cells = [one["collectives"].get(kind) for one in every]
        lines.append((kind, [f"{c['count']} x, {gib(c['bytes'])}" if c else "" for c in cells]))
    lines += _between_slices(every, report)
    lines.append(("compiled in", [f"{one['compile_seconds']:.0f} s" for one in every]))
    return lines


def _between_slices(
    every: list[dict[str, Any]], report: dict[str, Any]
) -> list[tuple[str, list[str]]]:
    """What crosses the network between slices or nodes, by kind and in all."""
    if report["slices"] == 1:
        return []
    kind = "node" if report["is_gpu"] else "slice"
    per_slice = report["chips"] // report["slices"]
    lines = []
    for name in dict.fromkeys(name for one in every for name in one["between_slices"]):
        cells = [one["between_slices"].get(name) for one in every]
        found = [f"{c['count']} x, {c['bytes'] / 2**30:.2f} GiB" if c else "" for c in cells]
        lines.append((f"between {kind}s, {name}", found))
    totals = [sum(c["bytes"] for c in one["between_slices"].values()) for one in every]
    whole = [f"{total * per_slice / 2**30:.2f} GiB" for total in totals]
    return [*lines, (f"between {kind}s, into all chips of a {kind}", whole)]
