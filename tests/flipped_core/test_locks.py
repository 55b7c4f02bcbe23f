"""One owner per folder: on a disk, and over a stand-in for a bucket with conditional writes."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorstore

from flipped_core import locks
from flipped_core.bucket import BucketStore
from flipped_core.errors import UserError
from flipped_core.owners import Owner

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Holds a folder until it is killed.
HOLDER = """
import sys, time
from flipped_core import locks
with locks.hold(sys.argv[1], "MODEL_DIR"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "memory", "bucket"])
def store(request, tmp_path):
    """Makes stores of one and the same lock, as several processes would."""
    if request.param == "disk":
        return lambda: locks.LocalStore(tmp_path / "run")
    if request.param == "bucket":
        request.getfixturevalue("gcs")
        return lambda: locks.open_store("gs://bucket/run")
    kvstore = tensorstore.KvStore.open("memory://run/").result()
    return lambda: BucketStore(kvstore, "gs://bucket/run/.lock")


def hold(folder: pathlib.Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def leave(store, **changes) -> None:
    """A lock of another process: of another machine, unless `changes` say more."""
    owner = {**dataclasses.asdict(Owner.current()), "host": "elsewhere", "pid": 17, **changes}
    record = {"renewed": time.time(), "number": "x", **owner}
    one = store()
    assert one.swap(one.read()[1], json.dumps(record).encode()) is not None


def test_swaps_compare_first(store) -> None:
    one, two = store(), store()
    content, absent = one.read()
    assert content == b""
    first = one.swap(absent, b"a")
    assert first is not None
    assert two.swap(absent, b"b") is None and two.read() == (b"a", first)
    second = two.swap(first, b"b")
    assert second is not None and one.swap(first, b"c") is None
    assert one.swap(first, b"") is None and one.read() == (b"b", second)
    assert one.swap(second, b"") is not None
    assert two.read()[0] == b""
    assert two.swap(second, b"d") is None, "what was removed is not there any more"


def test_the_second_is_refused_until_the_first_leaves(store) -> None:
    first = locks.acquire(store(), "MODEL_DIR run")
    with pytest.raises(UserError, match="MODEL_DIR run is in use by this very process"):
        locks.acquire(store(), "MODEL_DIR run")
    first.check()
    first.release()
    locks.acquire(store(), "MODEL_DIR run").release()
    assert store().read()[0] == b""


def test_a_silent_owner_elsewhere_is_taken_over_and_finds_out(store, monkeypatch) -> None:
    told: list[str] = []
    first = locks.acquire(store(), "run", told.append)
    monkeypatch.setattr(Owner, "is_alive", lambda self: None)  # as another machine sees it
    refused = f"run is in use by process {os.getpid()} on .*, started 20.*; it gave a sign of life 0 s ago"
    monkeypatch.setattr(
        Owner, "current", classmethod(lambda cls: dataclasses.replace(first._record.owner, pid=1))
    )
    with pytest.raises(UserError, match=refused):
        locks.acquire(store(), "run", told.append)
    assert not told
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + locks.STALE + 1)
    second = locks.acquire(store(), "run", told.append)
    assert (
        len(told) == 1
        and "run is taken over from process" in told[0]
        and "last heard of 91 s ago" in told[0]
    )
    with pytest.raises(UserError, match="run now belongs to another process"):
        first.check()
    first.release()
    second.check()
    assert store().read()[0], "the first one's release leaves the second one's lock alone"
    second.release()


def test_an_owner_that_renews_is_not_stale(store, monkeypatch) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.02)
    lock = locks.acquire(store(), "run")
    before = json.loads(store().read()[0])["renewed"]
    deadline = time.monotonic() + 10
    while json.loads(store().read()[0])["renewed"] == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(store().read()[0])["renewed"] > before
    lock.check()
    lock.release()


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"pid": "x"}', b"\xff\xfe", b"null", b"[" * 1000]
)
def test_what_is_no_lock_does_not_count(store, content) -> None:
    one = store()
    assert one.swap(one.read()[1], content) is not None
    locks.acquire(store(), "run").release()


@pytest.mark.parametrize(
    "damage",
    [
        {"started": float("inf")},
        {"started": 1e300},
        {"started": -1e12},
        {"renewed": float("nan")},
        {"renewed": 1e300},
        {"renewed": 10**400},
        {"renewed": "1"},
        {"pid": 10**200},
        {"host": "\ud83d"},
    ],
)
def test_a_damaged_lock_does_not_count_nor_hold_the_folder_for_ever(store, damage) -> None:
    leave(store, **damage)
    lock = locks.acquire(store(), "run")
    lock.check()  # it is the owner's now
    lock.release()
    content, _ = store().read()
    assert content == b""


