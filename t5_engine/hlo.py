"""What a compiled program says in its text: how often each loop runs, what travels between devices, its cycles.

XLA's own cost analysis counts the body of a loop once, and a stack of layers is one loop. The text has what is missing:
each loop's condition compares a counter with a constant (or the loop carries `known_trip_count`), and a computation
runs as often as all that call it together.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Bytes of one number by XLA's name of its type.
_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?<= )([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_LIMIT = re.compile(r"constant\((\d+)\)")
_KNOWN = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
# Devices by their numbers in the mesh: {{0,1},{2,3}}; or [groups,size]<=[dims]T(axes) of all numbers in their order; or
# the axes of a mesh over which they lie, a part of one as 'axis':(what comes before it)size.
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")
# Between slices of TPUs the compiler sends through the hosts.
_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its name, the type of its result, its operation, the rest of the line."""

    name: str
    type: str
    operation: str
    rest: str


@dataclasses.dataclass(frozen=True)
class CollectiveStats:
    """Collectives of one kind in one run of the program: how many, and the bytes of their results on one device."""

    count: int
    bytes: int


class Program:
    """A compiled program's computations and how often each runs."""

    def __init__(self, text: str) -> None:
        """Reads the text of a compiled program, as `jax.stages.Compiled.as_text` gives it.

        Raises:
          ValueError: a loop's number of trips cannot be read.
        """
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        body: list[Instruction] = []
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                body = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
                continue
            found = _INSTRUCTION.match(line)
            if found:
                operation = _OPERATION.search(found[2])
                if operation:
                    type_, rest = found[2][: operation.start()], found[2][operation.end() :]
                    body.append(Instruction(found[1], type_, operation[1], rest))
        self.runs = self._runs()

    def _runs(self) -> dict[str, int]:
        """How often each computation runs in one run of the program."""
        callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
        for name, instructions in self.computations.items():
            for instruction in instructions:
                for called, times in self._called(instruction):
                    callers[called].append((name, times))
        known: dict[str, int] = {self.entry: 1}

        def runs(name: str) -> int:
            if name not in known:
                known[name] = sum(runs(caller) * times for caller, times in callers[name])
            return known[name]

        return {name: runs(name) for name in self.computations}

    def _called(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.operation.endswith(("-done", "-update")):
            return  # its start has called
        if instruction.operation == "while":
            body = re.search(r"body=%?([\w.\-]+)", instruction.rest)
            assert body, "a loop has a body"
            yield body[1], self.trips(instruction)
            return
        for one, several in _CALLED.findall(instruction.rest):
            for name in [one] if one else several.split(","):
                yield name.strip().lstrip("%"), 1

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs."""
        known = _KNOWN.search(loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = self.computations.get(condition[1], []) if condition else []
        limits = {int(line.rest.split(")")[0]) for line in lines if _is_limit(line)}
        if len(limits) != 1:
            raise ValueError(f"cannot read how often the loop {loop.name} runs")
        return limits.pop()

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """Each instruction, and how often it runs."""
        for name, instructions in self.computations.items():
            for instruction in instructions:
                yield instruction, self.runs[name]

    def collectives(self) -> dict[str, CollectiveStats]:
        """By kind, what travels between the devices in one run; those in loops as often as the loops run."""
        # The TPU compiler cuts one collective into pieces that run beside several fusions. Each has the whole's
        # operation and channel, so a channel counts once.
        whole: dict[tuple[str, str], CollectiveStats] = {}
        for instruction, runs in self.instructions():
            kind = instruction.operation.removesuffix("-start")
            if kind in COLLECTIVES and runs:
                channel = _CHANNEL.search(instruction.rest)
                key = (kind, channel[1] if channel else instruction.name)
                travel = CollectiveStats(runs, runs * sum(_result_bytes(instruction)))
                whole[key] = max(whole.get(key, travel), travel, key=lambda one: one.bytes)
        found: dict[str, CollectiveStats] = {}
        for (kind, _), travel in whole.items():
            old = found.get(kind, CollectiveStats(0, 0))
            found[kind] = CollectiveStats(old.count + travel.count, old.bytes + travel.bytes)
        return found

    def between_slices(self, per_slice: int) -> dict[str, CollectiveStats]:
        """By kind, what of the collectives' results comes from or passes through other slices or nodes in one run.

        The TPU compiler writes these transfers out; those of other programs are the collectives of a group with
        devices of several slices. Bytes are of results on one device.

        Args:
          per_slice: devices of a slice or node; those of the mesh follow each other slice by slice.
        """
        found: dict[str, CollectiveStats] = {}
        for instruction, runs in self.instructions():
            kind = instruction.operation.removesuffix("-start")
            if kind == "recv" and _MEGASCALE in instruction.rest:
                transfer = _TRANSFER.search(instruction.rest)
                kind = transfer[1].lower().replace("_", "-") if transfer else "transfer"
                size = array_bytes(instruction.type)[0]
            elif kind in COLLECTIVES and _spans(instruction, per_slice):
                size = sum(_result_bytes(instruction))
            else:
                continue
            if runs:
                old = found.get(kind, CollectiveStats(0, 0))
                found[kind] = CollectiveStats(old.count + runs, old.bytes + runs * size)
        return found

    def custom_calls(self, *targets: str) -> int:
        """How many calls of the compiler's own `targets` there are, each once."""
        names = [f'custom_call_target="{target}"' for target in targets]
        return sum(
            instruction.operation == "custom-call"
            and any(name in instruction.rest for name in names)
            for instruction, runs in self.instructions()
            if runs
        )

    def loop_factor(self) -> float | None:
        """The compiler's estimated cycles with loops counted as often as they run, by those with each counted once.

        None where the program has no such estimates, as on CPUs.
        """
        once = total = 0
        for instruction, runs in self.instructions():
            cycles = _CYCLES.search(instruction.rest)
            if cycles and runs:
                once += int(cycles[1])
                total += int(cycles[1]) * runs
        return total / once if once else None


def device_groups(rest: str) -> list[list[int]] | None:
    """The groups of devices of a collective, by their numbers in the mesh; None is one group of all."""
    iota = _IOTA.search(rest)
    if iota:
        shape, dims = (tuple(map(int, text.split(","))) for text in iota.groups()[:2])
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            numbers = numbers.transpose(tuple(map(int, iota[3].split(","))))
        return numbers.reshape(shape).tolist()
    mesh = _MESH.search(rest)
    if mesh:
        return _along_axes(mesh[1], mesh[2])
    explicit = _GROUPS.search(rest)
    if explicit is None:
        return None
    groups = re.findall(r"\{([\d,]*)\}", explicit[1])
    return [[int(number) for number in group.split(",") if number] for group in groups]


def _along_axes(mesh: str, axes: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size, _, _ in _MESH_AXIS.findall(mesh)}
    # Each axis of the mesh as before x part x after, and which of these the groups lie along.
    dims: list[int] = []
    along: list[int] = []
    parts = {name: (before, part) for name, _, before, part in _MESH_AXIS.findall(axes)}
    for name, size in sizes.items():
        before, part = (int(text or 0) for text in parts.get(name, ("", "")))
        if name in parts:
            before, part = (before, part) if part else (1, size)
            along.append(len(dims) + 1)
            dims += [before, part, size // (before * part)]
        else:
            dims.append(size)
    numbers = np.arange(math.prod(dims)).reshape(dims)
    numbers = np.moveaxis(numbers, along, range(-len(along), 0))
    return numbers.reshape(-1, math.prod(dims[axis] for axis in along)).tolist()


def _spans(collective: Instruction, per_slice: int) -> bool:
    groups = device_groups(collective.rest)
    return groups is None or any(
        len({number // per_slice for number in group}) > 1 for group in groups
    )


def _is_limit(line: Instruction) -> bool:
    return line.operation == "constant" and bool(_LIMIT.match(f"constant({line.rest}"))


def _result_bytes(collective: Instruction) -> list[int]:
    sizes = array_bytes(collective.type)
    if collective.operation.endswith("-start") and collective.operation != "all-reduce-start":
        # (operands, results, …): the results are as many as the operands.
        operands = max(1, collective.rest.split(")")[0].count("%"))
        return sizes[operands : 2 * operands]
    return sizes


def array_bytes(type_: str) -> list[int]:
    """The bytes of each array in a type such as `(f32[2,3]{1,0}, bf16[4])`."""
    return [
        _BYTES[name] * math.prod(int(size) for size in sizes.split(",") if size)
        for name, sizes in _ARRAY.findall(type_)
        if name in _BYTES
    ]
