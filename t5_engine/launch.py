"""Joining the processes of a run: by what the scheduler says of them (`clusters`), else by an address given to each.

JAX ends a process without naming anyone when another does not come up. So the processes check in first, over a plain
socket of the coordinator (process 0): those missing after the timeout are named, to all that are there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from flipped_core import streams
from flipped_core.errors import TemporaryError, UserError
from t5_engine import clusters
from t5_engine.clusters import Group

TIMEOUT = 300.0
_PAUSE = 0.2
# On CPUs XLA may begin collectives that do not depend on each other in another order in each process, which ends them
# all ("distributed collective mismatch"); with its plain scheduler that was not seen.
_CPU_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"


def start(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
    timeout: float = TIMEOUT,
) -> bool:
    """Joins this process to the others; does nothing where the run is one process. Call it before any use of JAX.

    Args:
      coordinator_address: "host:port" of process 0; None detects SLURM, TPU pods, Open MPI and a JobSet. Alone it is
        another address for a detected group.
      process_count: of the run; with an address only.
      process_id: this process's number, from 0; with an address only.
      timeout: seconds until a process that has not come up is given up.

    Returns:
      Whether the run has several processes. Where it has not, JAX is not even imported.

    Raises:
      UserError: some of the three are given and not all, or one does not fit.
      TemporaryError: a process does not come up.
    """
    given = {
        "coordinator_address": coordinator_address,
        "process_count": process_count,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if not missing:
        assert coordinator_address is not None
        assert process_count is not None and process_id is not None
        group: Group | None = Group(_checked(coordinator_address), process_count, process_id)
        if not 0 <= process_id < process_count:
            raise UserError(
                f"process_id: expected 0 to {process_count - 1} of {process_count} processes, got "
                f"{process_id}"
            )
    else:
        group = _detected(coordinator_address)
        if len(missing) < (2 if group and coordinator_address else len(given)):
            raise UserError(
                f"{', '.join(missing)}: expected together with "
                f"{', '.join(name for name in given if name not in missing)}, got None"
            )
    if group is None or group.count < 2:
        return False
    call_roll(group, timeout)
    _initialize(timeout, group)
    return True


def _detected(address: str | None) -> Group | None:
    """The group that the scheduler describes, at another address where one is given."""
    environment = dict(os.environ)
    if address is not None:
        environment["JAX_COORDINATOR_ADDRESS"] = _checked(address)
    metadata = None
    if _is_tpu_host() and not environment.get("TPU_SKIP_MDS_QUERY"):
        metadata = clusters.cloud_metadata(environment)
    group = clusters.detected(environment, metadata)
    if group is not None and address is not None:
        group = dataclasses.replace(group, address=address)
    return group


def check_devices() -> None:
    """Refuses what `JAX_PLATFORMS` asks for and this machine does not have; JAX's own search for devices raises
    `RuntimeError` or a bare `AssertionError`, after lines of native code.

    Raises:
      UserError: JAX finds no device.
    """
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and "JAX_PLATFORM_NAME" not in os.environ:
        return
    if problem := no_device():
        raise UserError(problem)


def no_device() -> str | None:
    """Why JAX finds no device, in one line; None where it finds some."""
    import jax

    try:
        with streams.native_stderr_held_back(show=False):
            jax.devices()
    except Exception as error:  # noqa: BLE001 - nearly any kind, depending on the platform
        why = " ".join(str(error).partition("(")[0].split()) or "there is none on this machine"
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
            if wanted := os.environ.get(name):
                return f"{name}: expected devices that this machine has, such as cpu, got {wanted!r}: {why}"
        return f"no device can be used: {why}"
    return None


def call_roll(group: Group, timeout: float) -> None:
    """Returns when all processes of the group are there.

    Raises:
      TemporaryError: after `timeout` seconds, in every process that is there, naming those that are not.
      UserError: the processes do not fit together.
    """
    error = _ask(group, timeout) if group.index == 0 else _report(group, timeout)
    if error:
        raise error


def _ask(group: Group, timeout: float) -> UserError | None:
    """Process 0's part of the roll: what went wrong, None if nothing, after having told the others."""
    port = int(group.address.rpartition(":")[2])
    deadline = time.monotonic() + timeout
    there = {0: socket.gethostname()}
    problem: UserError | None = None
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            return UserError(
                f"coordinator_address {group.address}: port {port} cannot be opened: {error.strerror}"
            )
        connections = []
        while len(there) < group.count and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                problem = _missing(group, there, timeout)
                break
            stack.enter_context(connection)
            connection.settimeout(10)
            said = _hear(connection)
            if said is None or not isinstance(said.get("process"), int):
                continue  # no process of ours
            connections.append(connection)
            problem = _misfit(group, there, said)
            there[said["process"]] = str(said.get("host"))
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(_answer(problem))
        # The others close first: then the port is free at once for JAX's own service.
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.recv(1)
    return problem