class _Together:
    """A store whose first read waits for those of the others."""

    def __init__(self, inner, barrier: threading.Barrier) -> None:
        self._inner, self._barrier, self._waited = inner, barrier, False

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def read(self):
        found = self._inner.read()
        if not self._waited:
            self._waited = True
            self._barrier.wait()
        return found


def test_of_many_take_overs_one_wins(store) -> None:
    """Also when each has found the stale lock before any of them has replaced it."""
    won: list[locks.Lock] = []
    lost: list[str] = []

    def take(barrier: threading.Barrier) -> None:
        try:
            won.append(locks.acquire(_Together(store(), barrier), "run", lambda line: None))
        except UserError as error:
            lost.append(str(error))

    for _ in range(20):
        won.clear()
        lost.clear()
        leave(store, renewed=time.time() - 1e4)
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=take, args=(barrier,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == 7, lost
        won[0].release()


def test_processes_on_one_disk(tmp_path) -> None:
    folder = tmp_path / "new" / "run"
    process = hold(folder)
    with pytest.raises(
        UserError,
        match=f"MODEL_DIR .* is in use by process {process.pid} on .*; wait for it, or end",
    ):
        with locks.hold(folder, "MODEL_DIR"):
            pass
    process.send_signal(signal.SIGSTOP)  # suspended is not dead
    with pytest.raises(UserError, match="in use"):
        with locks.hold(folder, "MODEL_DIR"):
            pass
    process.kill()
    deadline = time.monotonic() + 10
    while state_of(process.pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    told: list[str] = []
    with locks.hold(folder, "MODEL_DIR", told.append):  # a zombie is dead
        assert told == [
            t
            for t in told
            if f"taken over from process {process.pid}" in t and "no longer running" in t
        ]
        assert len(told) == 1 and [path.name for path in folder.iterdir()] == [locks.FILE]
    process.communicate()
    assert list(folder.iterdir()) == []


def state_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path) -> None:
    with locks.hold(tmp_path / "a" / "b", "MODEL_DIR"):
        assert (tmp_path / "a" / "b" / locks.FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with locks.hold(tmp_path / "a" / "b", "MODEL_DIR"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_the_number_of_a_dead_process_may_come_again(store) -> None:
    """The start time tells a process from an older one with its number."""
    current = Owner.current()
    leave(store, **{**dataclasses.asdict(current), "ticks": current.ticks - 100})
    told: list[str] = []
    locks.acquire(store(), "run", told.append).release()
    assert "no longer running" in told[0]


def test_a_process_of_another_container_is_not_taken_for_dead(store) -> None:
    """Its number means nothing here, though its host's name may be the same."""
    leave(
        store,
        **{**dataclasses.asdict(Owner.current()), "scope": "another boot", "pid": 999_999_999},
    )
    with pytest.raises(UserError, match="is in use by process 999999999"):
        locks.acquire(store(), "run")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/run/.lock: Not a directory"):
        with locks.hold(tmp_path / "file" / "run", "MODEL_DIR"):
            pass


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/absent/folder/file"),
        os.mkfifo,
    ],
)
def test_something_else_in_the_lock_s_place_is_one_line(tmp_path, make) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(UserError, match="cannot write .*/.lock: "):
        with locks.hold(tmp_path, "MODEL_DIR"):
            pass


def test_an_unknown_kind_of_bucket_is_named() -> None:
    with pytest.raises(
        UserError, match="expected a local path or gs://BUCKET/NAME, got 'ftp://x/y'"
    ):
        locks.open_store("ftp://x/y")


def test_many_processes_enter_one_at_a_time(tmp_path) -> None:
    """Each appends "in" and "out" while it has the folder: they alternate."""
    code = """
import sys, time, pathlib
from flipped_core import locks
from flipped_core.errors import UserError
folder, entered = pathlib.Path(sys.argv[1]), 0
while entered < 5:
    try:
        with locks.hold(folder / "run", "run"):
            with (folder / "log").open("a") as log:
                log.write("in\\n"); log.flush(); time.sleep(0.002); log.write("out\\n")
            entered += 1
    except UserError:
        time.sleep(0.001)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    words = (tmp_path / "log").read_text().split()
    assert words == ["in", "out"] * 20, collections.Counter(words)
