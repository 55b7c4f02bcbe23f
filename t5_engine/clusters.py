"""Which group of processes this one belongs to, from what a scheduler or the cloud says of it.

JAX's own detection (`jax._src.clusters`) knows most of these places, but does not suffice: on SLURM and under Open MPI
it gives a process one GPU even where it is the only one of its node, it needs Open MPI 4 and, on Kubernetes, a client
and its permissions, and it names no process that is missing. So the group is found here, by the same variables and with
the same numbers of processes, and handed to `jax.distributed.initialize`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from flipped_core.errors import UserError, shown

CHECK_IN_PORT = 8477
_MOST_HOSTS = 2**16
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_JOBSET = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX", "PODS_PER_JOB")
_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"

Environment = Mapping[str, str]
Metadata = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Attributes:
      address: "host:port" of process 0, where the processes check in and where JAX's own service starts then.
      count: how many processes.
      index: which one this is, from 0.
      hosts: the names of the hosts, where they are known beforehand; of several slices those of this one.
      local_devices: the GPUs of this process, of those that it sees; None is all.
      slices: TPU slices, or jobs of a JobSet, of equally many processes each.
    """

    address: str
    count: int
    index: int
    hosts: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None
    slices: int = 1


def detected(environment: Environment, metadata: Metadata | None = None) -> Group | None:
    """The group that the environment describes; None where there is none, or only one process.

    Args:
      environment: such as `os.environ`.
      metadata: gives the attributes of a Google Cloud TPU VM by name; None where this is no such machine.

    Raises:
      UserError: a variable is no number, or numbers do not fit together.
    """
    if "OMPI_COMM_WORLD_SIZE" in environment and "OMPI_COMM_WORLD_RANK" in environment:
        group = _open_mpi(environment)
    elif all(name in environment for name in _SLURM):
        group = _slurm(environment)
    elif _workers(environment) and "TPU_WORKER_ID" in environment:
        group = _tpu(environment, _workers(environment), _number(environment, "TPU_WORKER_ID"))
    elif all(name in environment for name in _JOBSET):
        group = _job_set(environment)
    elif metadata is not None:
        group = _tpu_vm(environment, metadata)
    else:
        return None
    if group is None or group.count < 2:
        return None
    if not 0 <= group.index < group.count:
        raise UserError(
            f"process_id: expected 0 to {group.count - 1} of {group.count} processes, got {group.index}"
        )
    return group


def _slurm(environment: Environment) -> Group:
    """One process for each task of a step: on each node, or on each GPU."""
    hosts = expand_hosts(environment["SLURM_STEP_NODELIST"])
    # Of the step, where SLURM says it: a job's shell has the job's number of tasks and is one process all the same.
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    count, index = _number(environment, tasks), _number(environment, "SLURM_PROCID")
    local = _number(environment, "SLURM_LOCALID")
    step = environment.get("SLURM_STEP_ID", "0")
    job = _number(environment, "SLURM_JOB_ID") + 97 * (int(step) if step.isdigit() else 0)
    on_node = _tasks_on_node(environment)
    if on_node is None and count == len(hosts):
        on_node = 1
    return Group(
        _address(environment, hosts[0], 20_000 + job % 10_000),
        count,
        index,
        tuple(hosts),
        _gpus(environment, local, on_node),
    )


def _tasks_on_node(environment: Environment) -> int | None:
    """Of the step on this node, from such as "8(x2),4"; None where SLURM does not say it."""
    written, node = environment.get("SLURM_STEP_TASKS_PER_NODE"), environment.get("SLURM_NODEID")
    if written is None or node is None or not node.isdigit():
        return None
    tasks: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", written):
        tasks += [int(number)] * int(times or 1)
    return tasks[int(node)] if int(node) < len(tasks) else None


def _gpus(environment: Environment, local: int, on_node: int | None) -> tuple[int, ...] | None:
    """The share of the visible GPUs of a node's process number `local`.

    Args:
      environment: with `CUDA_VISIBLE_DEVICES` where the scheduler gives each process its GPUs.
      local: from 0, on this node.
      on_node: processes of this node; None is unknown.
    """
    if on_node == 1:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return (local,)  # one each, as JAX has it
    number = len([one for one in visible.split(",") if one.strip()])
    if number <= 1 or on_node is None:
        return (0,) if number == 1 else (local,)
    if number % on_node:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: expected a multiple of the {on_node} processes of this node, got {number} GPUs"
        )
    each = number // on_node
    return tuple(range(local * each, (local + 1) * each))


