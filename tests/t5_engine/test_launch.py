"""Finding the other processes: who is missing is named, to all that are there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import socket
import subprocess
import sys

import pytest

from flipped_core.errors import UserError
from t5_engine import launch
from t5_engine.launch import Group

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def address():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def roll(groups, timeout):
    """What each of the processes is told, each played by a thread."""

    def one(group):
        try:
            launch.call_roll(group, timeout)
        except UserError as error:
            return str(error)
        return "all there"

    with concurrent.futures.ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(one, groups))


def test_all_that_come_up_find_each_other(address):
    groups = [Group(address, 4, index) for index in (2, 1, 0, 3)]
    assert roll(groups, 60) == ["all there"] * 4


def test_the_port_is_free_again_at_once(address):
    for _ in range(2):
        assert roll([Group(address, 2, index) for index in range(2)], 60) == ["all there"] * 2


def test_who_is_missing_is_named_to_all(address):
    told = roll([Group(address, 5, index) for index in (0, 1, 3)], 3)
    assert len(set(told)) == 1
    assert told[0] == f"processes 2, 4 of 5 did not come up within 3 s at the coordinator {address}"


def test_hosts_from_which_nobody_came_are_named(address):
    here = socket.gethostname()
    groups = [Group(address, 3, index, (here, "node02", "node03.cluster")) for index in (0, 1)]
    told = roll(groups, 3)
    assert "process 2 of 3 did not come up" in told[0]
    assert told[0].endswith("; no process came up on node02, node03.cluster")


def test_a_missing_coordinator_is_named(address):
    [told] = roll([Group(address, 2, 1)], 1)
    assert f"process 0 of 2, the coordinator at {address}, did not come up within 1 s" in told


def test_one_number_given_twice_names_both_hosts(address):
    told = roll([Group(address, 3, index) for index in (0, 1, 1)], 60)
    assert all("process_id: 1 was given twice" in line for line in told)


def test_different_counts_are_named(address):
    told = roll([Group(address, 3, 0), Group(address, 4, 1)], 60)
    assert all("process_count: expected 3, as process 0 has it, got 4" in line for line in told)


def test_strangers_on_the_port_are_ignored(address):
    def stranger():
        host, port = address.split(":")
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port))) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(roll, [Group(address, 2, 0)], 60)
        stranger()
        assert roll([Group(address, 2, 1)], 60) == first.result() == ["all there"]


def test_one_process_is_told_apart_without_jax():
    """So that a command's mistakes are told at once."""
    program = (
        "import sys; from t5_engine import launch; print(launch.start(), 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "node[08-10,12],login",
    "SLURM_NTASKS": "10",
    "SLURM_PROCID": "7",
    "SLURM_LOCALID": "1",
}


def test_slurm_and_tpu_pods_are_detected():
    hosts = ("node08", "node09", "node10", "node12", "login")
    assert launch.detected(SLURM) == Group("node08:20123", 10, 7, hosts)
    assert launch.detected(SLURM | {"SLURM_NTASKS": "1"}) is None
    pod = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
    assert launch.detected(pod) == Group("t0:8477", 2, 1, ("t0", "t1"))
    assert launch.detected({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    assert launch.detected({}) is None


@pytest.mark.parametrize(
    "names, hosts",
    [
        ("a", ["a"]),
        ("a,b7", ["a", "b7"]),
        ("n[1-2,09-11]", ["n1", "n2", "n09", "n10", "n11"]),
        ("x[1-2]-ib,y[3]", ["x1-ib", "x2-ib", "y3"]),
    ],
)
def test_slurms_short_form_of_hosts(names, hosts):
    assert launch.expand_hosts(names) == hosts


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"coordinator_address": "a:1"}, "process_count, process_id: expected together with"),
        ({"process_count": 2, "process_id": 0}, "coordinator_address: expected together with"),
        (
            {"coordinator_address": "a", "process_count": 2, "process_id": 0},
            "coordinator_address: expected host:port, got 'a'",
        ),
        (
            {"coordinator_address": "a:1", "process_count": 2, "process_id": 2},
            "process_id: expected 0 to 1 of 2 processes, got 2",
        ),
    ],
)
def test_flags_that_do_not_fit_together_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        launch.start(**settings)