def _answer(problem: UserError | None) -> bytes:
    """What process 0 sends to each of the others."""
    temporary = isinstance(problem, TemporaryError)
    answer = {"problem": str(problem or ""), "temporary": temporary}
    return json.dumps(answer).encode() + b"\n"


def _report(group: Group, timeout: float) -> UserError | None:
    """The part of every other process: what process 0 answers."""
    host, _, port = group.address.rpartition(":")
    deadline = time.monotonic() + timeout
    said = {"process": group.index, "count": group.count, "host": socket.gethostname()}
    while True:
        try:
            address = (host.strip("[]"), int(port))  # IPv6 stands in brackets
            with socket.create_connection(address, timeout=timeout) as connection:
                connection.sendall(json.dumps(said).encode() + b"\n")
                connection.settimeout(timeout + 10)  # it waits for others as long as we would
                answer = _hear(connection)
            if answer is not None:
                kind = TemporaryError if answer["temporary"] else UserError
                return kind(answer["problem"]) if answer["problem"] else None
        except OSError:
            pass
        if time.monotonic() > deadline:
            return TemporaryError(
                f"process 0 of {group.count}, the coordinator at {group.address}, did not come up "
                f"within {timeout:.0f} s (this is process {group.index} on {said['host']})"
            )
        time.sleep(_PAUSE)


def _hear(connection: socket.socket) -> dict[str, Any] | None:
    """One line of JSON; None where the other side says anything else."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        said = json.loads(lines.readline(4096))
        return said if isinstance(said, dict) else None
    return None


def _missing(group: Group, there: Mapping[int, str], timeout: float) -> TemporaryError:
    absent = [index for index in range(group.count) if index not in there]
    per_slice = group.count // group.slices
    short = {name.partition(".")[0] for name in there.values()}
    silent = [host for host in group.hosts if host.partition(".")[0] not in short]
    names = f"process{'es' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"
    if group.slices > 1:
        slices = sorted({index // per_slice for index in absent})
        names += f" (slice{'s' if len(slices) > 1 else ''} {', '.join(map(str, slices))})"
    where = f"; no process came up on {', '.join(silent)}" if silent else ""
    return TemporaryError(
        f"{names} of {group.count} did not come up within {timeout:.0f} s at the coordinator "
        f"{group.address}{where}"
    )


def _misfit(group: Group, there: Mapping[int, str], said: Mapping[str, Any]) -> UserError | None:
    index, host = said.get("process"), said.get("host")
    if said.get("count") != group.count:
        return UserError(
            f"process_count: expected {group.count}, as process 0 has it, got {said.get('count')} "
            f"on {host}"
        )
    if isinstance(index, int) and index in there:
        return UserError(f"process_id: {index} was given twice, on {there[index]} and on {host}")
    return None


def _checked(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"coordinator_address: expected host:port, got {address!r}")
    return address


def _is_tpu_host() -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    return any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev").glob("vfio/[0-9]*"))


def _initialize(timeout: float, group: Group) -> None:
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    # On CPUs only: a build of XLA that does not know a flag ends the process.
    if jax.config.jax_platforms == "cpu" and _CPU_ORDER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_ORDER}=false".strip()
    jax.distributed.initialize(
        coordinator_address=group.address,
        num_processes=group.count,
        process_id=group.index,
        local_device_ids=group.local_devices,
        # JAX's detection would choose other devices of a SLURM node (see `clusters`).
        cluster_detection_method="deactivate",
        initialization_timeout=int(max(1, timeout)),
    )
