"""What a training step and scoring would take on devices that are not at hand: compiled, measured, never run.

The programs are those that the trainer and the scorer run, lowered with abstract arrays: no parameter is allocated.
With the `libtpu` wheel the TPU compiler works on any machine; without it the programs are compiled for as many virtual
CPU devices, which tells what travels between devices and how much arithmetic there is, but neither time nor fit.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flipped_core.errors import UserError, unknown
from t5_engine import axes, optimizer, partitioning, scorer, speed
from t5_engine.batching import Shape
from t5_engine.config import REMAT_POLICIES, T5Config
from t5_engine.hlo import Program, Travel
from t5_engine.step import Batch, compiled_step, make_state, make_step, state_shardings

METHODS = ("direct", "channel", "flipped")
GIB = 2**30
# By generation, as its maker states it: HBM of a chip in GiB, bytes/s that all its links to other chips bring in, and
# JAX's `device_kind`.
CHIPS = {
    "v4": (32, 300e9, "TPU v4"),
    "v5e": (16, 200e9, "TPU v5 lite"),
    "v5p": (95, 600e9, "TPU v5p"),
    "v6e": (32, 400e9, "TPU v6 lite"),
}
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
_TOPOLOGY = re.compile(r"(v\w+):(\d+(?:x\d+){1,2})")
# The compiler's refusals. Of the two forms only the first was met with libtpu 0.0.42.1.
_OUT_OF_MEMORY = re.compile(
    r"out of memory on HBM, .{0,60}?\(([\d.]+)([KMGT])\)"
    r"|memory space hbm.{0,40}?Used ([\d.]+)([KMGT]) of",
    re.S,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices that a plan is made for.

    Attributes:
      topology: such as "v5p:4x4x4".
      devices: of the TPU topology, or virtual CPU devices.
      memory: bytes of a chip's HBM.
      rate: a chip's nominal FLOP/s in bfloat16.
      link_rate: nominal bytes/s that reach a chip from all others.
      is_tpu: whether the TPU compiler is at hand.
      quick: whether it works with the least effort: less time, and an estimate that may be a fifth off.
    """

    topology: str
    devices: Sequence[Any]
    memory: int
    rate: float
    link_rate: float
    is_tpu: bool
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is planned; the names are those of the recipe's macros."""

    model: T5Config
    method: str = "flipped"
    model_parallelism: int = 1
    fsdp: bool = False
    microbatches: int = 1
    batch_size: int = 240
    inputs: int = 512
    targets: int = 128

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("model_parallelism", "microbatches", "batch_size", "inputs", "targets"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one compiled program says of itself.

    Attributes:
      fits: whether it fits in a chip's memory; None where only the TPU compiler knows.
      memory: bytes on a device by kind: "arguments", "outputs", "aliased" (outputs in the place of arguments),
        "temporary", "code", and "peak", the most data that is there at a time. Where it does not fit the compiler
        tells the peak alone.
      flops: of the matrix products on all devices, those in loops as often as they run, remat's included.
      seconds: the compiler's estimate, its cycles in loops as often as they run; None on CPUs or where it does not fit.
      seconds_once: the same as the compiler gives it, with the body of each loop once.
      collectives: by kind, what travels in one run.
      compile_seconds: by the clock of this machine.
    """

    fits: bool | None
    memory: dict[str, int]
    flops: float
    seconds: float | None
    seconds_once: float | None
    collectives: dict[str, Travel]
    compile_seconds: float


def tpu_compiler() -> bool:
    """Whether the `libtpu` wheel is installed."""
    return importlib.util.find_spec("libtpu") is not None


def chips(topology: str) -> tuple[str, int]:
    """("v5p", 64) of "v5p:4x4x4".

    Raises:
      UserError: it is no topology of a known generation.
    """
    found = _TOPOLOGY.fullmatch(topology)
    if not found or found[1] not in CHIPS:
        generation = topology.partition(":")[0]
        if generation not in CHIPS:
            raise unknown("topology", topology, [f"{name}:…" for name in CHIPS])
        raise UserError(f"topology: expected such as v5e:4x4 or v5p:4x4x4, got {topology!r}")
    count = math.prod(map(int, found[2].split("x")))
    if not count:
        raise UserError(f"topology: expected at least one chip, got {topology!r}")
    return found[1], count


def machine(topology: str, tpu: bool | None = None, quick: bool = False) -> Machine:
    """The devices of a topology: the TPU compiler's where it is at hand (or `tpu` says so), else virtual ones.

    Virtual devices can be had only before JAX has made others.
    """
    generation, count = chips(topology)
    memory, link_rate, kind = CHIPS[generation]
    rate = speed.nominal_rate(kind)
    assert rate is not None
    tpu = tpu_compiler() if tpu is None else tpu
    devices = _tpu_devices(topology, generation) if tpu else _virtual_devices(count)
    return Machine(topology, devices, memory * GIB, rate, link_rate, tpu, quick and tpu)


def _tpu_devices(topology: str, generation: str) -> Sequence[Any]:
    # No TPU is touched: neither the cloud's metadata nor the lock of the one process that uses the chips matters.
    # Without a host and a type, whatever they are, the library complains on standard error.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # The two cores of a v4 chip work as one device, as they do where JAX runs on it.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology: the TPU compiler refuses {topology!r}: {error}") from None


def _virtual_devices(count: int) -> Sequence[Any]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # devices are there already
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"topology: expected at most {len(devices)} chips, the virtual devices of this process, got {count}"
        )
    return devices[:count]


def rows(setup: Setup, data: int) -> int:
    """The batch with the rows of weight 0 that fill it up, for so many devices of the data axis."""
    multiple = data * setup.microbatches
    return -(-setup.batch_size // multiple) * multiple


def train_step(setup: Setup, target: Machine) -> Measured:
    """Compiles the train step with the recipe's optimizer, for that machine."""
    mesh = partitioning.make_mesh(setup.model_parallelism, target.devices)
    layout = axes.Layout(mesh, axes.rules(setup.fsdp))
    transform = optimizer.make("adafactor", 1e-4)
    abstract = jax.eval_shape(lambda: make_state(setup.model, transform, 0))
    shardings = state_shardings(abstract, setup.model, layout)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    step = make_step(
        setup.model,
        transform,
        layout,
        lambda_unlikelihood=3.0 if setup.method == "flipped" else 0.0,
        microbatches=setup.microbatches,
    )
    traced = compiled_step(step, shardings).trace(state, _batch(setup, mesh))
    return measure(traced.lower(), target, product_flops(traced.jaxpr.jaxpr))


def _batch(setup: Setup, mesh: jax.sharding.Mesh) -> Batch:
    size, by_rows = rows(setup, mesh.shape[axes.DATA]), partitioning.by_rows(mesh)

    def array(*rest: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((size, *rest), dtype, sharding=by_rows)

    batch = {
        "encoder_input_tokens": array(setup.inputs),
        "decoder_input_tokens": array(setup.targets),
        "decoder_target_tokens": array(setup.targets),
        "decoder_loss_weights": array(setup.targets, dtype=jnp.float32),
    }
    if setup.method == "flipped":
        batch["wrong_encoder_input_tokens"] = array(setup.inputs)
        batch["wrong_weights"] = array(dtype=jnp.float32)
    return batch


def scoring(setup: Setup, target: Machine) -> dict[str, Measured]:
    """Compiles the scorer's two programs, "encode" and "decode", for a full batch of the longest pairs."""
    mesh = partitioning.make_mesh(setup.model_parallelism, target.devices)
    pairs = max(1, scorer.TOKENS_ACCELERATOR // (setup.inputs + setup.targets))
    of_inputs, of_targets = (pairs, setup.inputs), (pairs, setup.targets)
    shape = Shape(math.prod(of_inputs), *of_inputs, math.prod(of_targets), *of_targets)
    return {
        name: measure(traced.lower(), target, product_flops(traced.jaxpr.jaxpr))
        for name, traced in scorer.traced(setup.model, mesh, shape).items()
    }


def measure(lowered: Any, target: Machine, flops: float) -> Measured:
    """Compiles a program and reads what it says of itself; one that does not fit is a result too."""
    began = time.perf_counter()
    try:
        compiled = lowered.compile(LEAST_EFFORT if target.quick else None)
    except jax.errors.JaxRuntimeError as error:
        peak = out_of_memory(str(error))
        if peak is None:
            raise
        seconds = time.perf_counter() - began
        return Measured(False, {"peak": peak}, flops, None, None, {}, seconds)
    seconds = time.perf_counter() - began
    program = Program(compiled.as_text())
    factor = program.loop_factor()
    cost = compiled.cost_analysis() or {}
    once = seconds_once(cost, program) if target.is_tpu else None
    return Measured(
        True if target.is_tpu else None,
        memory_by_kind(compiled.memory_analysis()),
        flops,
        once * factor if once and factor else None,
        once,
        program.collectives(),
        seconds,
    )


def seconds_once(cost: Mapping[str, float], program: Program) -> float | None:
    """The TPU compiler's `optimal_seconds`, each loop body once; None where it gives no time.

    It counts -1 s for each `ConcatBitcast`, a copy whose cost it does not know: a step of XL with 69 of them has
    -68.887 s. These count 0 here.
    """
    seconds = cost.get("optimal_seconds", 0.0) + program.custom_calls("ConcatBitcast")
    return seconds if seconds > 0 else None


def memory_by_kind(analysis: Any) -> dict[str, int]:
    """Bytes on one device, of what the compiler reports.

    The temporary ones are more than are there at a time; the peak holds arguments and outputs, but not the code.
    """
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }


def out_of_memory(message: str) -> int | None:
    """The bytes that a program would need, from the TPU compiler's refusal; None where it refused something else."""
    found = _OUT_OF_MEMORY.search(message)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group)
    return round(float(number) * _UNITS[unit])


def product_flops(jaxpr: Any) -> float:
    """The arithmetic of the matrix products of a traced function: those in a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            products = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * products * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(product_flops, _inner(equation.params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def mfu(setup: Setup, target: Machine, seconds: float) -> float:
    """The share of the chips' nominal rate at that time: useful arithmetic of the batch without its padding."""
    wrong = setup.method == "flipped"
    useful = speed.step_flops(setup.model, setup.inputs, setup.targets, with_wrong=wrong)
    return setup.batch_size * useful / (seconds * target.rate * len(target.devices))


def travel_seconds(collectives: Mapping[str, Travel], target: Machine) -> float:
    """The least that the collectives take: the bytes of their results at the nominal rate of all of a chip's links.

    An axis of the mesh that lies along some of a torus's axes has only their links, a torus without its wrap-around
    has fewer, and an all-reduce whose result every device keeps brings it in twice.
    """
    return sum(one.bytes for one in collectives.values()) / target.link_rate


def changes(setup: Setup, devices: int) -> Iterator[tuple[str, Setup]]:
    """What may make a step fit, the smallest change first: one setting alone, then several together."""

    policies = REMAT_POLICIES[REMAT_POLICIES.index(setup.model.remat) + 1 :]
    for policy in policies:
        yield f"remat {policy}", _with_remat(setup, policy)
    done = ["remat full"] if policies else []
    base = _with_remat(setup, "full")

    def with_microbatches() -> Iterator[tuple[str, Setup]]:
        for number in (2 * setup.microbatches, 4 * setup.microbatches):
            words = ", ".join([*done, f"{number} microbatches"])
            yield words, dataclasses.replace(base, microbatches=number)

    yield from with_microbatches()
    if not setup.fsdp:
        base = dataclasses.replace(base, fsdp=True)
        done.append("FSDP")
        yield ", ".join(done), base
        yield from with_microbatches()
    size = 2 * setup.model_parallelism
    while size <= devices and not (devices % size or setup.model.joined_kv % size):
        words = ", ".join([*done, f"model parallelism {size}"])
        yield words, dataclasses.replace(base, model_parallelism=size)
        size *= 2


def _with_remat(setup: Setup, policy: str) -> Setup:
    return dataclasses.replace(setup, model=setup.model.replace(remat=policy))


def smallest_fit(
    candidates: Iterator[tuple[str, Setup]], fits: Callable[[str, Setup], bool | None]
) -> str | None:
    """The first change with which it fits, each actually tried; None where none does."""
    return next((words for words, setup in candidates if fits(words, setup)), None)
