"""`flipped plan`: what a training step and scoring would take on TPUs, compiled here and run nowhere."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from flipped_core.errors import UserError

if TYPE_CHECKING:
    from t5_engine.planning import Machine, Measured, Setup

UNKNOWN_ON_CPU = (
    "Without libtpu (pip install 'flipped-learning[plan]') this is compiled for virtual CPU devices: time, MFU and "
    "whether it fits are not known; memory and collectives are the CPU compiler's, which arranges programs differently."
)


@click.command()
@click.option("--model", "name", required=True, help="A size: tiny … xl, xxl.")
@click.option("--method", default="flipped", show_default=True, help="direct, channel or flipped.")
@click.option("--topology", required=True, help="Chips, such as v5e:4x4 or v5p:4x4x4.")
@click.option("--model_parallelism", type=int, help="Devices that share one copy of the weights.")
@click.option("--fsdp/--no-fsdp", default=None, help="Split weights over the data axis too.")
@click.option("--remat", help="none, minimal or full.")
@click.option("--microbatches", type=int, help="Parts of the batch, one after the other.")
@click.option("--dtype", help="Of activations: float32 or bfloat16.")
@click.option("--batch_size", type=int, default=240, show_default=True)
@click.option("--inputs", type=int, default=512, show_default=True, help="Tokens of an input.")
@click.option("--targets", type=int, default=128, show_default=True, help="Tokens of a target.")
@click.option("--only", type=click.Choice(["train", "score"]), help="One of the two programs.")
@click.option("--virtual", is_flag=True, help="Virtual CPU devices even where libtpu is there.")
@click.option("--quick", is_flag=True, help="The TPU compiler's least effort: a rougher estimate.")
@click.option("--fit/--no-fit", default=True, help="Where it does not fit, try what would.")
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
    """Compile the train step and the scorer for a TPU topology, without one, and tell what they would take.

    \b
    flipped plan --model xl --method flipped --topology v5p:4x4x4
    flipped plan --model xxl --topology v6e:8x8 --model_parallelism 4 --remat full --json

    What is not given comes from the model's gin file. Compiling takes minutes; no parameter is allocated.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    setup = setup_of(**asked)
    from t5_engine import partitioning, planning

    _, count = planning.chips(topology)
    # Before the compiler is loaded, which takes a while.
    if setup.model_parallelism > count or count % setup.model_parallelism:
        raise UserError(
            f"model_parallelism: expected a divisor of the {count} chips of {topology}, "
            f"got {setup.model_parallelism}"
        )
    target = planning.machine(topology, False if virtual else None, quick)
    mesh = partitioning.make_mesh(setup.model_parallelism, target.devices)
    partitioning.param_shardings(setup.model, mesh)
    found: dict[str, Measured] = {}
    if only != "score":
        found["train step"] = planning.train_step(setup, target)
    if only != "train":
        found |= {f"score, {k}": v for k, v in planning.scoring(setup, target).items()}
    change = None
    trained = found.get("train step")
    if fit and trained is not None and trained.fits is False:
        change = _change(setup, target)
    report = as_dict(setup, target, found, change)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _show(report)


def setup_of(name: str, method: str, **asked: Any) -> Setup:
    """What is to be planned: the options, and what they leave open from `gin/models/<name>.gin`.

    Raises:
      UserError: an unknown model or method, or a number that cannot be.
    """
    from t5_engine import config
    from t5_engine.planning import Setup

    chosen = {key: value for key, value in asked.items() if value is not None}
    model = config.size(name, dropout_rate=0.1)
    recipe = _from_gin(name)
    if recipe is not None:
        model, macros = recipe
        chosen = {**macros, **chosen}
    changes = {key: chosen.pop(key) for key in ("remat", "dtype") if key in chosen}
    return Setup(model.replace(**changes), method, **chosen)


