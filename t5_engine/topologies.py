"""Devices that are not at hand, by name: TPU topologies and accelerator types, and nodes of GPUs.

"v5p:4x4x4" is a topology, "v5p-64" Google Cloud's name of a slice, "h100:8" a node of GPUs; "…*2" are two of either.
Names of v4 and v5p count TensorCores, two a chip; those of v5e ("v5litepod-16") and v6e count chips.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from flipped_core.errors import UserError, unknown
from t5_engine import speed

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A kind of chip, as its maker states it.

    Attributes:
      memory: bytes of HBM; of GPUs, what nvidia-smi reports.
      kind: JAX's `device_kind`.
      link_rate: bytes/s that all links to other chips bring in; None for GPUs, whose time is not estimated.
      cores: that the name of a slice counts for each chip.
      dimensions: of the torus.
    """

    memory: int
    kind: str
    link_rate: float | None = None
    cores: int = 1
    dimensions: int = 0


TPUS = {
    "v4": Hardware(32 * GIB, "TPU v4", 300e9, cores=2, dimensions=3),
    "v5e": Hardware(16 * GIB, "TPU v5 lite", 200e9, dimensions=2),
    "v5p": Hardware(95 * GIB, "TPU v5p", 600e9, cores=2, dimensions=3),
    "v6e": Hardware(32 * GIB, "TPU v6 lite", 400e9, dimensions=2),
}
GPUS = {
    "a100": Hardware(81_920 * 2**20, "NVIDIA A100-SXM4-80GB"),
    "h100": Hardware(81_559 * 2**20, "NVIDIA H100 80GB HBM3"),
    "h200": Hardware(143_771 * 2**20, "NVIDIA H200"),
}
GPUS_PER_NODE = 8
_CLOUD_NAMES = {"v5litepod": "v5e"}
_LARGEST = {2: 256, 3: 4096}  # chips of a slice
_NAME = re.compile(r"(?P<kind>\w+?)(?P<mark>[:-])(?P<shape>\d+(?:x\d+)*)(?:\*(?P<slices>\d+))?")
_EXAMPLES = "expected such as v5e:4x4, v5p-64, v5e:4x4*2 or h100:8*2"


@dataclasses.dataclass(frozen=True)
class Name:
    """What the name of a topology says.

    Attributes:
      kind: a key of `TPUS` or `GPUS`.
      shape: of a slice's torus, such as "4x4"; of a node, the number of GPUs.
      slices: how many slices or nodes.
    """

    kind: str
    shape: str
    slices: int = 1

    @property
    def hardware(self) -> Hardware:
        return TPUS.get(self.kind) or GPUS[self.kind]

    @property
    def is_gpu(self) -> bool:
        return self.kind in GPUS

    @property
    def per_slice(self) -> int:
        """Chips of each slice or node."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def chips(self) -> int:
        """Chips of all slices or nodes."""
        return self.slices * self.per_slice

    def __str__(self) -> str:
        return f"{self.kind}:{self.shape}" + (f"*{self.slices}" if self.slices > 1 else "")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a plan is made for.

    Attributes:
      name: of them.
      devices: of the TPU topology, or virtual CPU devices.
      memory: bytes of a chip's HBM.
      rate: a chip's nominal FLOP/s in bfloat16.
      link_rate: nominal bytes/s that reach a chip from all others of its slice; None is unknown.
      is_tpu: whether the TPU compiler is at hand.
      quick: whether it works with the least effort: less time, and an estimate that may be a fifth off.
    """

    name: Name
    devices: Sequence[Any]
    memory: int
    rate: float
    link_rate: float | None
    is_tpu: bool
    quick: bool = False


def tpu_compiler() -> bool:
    """Whether the `libtpu` wheel is installed."""
    return importlib.util.find_spec("libtpu") is not None