def _open_mpi(environment: Environment) -> Group | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    index = _number(environment, "OMPI_COMM_WORLD_RANK")
    if count < 2:
        return None
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    on_node = None
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        on_node = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    job = re.match(r"(\d+)\.", uri)
    host = re.search(r"tcp6?://\[?([^,\]]+?)(?:\]|,|:\d+$)", uri)
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        address = environment["JAX_COORDINATOR_ADDRESS"]
        if not re.fullmatch(r".+:\d+", address):
            raise UserError(f"JAX_COORDINATOR_ADDRESS: expected host:port, got {address!r}")
    elif job and host:
        # Where mpirun was started, which is where process 0 runs; a job's number is a multiple of 2^12.
        name = f"[{host[1]}]" if ":" in host[1] else host[1]
        address = _address(environment, name, 20_000 + int(job[1]) // 2**12 % 10_000)
    else:
        raise UserError(
            "JAX_COORDINATOR_ADDRESS: expected host:port of process 0, which this version of Open MPI does not say; "
            "got none (mpirun -x JAX_COORDINATOR_ADDRESS=host:port …)"
        )
    return Group(address, count, index, (), _gpus(environment, local, on_node))


def _workers(environment: Environment) -> list[str]:
    """The processes of this TPU slice, as JAX reads them."""
    written = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return [name for name in (written or "").split(",") if name]


def _tpu(environment: Environment, workers: list[str], worker: int) -> Group:
    """A TPU pod, of one slice or several (`MEGASCALE_*`); each has as many workers, as JAX takes it too."""
    slices, index = 1, 0
    coordinator = workers[0]
    if environment.get("MEGASCALE_NUM_SLICES"):
        slices = _number(environment, "MEGASCALE_NUM_SLICES")
        index = _number(environment, "MEGASCALE_SLICE_ID")
        coordinator = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or coordinator
        if slices > 1 and "MEGASCALE_COORDINATOR_ADDRESS" not in environment:
            raise UserError(
                f"MEGASCALE_COORDINATOR_ADDRESS: expected the host of process 0 of {slices} slices, got none"
            )
        if not 0 <= index < slices:
            raise UserError(
                f"MEGASCALE_SLICE_ID: expected 0 to {slices - 1} of {slices} slices, got {index}"
            )
    if not 0 <= worker < len(workers):
        raise UserError(
            f"TPU_WORKER_ID: expected 0 to {len(workers) - 1} of {len(workers)} workers, got {worker}"
        )
    hosts = tuple(name.rpartition(":")[0] or name for name in workers)
    host = coordinator.rpartition(":")[0] or coordinator
    return Group(
        _address(environment, host, CHECK_IN_PORT),
        slices * len(workers),
        index * len(workers) + worker,
        hosts,
        None,
        slices,
    )


def _tpu_vm(environment: Environment, metadata: Metadata) -> Group | None:
    """A TPU pod whose machines know of each other by the cloud's metadata alone."""
    endpoints, worker = metadata("worker-network-endpoints"), metadata("agent-worker-number")
    if not endpoints or worker is None:
        return None
    # Names, or name:id:address.
    workers = [part.split(":")[-1] for part in endpoints.split(",")]
    variables = re.findall(
        r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?", metadata("tpu-env") or "", re.M
    )
    found = {**dict(variables), **environment, "agent-worker-number": worker}
    return _tpu(found, workers, _number(found, "agent-worker-number"))


def _job_set(environment: Environment) -> Group:
    """A JobSet on Kubernetes, one process in each pod; launch/jobset.yaml sets the variables."""
    name, job = environment["JOBSET_NAME"], environment["REPLICATED_JOB_NAME"]
    pods = _number(environment, "PODS_PER_JOB")
    jobs = _number(environment, "JOBS") if "JOBS" in environment else 1
    job_index = _number(environment, "JOB_INDEX") if "JOB_INDEX" in environment else 0
    pod = _number(environment, "JOB_COMPLETION_INDEX")
    hosts = tuple(f"{name}-{job}-{n}-{m}.{name}" for n in range(jobs) for m in range(pods))
    if not hosts:
        raise UserError(f"PODS_PER_JOB: expected at least 1, got {pods}")
    if not (0 <= pod < pods and 0 <= job_index < jobs):
        raise UserError(
            f"JOB_COMPLETION_INDEX: expected 0 to {pods - 1} in jobs 0 to {jobs - 1}, got {pod} in job {job_index}"
        )
    return Group(
        _address(environment, hosts[0], CHECK_IN_PORT),
        len(hosts),
        job_index * pods + pod,
        hosts,
        None,
        jobs,
    )


def expand_hosts(names: str) -> list[str]:
    """SLURM's short form, such as "node[01-03,7],rack[1-2]gpu[1-4]", as single names.

    Raises:
      UserError: it is none.
    """
    hosts: list[str] = []
    for word in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", names):
        parts = re.split(r"\[([^\]]*)\]", word)  # text, numbers, text, …
        choices = [_numbers(part, names) if n % 2 else [part] for n, part in enumerate(parts)]
        hosts += map("".join, itertools.product(*choices))
    if not hosts:
        raise _no_hosts(names)
    return hosts


def _numbers(written: str, names: str) -> list[str]:
    """ "01-03,7" as single numbers."""
    numbers: list[str] = []
    for part in written.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found:
            raise _no_hosts(names)
        first, last = found[1], found[2] or found[1]
        if int(last) - int(first) > _MOST_HOSTS:
            raise _no_hosts(names)
        numbers += [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return numbers


def _no_hosts(names: str) -> UserError:
    return UserError(
        f"SLURM_STEP_NODELIST: expected names of hosts, such as node[01-03,7], got {shown(names)}"
    )


def cloud_metadata(environment: Environment, timeout: float = 5.0) -> Metadata:
    """Reads attributes of this machine from Google Cloud's metadata server; None for those that it has not."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def read(name: str) -> str | None:
        request = urllib.request.Request(
            _METADATA.format(server, name), headers={"Metadata-Flavor": "Google"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError):
            return None

    return read


def _address(environment: Environment, host: str, port: int) -> str:
    return f"{host}:{environment.get('JAX_COORDINATOR_PORT') or port}"


def _number(environment: Environment, name: str) -> int:
    written = environment.get(name)
    if written is None or not re.fullmatch(r"\d+", written.strip()):
        raise UserError(f"{name}: expected a whole number, got {written!r}")
    return int(written)