def _from_gin(name: str) -> tuple[Any, dict[str, Any]] | None:
    """The model and its mesh from its gin file, where there is one."""
    from flipped_cli import gin_config
    from t5_engine.config import T5Config

    path = gin_config.PROJECT_DIR / "gin" / "models" / f"{name}.gin"
    if not path.is_file():
        return None
    import gin

    gin.clear_config()
    gin.parse_config("DROPOUT_RATE = 0.1")
    gin.parse_config_file(str(path))
    model = gin_config.make(T5Config)
    names = ("MODEL_PARALLELISM", "FSDP", "MICROBATCHES")
    return model, {macro.lower(): gin.query_parameter(f"%{macro}") for macro in names}


def _change(setup: Setup, target: Machine) -> str:
    from t5_engine import planning

    def fits(words: str, tried: Setup) -> bool | None:
        print(f"does not fit; compiling with {words} …", file=sys.stderr, flush=True)
        return planning.train_step(tried, target).fits

    found = planning.smallest_fit(planning.changes(setup, len(target.devices)), fits)
    return found or "none of those that were tried; use more chips"


def as_dict(
    setup: Setup, target: Machine, found: dict[str, Measured], change: str | None
) -> dict[str, Any]:
    """The plan as plain values, ready for JSON."""
    from t5_engine import planning

    count = len(target.devices)
    data = count // setup.model_parallelism
    programs = {}
    for name, measured in found.items():
        programs[name] = dataclasses.asdict(measured)
        known = target.is_tpu and measured.fits
        travel = planning.travel_seconds(measured.collectives, target) if known else None
        programs[name]["travel_seconds"] = travel
        if name == "train step" and measured.seconds and travel is not None:
            programs[name]["mfu"] = planning.mfu(setup, target, measured.seconds + travel)
    settings = dataclasses.asdict(setup)
    return {
        "topology": target.topology,
        "chips": count,
        "compiler": f"libtpu {importlib.metadata.version('libtpu')}" if target.is_tpu else "cpu",
        "mesh": {"data": data, "model": setup.model_parallelism},
        "rows_with_padding": planning.rows(setup, data),
        "chip_memory": target.memory,
        "quick": target.quick,
        **settings,
        "programs": programs,
        "smallest_change_that_fits": change,
        "not_known": None if target.is_tpu else UNKNOWN_ON_CPU,
    }


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    from flipped_cli import tables

    mesh, model, parts = report["mesh"], report["model"], report["microbatches"]
    click.echo(
        f"{report['topology']}: {report['chips']} chips, mesh data {mesh['data']} x model {mesh['model']}, "
        f"FSDP {report['fsdp']}, remat {model['remat']}, {parts} microbatch{'es' if parts > 1 else ''}, "
        f"{model['dtype']}; {report['method']}, batch {report['batch_size']} ({report['rows_with_padding']} rows), "
        f"{report['inputs']}/{report['targets']} tokens; compiler {report['compiler']}"
        f"{', least effort' if report['quick'] else ''}"
    )
    programs = report["programs"]
    table = Table("", *programs)
    for label, cells in _rows(programs, report["chip_memory"]):
        table.add_row(label, *cells)
    tables.show(table)
    if report["smallest_change_that_fits"]:
        click.echo(f"The smallest change that fits: {report['smallest_change_that_fits']}")
    if report["not_known"]:
        click.echo(report["not_known"])


def _rows(programs: dict[str, Any], chip_memory: int) -> list[tuple[str, list[str]]]:
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
        (f"fits in {gib(chip_memory)}", [answers[one["fits"]] for one in every]),
        ("FLOPs, all chips", [f"{one['flops']:.4g}" for one in every]),
        ("estimated time, without collectives", [seconds(one["seconds"]) for one in every]),
        ("… each loop body once", [seconds(one["seconds_once"]) for one in every]),
        ("collectives, at least", [seconds(one["travel_seconds"]) for one in every]),
        (
            "MFU, one after the other",
            [f"{one['mfu']:.1%}" if "mfu" in one else "" for one in every],
        ),
    ]
    for kind in dict.fromkeys(kind for one in every for kind in one["collectives"]):
        cells = [one["collectives"].get(kind) for one in every]
        lines.append((kind, [f"{c['count']} x, {gib(c['bytes'])}" if c else "" for c in cells]))
    lines.append(("compiled in", [f"{one['compile_seconds']:.0f} s" for one in every]))
    return lines
