"""The group of processes that SLURM, Open MPI, TPU pods and Kubernetes describe."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping

import pytest

from flipped_core.errors import UserError
from t5_engine import clusters
from t5_engine.clusters import Group

SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "node[08-10,12],login",
    "SLURM_NTASKS": "10",
    "SLURM_PROCID": "7",
    "SLURM_LOCALID": "1",
}
HOSTS = ("node08", "node09", "node10", "node12", "login")
NODES = SLURM | {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_ID": "0"}


def test_slurm() -> None:
    assert clusters.detected(SLURM) == Group("node08:20123", 10, 7, HOSTS, (1,))
    assert clusters.detected(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert clusters.detected({}) is None


@pytest.mark.parametrize(
    "variables, devices",
    [
        # One process per node: all GPUs of it, where JAX's own detection would take the first.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, None),
        (
            {
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "0",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            None,
        ),
        # One process per GPU, each seeing all of the node, or its own (--gpus-per-task=1, --gpu-bind).
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}, (3,)),
        (
            {
                "SLURM_NTASKS": "16",
                "SLURM_PROCID": "11",
                "SLURM_LOCALID": "3",
                "SLURM_NODEID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            (3,),
        ),
        (
            {
                "SLURM_NTASKS": "16",
                "SLURM_PROCID": "11",
                "SLURM_LOCALID": "3",
                "CUDA_VISIBLE_DEVICES": "3",
            },
            (0,),
        ),
        # Four processes of two GPUs each.
        (
            {
                "SLURM_NTASKS": "8",
                "SLURM_PROCID": "7",
                "SLURM_LOCALID": "3",
                "SLURM_NODEID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            (6, 7),
        ),
    ],
)
def test_gpus_of_a_slurm_process(
    variables: Mapping[str, str], devices: tuple[int, ...] | None
) -> None:
    found = clusters.detected(NODES | variables)
    assert found is not None and found.local_devices == devices
    assert (found.count, found.index) == (
        int(variables["SLURM_NTASKS"]),
        int(variables["SLURM_PROCID"]),
    )


def test_a_step_counts_its_own_tasks_and_has_its_own_port() -> None:
    """An interactive shell in a job of 16 tasks is one process; two steps of a job run beside each other."""
    assert clusters.detected(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    first = clusters.detected(SLURM | {"SLURM_STEP_ID": "0"})
    second = clusters.detected(SLURM | {"SLURM_STEP_ID": "1"})
    assert first is not None and second is not None and first.address != second.address


OMPI = {
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "9",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def test_open_mpi() -> None:
    group = Group("10.96.0.1:23920", 16, 9, (), (1,))
    assert clusters.detected(OMPI) == group
    assert clusters.detected(OMPI | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}) == group
    # mpirun inside a SLURM job.
    assert clusters.detected(SLURM | OMPI) == group
    ipv6 = "1531576320.0;tcp6://[fe80::1:2,2620:10d::3]:43370"
    found = clusters.detected(OMPI | {"OMPI_MCA_orte_hnp_uri": ipv6})
    assert found is not None and found.address == "[fe80::1:2]:23920"
    one_each = {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    found = clusters.detected(OMPI | one_each)
    assert found is not None and found.local_devices is None
    assert clusters.detected(OMPI | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_open_mpi_5_needs_an_address() -> None:
    five = {name: value for name, value in OMPI.items() if "hnp" not in name}
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS: expected host:port"):
        clusters.detected(five)
    found = clusters.detected(five | {"JAX_COORDINATOR_ADDRESS": "node1:5000"})
    assert found is not None and found.address == "node1:5000"


POD = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}


def test_a_tpu_pod() -> None:
    assert clusters.detected(POD) == Group("t0:8477", 2, 1, ("t0", "t1"))
    assert clusters.detected({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    several_on_a_host = {"TPU_PROCESS_ADDRESSES": "t0:8471,t0:8472,t1:8471", "TPU_WORKER_ID": "2"}
    assert clusters.detected(several_on_a_host) == Group("t0:8477", 3, 2, ("t0", "t0", "t1"))


def test_several_slices_count_all_hosts() -> None:
    megascale = {
        "MEGASCALE_NUM_SLICES": "4",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "s0-t0:8080",
    }
    assert clusters.detected(POD | megascale) == Group("s0-t0:8477", 8, 5, ("t0", "t1"), slices=4)
    # Slices of one host each.
    single = {"TPU_WORKER_HOSTNAMES": "t0", "TPU_WORKER_ID": "0"}
    assert clusters.detected(single | megascale) == Group("s0-t0:8477", 4, 2, ("t0",), slices=4)


JOBSET = {
    "JOBSET_NAME": "flipped",
    "REPLICATED_JOB_NAME": "node",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "1",
    "JOBS": "2",
    "PODS_PER_JOB": "2",
}


def test_a_job_set() -> None:
    hosts = tuple(f"flipped-node-{n}-{m}.flipped" for n in range(2) for m in range(2))
    assert clusters.detected(JOBSET) == Group(f"{hosts[0]}:8477", 4, 3, hosts, slices=2)
    # On TPUs Google Kubernetes Engine sets the pod's own variables, which count.
    assert clusters.detected(JOBSET | POD) == clusters.detected(POD)


@contextlib.contextmanager
def metadata_server(attributes: Mapping[str, str]) -> Iterator[str]:
    """Google Cloud's metadata server, on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = attributes.get(self.path.rpartition("/")[2])
            right = self.headers["Metadata-Flavor"] == "Google" and text is not None
            self.send_response(200 if right else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_tpu_machines_that_only_the_metadata_describes() -> None:
    attributes = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5p-64'\nZONE: 'us-east5-a'",
    }
    with metadata_server(attributes) as server:
        read = clusters.cloud_metadata({"GCE_METADATA_IP": server})
        assert clusters.detected({}, read) == Group("10.0.0.5:8477", 2, 1, ("10.0.0.5", "10.0.0.6"))
    attributes["tpu-env"] = (
        "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.1.5:8080'"
    )
    with metadata_server(attributes) as server:
        read = clusters.cloud_metadata({"GCE_METADATA_IP": server})
        found = clusters.detected({}, read)
    assert found == Group("10.0.1.5:8477", 4, 3, ("10.0.0.5", "10.0.0.6"), slices=2)
    silent = clusters.cloud_metadata({"GCE_METADATA_IP": "127.0.0.1:9"})
    assert clusters.detected({}, silent) is None


