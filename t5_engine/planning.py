"""What a training step and scoring would take on devices that are not at hand: compiled, measured, never run.

The programs are those that the trainer and the scorer run, lowered with abstract arrays: no parameter is allocated.
With the `libtpu` wheel the TPU compiler works on any machine. Without it, and for GPUs, the programs are compiled for
as many virtual CPU devices: then the time is unknown, and memory is the CPU compiler's estimate.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flipped_core.errors import UserError, unknown
from t5_engine import axes, batching, ladder, optimizer, partitioning, scorer, speed
from t5_engine.config import REMAT_POLICIES, T5Config
from t5_engine.hlo import CollectiveStats, Program
from t5_engine.packing import Shape
from t5_engine.step import Batch, compiled_step, make_state, make_step, state_shardings
from t5_engine.topologies import Topology

METHODS = ("direct", "channel", "flipped")
# The share of a GPU's memory that a step may take by the CPU compiler's estimate.
GPU_MEMORY_SHARE = 0.9
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
# For virtual devices: a quarter of the time for XL, and the same memory and collectives.
_CPU_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# Calls whose cost the TPU compiler does not know; it counts -1 s for each.
_COSTLESS = ("ConcatBitcast", "SliceId", "ZeroCrop")
# The compiler's refusals. Of the two forms only the first was met with libtpu 0.0.42.1.
_OUT_OF_MEMORY = re.compile(
    r"out of memory on HBM, .{0,60}?\(([\d.]+)([KMGT])\)"
    r"|memory space hbm.{0,40}?Used ([\d.]+)([KMGT]) of",
    re.S,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What is planned; the names are those of the recipe's macros.

    Attributes:
      lengths: (inputs, targets) in tokens of examples of the mixture, by which rows are packed; None pads.
    """

    model: T5Config
    method: str = "flipped"
    model_parallelism: int = 1
    fsdp: bool = False
    microbatches: int = 1
    batch_size: int = 240
    inputs: int = 512
    targets: int = 128
    lengths: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        for name in ("model_parallelism", "microbatches", "batch_size", "inputs", "targets"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class CompileStats:
    """What one compiled program says of itself.

    Attributes:
      fits: whether it fits in a chip's memory: by the TPU compiler, for GPUs by the CPU compiler's estimate; None is
        unknown.
      memory: bytes on a device by kind: "arguments", "outputs", "aliased" (outputs in the place of arguments),
        "temporary", "code", and "peak", the most data that is there at a time. Where it does not fit the TPU compiler
        gives the peak alone.
      flops: of the matrix products on all devices, those in loops as often as they run, remat's included.
      seconds: the compiler's estimate, its cycles in loops as often as they run; None on CPUs or where it does not fit.
      seconds_once: the same as the compiler gives it, with the body of each loop once.
      collectives: by kind, those of one run.
      between_slices: by kind, what of them crosses the network between slices or nodes; see `hlo.Program`.
      compile_seconds: by the clock of this machine.
    """

    fits: bool | None
    memory: dict[str, int]
    flops: float
    seconds: float | None
    seconds_once: float | None
    collectives: dict[str, CollectiveStats]
    between_slices: dict[str, CollectiveStats]
    compile_seconds: float


def shape(config: StepConfig, data: int) -> Shape:
    """The shape of a step's arrays for so many devices of the data axis.

    Padded, the batch with the rows of weight 0 that fill it up. Packed, the second of the shapes that a run chooses
    (`t5_engine.ladder`), which holds most of its batches; those here are sampled from `config.lengths`.
    """
    multiple = data * config.microbatches
    if config.lengths is None:
        padded = -(-config.batch_size // multiple) * multiple
        return Shape(padded, config.inputs, config.targets)
    random = np.random.default_rng(0)
    known = np.minimum(np.array(config.lengths), (config.inputs, config.targets))

    def sampled() -> dict[str, np.ndarray]:
        inputs, targets = known[random.integers(0, len(known), config.batch_size)].T
        inputs = (np.arange(config.inputs) < inputs[:, None]).astype(np.int32)
        targets = (np.arange(config.targets) < targets[:, None]).astype(np.int32)
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": targets,
        }
        if config.method == "flipped":
            batch["wrong_encoder_input_tokens"] = inputs
            batch["wrong_weights"] = np.ones(len(inputs), np.int32)
        return batch

    found = ladder.fit(
        [sampled() for _ in range(ladder.SAMPLE)],
        multiple,
        lambda inputs, targets: speed.forward_flops(config.model, inputs, targets),
    )
    return found.shapes[min(1, len(found.shapes) - 1)]


def train_step(config: StepConfig, topology: Topology) -> CompileStats:
    """Compiles the train step with the recipe's optimizer, for that machine."""
    mesh = partitioning.make_mesh(config.model_parallelism, topology.devices)
    layout = axes.Layout(mesh, axes.rules(config.fsdp))
    transform = optimizer.make("adafactor", 1e-4)
    abstract = jax.eval_shape(lambda: make_state(config.model, transform, 0))
    shardings = state_shardings(abstract, config.model, layout)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    step = make_step(
        config.model,
        transform,
        layout,
        lambda_unlikelihood=3.0 if config.method == "flipped" else 0.0,
        microbatches=config.microbatches,
    )
    traced = compiled_step(step, shardings).trace(state, _batch(config, mesh))
    return measure(traced.lower(), topology, product_flops(traced.jaxpr.jaxpr))


def _batch(config: StepConfig, mesh: jax.sharding.Mesh) -> Batch:
    size, inputs, targets = shape(config, mesh.shape[axes.DATA])
    by_rows = partitioning.by_rows(mesh)

    def array(*rest: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((size, *rest), dtype, sharding=by_rows)

    batch = {
        "encoder_input_tokens": array(inputs),
        "decoder_input_tokens": array(targets),
        "decoder_target_tokens": array(targets),
        "decoder_loss_weights": array(targets, dtype=jnp.float32),
    }
    if config.lengths is not None:
        batch["encoder_segment_ids"] = array(inputs)
        batch["decoder_segment_ids"] = array(targets)
        if config.method == "flipped":
            batch["unlikelihood_weights"] = array(targets, dtype=jnp.float32)
    elif config.method == "flipped":
        batch["wrong_encoder_input_tokens"] = array(inputs)
        batch["wrong_weights"] = array(dtype=jnp.float32)
    return batch


def scoring(config: StepConfig, topology: Topology) -> dict[str, CompileStats]:
    """Compiles the scorer's two programs, "encode" and "decode", for a full batch of the longest pairs."""
    mesh = partitioning.make_mesh(config.model_parallelism, topology.devices)
    pairs = max(1, scorer.TOKENS_ACCELERATOR // (config.inputs + config.targets))
    of_inputs, of_targets = (pairs, config.inputs), (pairs, config.targets)
    packed = batching.Shape(math.prod(of_inputs), *of_inputs, math.prod(of_targets), *of_targets)
    return {
        name: measure(traced.lower(), topology, product_flops(traced.jaxpr.jaxpr))
        for name, traced in scorer.traced(config.model, mesh, packed).items()
    }


def measure(lowered: Any, topology: Topology, flops: float) -> CompileStats:
    """Compiles a program and reads what it says of itself; one that does not fit is a result too."""
    began = time.perf_counter()
    try:
        compiled = lowered.compile(_compiler_options(topology))
    except jax.errors.JaxRuntimeError as error:
        peak = out_of_memory(str(error))
        if peak is None:
            raise
        seconds = time.perf_counter() - began
        return CompileStats(False, {"peak": peak}, flops, None, None, {}, {}, seconds)
    seconds = time.perf_counter() - began
    program = Program(compiled.as_text())
    factor = program.loop_factor()
    cost = compiled.cost_analysis() or {}
    once = seconds_once(cost, program) if topology.is_tpu else None
    memory = memory_by_kind(compiled.memory_analysis(), topology.is_tpu)
    name = topology.name
    fits = True if topology.is_tpu else None
    if name.is_gpu:
        fits = memory["peak"] <= GPU_MEMORY_SHARE * topology.memory
    return CompileStats(
        fits,
        memory,
        flops,
        once * factor if once and factor else None,
        once,
        program.collectives(),
        program.between_slices(name.per_slice) if name.slices > 1 else {},
        seconds,
    )


def _compiler_options(topology: Topology) -> dict[str, Any] | None:
    if not topology.is_tpu:
        return _CPU_OPTIONS
    return LEAST_EFFORT if topology.quick else None


def seconds_once(cost: Mapping[str, float], program: Program) -> float | None:
    """The TPU compiler's `optimal_seconds`, each loop body once; None where it gives no time.

    It counts -1 s for each call whose cost it does not know: a step of XL with 69 `ConcatBitcast` has -68.887 s. These
    count 0 here.
    """
    seconds = cost.get("optimal_seconds", 0.0) + program.custom_calls(*_COSTLESS)
    return seconds if seconds > 0 else None


def memory_by_kind(analysis: Any, is_tpu: bool) -> dict[str, int]:
    """Bytes on one device, of what the compiler reports; the peak holds arguments and outputs, but not the code.

    On TPUs the temporary arrays are together more than are there at a time. The CPU compiler counts those that share
    their place once and leaves them out of its peak, which is their sum with arguments and outputs here.
    """
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }
    if not is_tpu:
        memory["peak"] = (
            memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporary"]
        )
    return memory


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


def mfu(config: StepConfig, topology: Topology, seconds: float) -> float:
    """The share of the chips' nominal rate at that time: useful arithmetic of the batch without its padding.

    Padded, all examples count as the longest; packed, with the mean lengths.
    """
    wrong = config.method == "flipped"
    inputs, targets = mean_lengths(config)
    useful = speed.step_flops(config.model, inputs, targets, with_wrong=wrong)
    return config.batch_size * useful / (seconds * topology.rate * len(topology.devices))


def mean_lengths(config: StepConfig) -> tuple[float, float]:
    """Tokens of an input and of a target; the longest where they are not known."""
    if config.lengths is None:
        return config.inputs, config.targets
    known = np.minimum(np.array(config.lengths), (config.inputs, config.targets))
    return float(known[:, 0].mean()), float(known[:, 1].mean())


def travel_seconds(collectives: Mapping[str, CollectiveStats], topology: Topology) -> float | None:
    """The least that the collectives take: the bytes of their results at the nominal rate of all of a chip's links.

    An axis of the mesh that lies along some of a torus's axes has only their links, a torus without its wrap-around
    has fewer, and an all-reduce whose result every device keeps brings it in twice. What crosses the network between
    slices is not in it. None where the rate is unknown.
    """
    if topology.link_rate is None:
        return None
    return sum(one.bytes for one in collectives.values()) / topology.link_rate


def changes(config: StepConfig, per_slice: int) -> Iterator[tuple[str, StepConfig]]:
    """What may make a step fit, the smallest change first: one setting alone, then several together.

    Args:
      config: what does not fit.
      per_slice: devices of a slice or node, within which a copy of the weights stays.
    """

    policies = REMAT_POLICIES[REMAT_POLICIES.index(config.model.remat) + 1 :]
    for policy in policies:
        yield f"remat {policy}", _with_remat(config, policy)
    done = ["remat full"] if policies else []
    base = _with_remat(config, "full")

    def with_microbatches() -> Iterator[tuple[str, StepConfig]]:
        for number in (2 * config.microbatches, 4 * config.microbatches):
            words = ", ".join([*done, f"{number} microbatches"])
            yield words, dataclasses.replace(base, microbatches=number)

    yield from with_microbatches()
    if not config.fsdp:
        base = dataclasses.replace(base, fsdp=True)
        done.append("FSDP")
        yield ", ".join(done), base
        yield from with_microbatches()
    size = 2 * config.model_parallelism
    while size <= per_slice and not (per_slice % size or config.model.joined_kv % size):
        words = ", ".join([*done, f"model parallelism {size}"])
        yield words, dataclasses.replace(base, model_parallelism=size)
        size *= 2


def _with_remat(config: StepConfig, policy: str) -> StepConfig:
    return dataclasses.replace(config, model=config.model.replace(remat=policy))


def smallest_fit(
    candidates: Iterator[tuple[str, StepConfig]], fits: Callable[[str, StepConfig], bool | None]
) -> str | None:
    """The first change with which it fits, each actually tried; None where none does."""
    return next((words for words, config in candidates if fits(words, config)), None)


def proposals(config: StepConfig, chips: int, per_slice: int) -> Iterator[StepConfig]:
    """Meshes, REMAT and MICROBATCHES for GPUs, in the order in which they are tried; the first that fits is proposed.

    Weights are split over all devices (FSDP). Microbatches cost less than computing everything again, so remat minimal
    with up to four comes before remat full, and a model axis last.
    """
    parallelism = 1
    while parallelism <= per_slice and not config.model.joined_kv % parallelism:
        rows_each = -(-config.batch_size * parallelism // chips)
        for policy, microbatches in (
            *(("minimal", number) for number in (1, 2, 4)),
            *(("full", number) for number in (1, 2, 4, 8)),
        ):
            if microbatches <= max(1, rows_each):
                yield dataclasses.replace(
                    _with_remat(config, policy),
                    fsdp=True,
                    model_parallelism=parallelism,
                    microbatches=microbatches,
                )
        parallelism *= 2


def first_fit(
    candidates: Iterator[StepConfig], compiled: Callable[[StepConfig], CompileStats]
) -> tuple[StepConfig, CompileStats] | None:
    """The first configuration that fits, with its compiled program; None where none does."""
    for config in candidates:
        stats = compiled(config)
        if stats.fits:
            return config, stats
    return None
