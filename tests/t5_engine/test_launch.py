"""Finding the other processes: who is missing is named, to all that are there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from flipped_core.errors import TemporaryError, UserError
from t5_engine import launch
from t5_engine.launch import Group

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def address():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def roll(groups, timeout, expected=UserError):
    """What each of the processes is told, each played by a thread; fails on an error of another kind."""

    def one(group):
        try:
            launch.call_roll(group, timeout)
        except UserError as error:
            assert type(error) is expected
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
    told = roll([Group(address, 5, index) for index in (0, 1, 3)], 3, TemporaryError)
    assert len(set(told)) == 1
    assert told[0] == f"processes 2, 4 of 5 did not come up within 3 s at the coordinator {address}"


def test_hosts_from_which_nobody_came_are_named(address):
    here = socket.gethostname()
    groups = [Group(address, 3, index, (here, "node02", "node03.cluster")) for index in (0, 1)]
    told = roll(groups, 3, TemporaryError)
    assert "process 2 of 3 did not come up" in told[0]
    assert told[0].endswith("; no process came up on node02, node03.cluster")


def test_a_missing_coordinator_is_named(address):
    [told] = roll([Group(address, 2, 1)], 1, TemporaryError)
    assert f"process 0 of 2, the coordinator at {address}, did not come up within 1 s" in told


def test_one_number_given_twice_names_both_hosts(address):
    told = roll([Group(address, 3, index) for index in (0, 1, 1)], 60)
    assert all("process_id: 1 was given twice" in line for line in told)


def test_different_counts_are_named(address):
    told = roll([Group(address, 3, 0), Group(address, 4, 1)], 60)
    assert all("process_count: expected 3, as process 0 has it, got 4" in line for line in told)


def test_a_mistake_of_one_process_is_that_of_all(address, monkeypatch):
    """Each checks in, so that none waits; the one with the mistake raises its own words."""

    def start(index):
        def check():
            if index == wrong:
                raise UserError("vocab_path: none at v.model")

        try:
            launch.start(address, 3, index, 60, check)
        except UserError as error:
            return type(error), str(error)
        return "joined"

    monkeypatch.setattr(launch, "_initialize", lambda *_: None)
    for wrong in (0, 2):
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            told = list(pool.map(start, range(3)))
        assert {kind for kind, _ in told} == {UserError}
        words = told.pop(wrong)[1]
        assert words == "vocab_path: none at v.model"
        assert len(set(told)) == 1 and told[0][1].endswith(f": {words}" if wrong else words)
        assert ("process 2 of 3 on " in told[0][1]) is bool(wrong)
    wrong = None
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(start, range(3))) == ["joined"] * 3


def test_a_mistake_is_raised_where_nobody_else_comes(address, monkeypatch):
    monkeypatch.setattr(launch, "_NOTIFY", 0.5)
    for index in (0, 1):
        with pytest.raises(UserError, match="^wrong$") as error:
            launch.call_roll(Group(address, 2, index), 300, UserError("wrong"))
        assert type(error.value) is UserError


def test_a_port_of_an_earlier_attempt_is_waited_for(address, monkeypatch):
    """And one that stays taken is another program's, which may end: not a mistake."""
    port = int(address.rpartition(":")[2])
    with socket.create_server(("", port)):
        monkeypatch.setattr(launch, "_PORT_FREE", 0.5)
        with pytest.raises(TemporaryError, match=f"port {port} cannot be opened: .*in use"):
            launch.call_roll(Group(address, 2, 0), 60)
        monkeypatch.setattr(launch, "_PORT_FREE", 60)
        pool = concurrent.futures.ThreadPoolExecutor(1)
        first = pool.submit(roll, [Group(address, 2, 0)], 60)
        time.sleep(0.5)
    assert roll([Group(address, 2, 1)], 60) == first.result() == ["all there"]


def test_a_peer_that_ends_is_no_mistake(monkeypatch):
    """Processes find GPUs and TPUs together: without devices one of them may have ended, or there are none."""
    import jax

    def fails(**_):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\n1/2 tasks")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(TemporaryError, match="process 1 of 2: .* did one end.*DEADLINE_EXCEEDED"):
        launch._initialize(1, Group("127.0.0.1:9", 2, 1))
    for joined, status, kind in (
        (True, "DEADLINE_EXCEEDED: no topology of process 1", TemporaryError),
        (True, "no GPU found", UserError),
        (False, "DEADLINE_EXCEEDED: no topology of process 1", UserError),
    ):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda joined=joined: joined)
        assert type(launch.device_error(status)) is kind


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


def test_the_slices_of_missing_processes_are_named(address):
    groups = [Group(address, 4, index, slices=2) for index in (0, 1, 2)]
    told = roll(groups, 3, TemporaryError)
    assert all(line.startswith("process 3 (slice 1) of 4 did not come up") for line in told)


def test_an_address_alone_needs_a_scheduler(monkeypatch):
    """Open MPI 5 knows numbers, but not where process 0 is."""
    with pytest.raises(UserError, match="process_count, process_id: expected together with"):
        launch.start("host0:1234")
    for name, value in {"SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    monkeypatch.setattr(launch, "call_roll", lambda group, *_: joined.append(group))
    monkeypatch.setattr(launch, "_initialize", lambda timeout, group: joined.append(group))
    joined: list[Group] = []
    assert launch.start("host0:1234") is True
    assert joined == [Group("host0:1234", 2, 1)] * 2


def test_what_jax_is_given(monkeypatch):
    """Its own detection is off: it would give the one process of a SLURM node one of eight GPUs."""
    import jax

    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: given.update(settings))
    launch._initialize(60, Group("node1:20123", 16, 9, local_devices=(1,)))
    assert given["coordinator_address"] == "node1:20123" and given["local_device_ids"] == (1,)
    assert (given["num_processes"], given["process_id"]) == (16, 9)
    assert given["cluster_detection_method"] == "deactivate"
