"""Joining the processes of a run: by what the scheduler says of them (`clusters`), else by an address given to each.

JAX ends a process without naming anyone when another does not come up. So the processes check in first, over a plain
socket of the coordinator (process 0): those missing after the timeout are named, to all that are there. A process whose
settings are wrong checks in too, with its error, which then ends all of them with the same exit code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from flipped_core import streams
from flipped_core.errors import TemporaryError, UserError
from t5_engine import clusters
from t5_engine.clusters import Group

TIMEOUT = 300.0
_PAUSE = 0.2
# Seconds that a process with an error of its own waits for the others, to notify them.
_NOTIFY = 60.0
# Seconds in which the process of an earlier attempt may free the port.
_PORT_FREE = 30.0
_LONGEST_PROBLEM = 2000  # characters
_LONGEST_LINE = 2**15  # bytes of JSON
# Codes of JAX's service where another process is missing or has ended.
_PEER_STATUS = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED")
# On CPUs XLA may begin collectives that do not depend on each other in another order in each process, which ends them
# all ("distributed collective mismatch"); with its plain scheduler that was not seen.
_CPU_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"


def start(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_id: int | None = None,
    timeout: float = TIMEOUT,
    check: Callable[[], object] = lambda: None,
) -> bool:
    """Joins this process to the others; does nothing where the run is one process. Call it before any use of JAX.

    Args:
      coordinator_address: "host:port" of process 0; None detects SLURM, TPU pods, Open MPI and a JobSet. Alone it is
        another address for a detected group.
      process_count: of the run; with an address only.
      process_id: this process's number, from 0; with an address only.
      timeout: seconds until a process that has not come up is given up.
      check: called first; a `UserError` that it raises in one process is raised in all.

    Returns:
      Whether the run has several processes. Where it has not, JAX is not even imported.

    Raises:
      UserError: some of the three are given and not all, or one does not fit; or as `check` in any process.
      TemporaryError: a process does not come up, or ends at once.
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
        check()
        return False
    problem: UserError | None = None
    try:
        check()
    except UserError as error:
        problem = error
    call_roll(group, timeout, problem)
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
      TemporaryError: another process of the run ended meanwhile.
    """
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and "JAX_PLATFORM_NAME" not in os.environ:
        return
    if problem := no_device():
        raise device_error(problem)


def device_error(problem: str) -> UserError:
    """The error for what `no_device` says. Processes find their devices together, so a peer may be the cause."""
    import jax

    is_peer = any(status in problem for status in _PEER_STATUS)
    return (TemporaryError if is_peer and jax.distributed.is_initialized() else UserError)(problem)


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


def call_roll(group: Group, timeout: float, problem: UserError | None = None) -> None:
    """Returns when all processes of the group are there and none has a problem.

    Args:
      group: of this process.
      timeout: in seconds.
      problem: why this process cannot take part; it checks in all the same, so that the others end too.

    Raises:
      TemporaryError: after `timeout` seconds, in every process that is there, naming those that are not; or the port
        is taken.
      UserError: the processes do not fit together, or one of them has a problem.
    """
    if problem is not None:
        timeout = min(timeout, _NOTIFY)
    call = _ask if group.index == 0 else _report
    error = call(group, timeout, problem)
    if problem or error:
        raise problem or error  # type: ignore[misc]


def _open_port(group: Group) -> socket.socket:
    """Raises `UserError` where this machine forbids it, `TemporaryError` where another program has the port."""
    port = int(group.address.rpartition(":")[2])
    deadline = time.monotonic() + _PORT_FREE
    while True:
        try:
            return socket.create_server(("", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            if not taken or time.monotonic() > deadline:
                raise (TemporaryError if taken else UserError)(
                    f"coordinator_address {group.address}: port {port} cannot be opened: {error.strerror}; "
                    "JAX_COORDINATOR_PORT names another"
                ) from None
        time.sleep(_PAUSE)


def _ask(group: Group, timeout: float, problem: UserError | None) -> UserError | None:
    """Process 0's part of the roll: what went wrong, None if nothing, after having told the others."""
    there = {0: socket.gethostname()}
    misfit: UserError | None = None
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_open_port(group))
        except UserError as error:
            return error
        deadline = time.monotonic() + timeout
        connections = []
        while len(there) < group.count and not misfit:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                problem = problem or _missing(group, there, timeout)
                break
            stack.enter_context(connection)
            connection.settimeout(10)
            said = _hear(connection)
            if said is None or not isinstance(said.get("process"), int):
                continue  # no process of ours
            connections.append(connection)
            misfit = _misfit(group, there, said)
            there[said["process"]] = str(said.get("host"))
            if problem is None and said.get("problem"):
                problem = _heard(said)
        problem = misfit or problem
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
    return json.dumps(_said(problem)).encode() + b"\n"


def _said(problem: UserError | None) -> dict[str, Any]:
    """An error as JSON, which `_heard` makes an error again."""
    text = str(problem or "")[:_LONGEST_PROBLEM]
    return {"problem": text, "temporary": isinstance(problem, TemporaryError)}


def _heard(said: Mapping[str, Any]) -> UserError:
    kind = TemporaryError if said.get("temporary") else UserError
    return kind(str(said["problem"]))


def _report(group: Group, timeout: float, problem: UserError | None) -> UserError | None:
    """The part of every other process: what process 0 answers."""
    host, _, port = group.address.rpartition(":")
    deadline = time.monotonic() + timeout
    here = socket.gethostname()
    said = {"process": group.index, "count": group.count, "host": here, **_said(problem)}
    if problem is not None:
        said["problem"] = f"process {group.index} of {group.count} on {here}: {said['problem']}"
    while True:
        try:
            address = (host.strip("[]"), int(port))  # IPv6 stands in brackets
            with socket.create_connection(address, timeout=timeout) as connection:
                connection.sendall(json.dumps(said).encode() + b"\n")
                connection.settimeout(timeout + 10)  # it waits for others as long as we would
                answer = _hear(connection)
            if answer is not None:
                return _heard(answer) if answer.get("problem") else None
        except OSError:
            pass
        if time.monotonic() > deadline:
            return TemporaryError(
                f"process 0 of {group.count}, the coordinator at {group.address}, did not come up "
                f"within {timeout:.0f} s (this is process {group.index} on {here})"
            )
        time.sleep(_PAUSE)


def _hear(connection: socket.socket) -> dict[str, Any] | None:
    """One line of JSON; None where the other side says anything else."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        said = json.loads(lines.readline(_LONGEST_LINE))
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
    try:
        jax.distributed.initialize(
            coordinator_address=group.address,
            num_processes=group.count,
            process_id=group.index,
            local_device_ids=group.local_devices,
            # JAX's detection would choose other devices of a SLURM node (see `clusters`).
            cluster_detection_method="deactivate",
            initialization_timeout=int(max(1, timeout)),
        )
    except jax.errors.JaxRuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise TemporaryError(
            f"process {group.index} of {group.count}: the processes checked in, but could not connect at "
            f"{group.address}; did one end? {why}"
        ) from error