def parse(text: str) -> Name:
    """The kind, shape and number of slices of a topology, an accelerator type, or nodes of GPUs.

    Raises:
      UserError: no such hardware, or no such size of it; with the nearest names.
    """
    found = _NAME.fullmatch(text.strip().lower())
    if not found:
        kind = re.split("[:-]", text.lower())[0]
        if _CLOUD_NAMES.get(kind, kind) not in {**TPUS, **GPUS}:
            raise _unknown_kind(text)
        raise UserError(f"topology: {_EXAMPLES}, got {text!r}")
    kind = _CLOUD_NAMES.get(found["kind"], found["kind"])
    slices = int(found["slices"] or 1)
    if kind not in {**TPUS, **GPUS}:
        raise _unknown_kind(text)
    if slices < 1 or "0" in found["shape"].split("x"):
        raise UserError(f"topology: expected at least one chip, got {text!r}")
    if kind in GPUS:
        number = int(found["shape"]) if "x" not in found["shape"] else 0
        if not 1 <= number <= GPUS_PER_NODE:
            raise UserError(
                f"topology: expected at most {GPUS_PER_NODE} GPUs in a node, such as {kind}:8*2 for 16, got {text!r}"
            )
        return Name(kind, str(number), slices)
    if found["mark"] == "-":
        shapes = slice_shapes(kind, called=found["kind"])
        size = f"{found['kind']}-{found['shape']}"
        if size not in shapes:
            raise unknown("accelerator type", size, shapes)
        return Name(kind, shapes[size], slices)
    if found["shape"].count("x") not in (1, 2):
        raise UserError(f"topology: {_EXAMPLES}, got {text!r}")
    return Name(kind, found["shape"], slices)


def slice_shapes(kind: str, called: str | None = None) -> dict[str, str]:
    """Google Cloud's names of a generation's slices and their topologies: "v5p-64" → "2x4x4".

    Args:
      kind: a key of `TPUS`.
      called: its name in these names, such as "v5litepod", where it is another.
    """
    hardware = TPUS[kind]
    sides = [2, 2] if hardware.dimensions == 2 else [2, 2, 1]
    shapes = {}
    while (chips := math.prod(sides)) <= _LARGEST[hardware.dimensions]:
        shapes[f"{called or kind}-{chips * hardware.cores}"] = "x".join(map(str, sides))
        # The last of the smallest sides grows: 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, …
        smallest = min(sides)
        sides[max(n for n, side in enumerate(sides) if side == smallest)] *= 2
    return shapes


def _unknown_kind(text: str) -> UserError:
    names = [f"{name}:…" for name in (*TPUS, *GPUS)]
    return unknown("topology", text, [*names, *(f"{name}-…" for name in (*TPUS, *_CLOUD_NAMES))])


def topology(name: str | Name, tpu: bool | None = None, quick: bool = False) -> Topology:
    """The devices of that name: the TPU compiler's where it is at hand (or `tpu` says so), else virtual ones.

    Virtual devices can be had only before JAX has made others.
    """
    name = parse(name) if isinstance(name, str) else name
    hardware = name.hardware
    rate = speed.nominal_rate(hardware.kind)
    assert rate is not None
    tpu = not name.is_gpu and (tpu_compiler() if tpu is None else tpu)
    devices = _tpu_devices(name) if tpu else _virtual_devices(name.chips)
    return Topology(name, devices, hardware.memory, rate, hardware.link_rate, tpu, quick and tpu)


def _tpu_devices(name: Name) -> Sequence[Any]:
    # No TPU is touched: neither the cloud's metadata nor the lock of the one process that uses the chips matters.
    # Without a host and a type, whatever they are, the library complains on standard error.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The two cores of a v4 chip work as one device, as they do where JAX runs on it.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.kind == "v4" else {}
    if name.slices > 1:
        options["num_slices"] = name.slices
    try:
        return topologies.get_topology_desc(f"{name.kind}:{name.shape}", "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology: the TPU compiler refuses '{name}': {error}") from None


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