@pytest.mark.parametrize(
    "environment, message",
    [
        (SLURM | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS: expected a whole number, got 'two'"),
        (SLURM | {"SLURM_PROCID": "10"}, "process_id: expected 0 to 9 of 10 processes, got 10"),
        (POD | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID: expected 0 to 1 of 2 workers, got 2"),
        (POD | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0"}, "MEGASCALE_COORDINATOR"),
        (
            POD
            | {
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "a",
            },
            "MEGASCALE_SLICE_ID: expected 0 to 1 of 2 slices, got 2",
        ),
        (JOBSET | {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX: expected 0 to 1 in jobs"),
        (
            NODES
            | {
                "SLURM_LOCALID": "3",
                "SLURM_NODEID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "8,2",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            },
            "CUDA_VISIBLE_DEVICES: expected a multiple of the 8 processes of this node, got 4 GPUs",
        ),
    ],
)
def test_what_does_not_fit_together(environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        clusters.detected(environment)


@pytest.mark.parametrize(
    "names, hosts",
    [
        ("a", ["a"]),
        ("a,b7", ["a", "b7"]),
        ("n[1-2,09-11]", ["n1", "n2", "n09", "n10", "n11"]),
        ("x[1-2]-ib,y[3]", ["x1-ib", "x2-ib", "y3"]),
        ("r[1-2]n[08-09]-ib,z", ["r1n08-ib", "r1n09-ib", "r2n08-ib", "r2n09-ib", "z"]),
    ],
)
def test_slurms_short_form_of_hosts(names: str, hosts: list[str]) -> None:
    assert clusters.expand_hosts(names) == hosts


@pytest.mark.parametrize("names", ["", ",", "node[a-b]", "node[1-]", "node[1-99999999999]"])
def test_what_names_no_hosts(names: str) -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST: expected names of hosts, such as"):
        clusters.expand_hosts(names)
