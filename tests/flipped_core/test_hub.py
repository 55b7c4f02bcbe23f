"""`hf://` with the hub's real client and a server on loopback: what is asked, kept, resumed and refused."""

from __future__ import annotations

import builtins
import errno
import hashlib
import importlib
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flipped_core import hub
from flipped_core.errors import UserError
from tests import hub_server

client = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
for module in ("constants", "file_download", "utils._http"):
    importlib.import_module(f"huggingface_hub.{module}")
NAME = "hf://someone/model"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[hub_server.Hub]:
    """A repository with a large file in two branches; the client's cache is empty."""
    for branch, content in (("main", b"1"), ("older", b"0")):
        folder = tmp_path / "repositories" / branch
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes(b'{"v": %s}' % content)
        (folder / "spiece.model").write_bytes(content * 2000)
        (folder / "pytorch_model.bin").write_bytes(random.Random(content).randbytes(300_000))
        (folder / "README.md").write_bytes(b"never asked for")
    with hub_server.running() as running:
        folders = tmp_path / "repositories"
        running.repositories["someone/model"] = {
            "main": folders / "main",
            "older": folders / "older",
        }
        hub_server.use(running, monkeypatch, tmp_path / "cache")
        yield running


def offline(monkeypatch: pytest.MonkeyPatch, value: bool = True) -> None:
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", value)


def find(path: str, fetch: hub.Fetch) -> list[pathlib.Path]:
    """The first of two names, as `t5_engine.tensor_files` looks for several."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (file := fetch(name)) is not None:
            return [file]
    raise UserError(f"{path}: no tensors")


def commit(server: hub_server.Hub, branch: str = "main") -> str:
    return hub_server.commit_of(server.repositories["someone/model"][branch])


def refused(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_a_revision_is_pinned_to_its_commit(server: hub_server.Hub):
    assert hub.pin(NAME) == f"{NAME}@{commit(server)}"
    assert hub.pin(f"{NAME}@older") == f"{NAME}@{commit(server, 'older')}"
    pinned = hub.pin(f"{NAME}/")
    asked = len(server.requests)
    assert hub.pin(pinned) == pinned and len(server.requests) == asked
    assert hub.pin("runs/direct") == "runs/direct"
    assert (
        hub.pin(pathlib.Path("hf://someone/model")) == pinned
    )  # which pathlib writes with one slash
    assert hub.name_of(pinned) == "model" and hub.name_of("runs/direct/") == "direct"


def test_only_what_is_needed_is_downloaded_and_once(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
):
    pinned = hub.pin(NAME)
    folder = hub.local(pinned)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "spiece.model"]
    (file,) = hub.download(pinned, find)
    source = server.repositories["someone/model"]["main"]
    assert file.parent == folder
    assert file.read_bytes() == (source / "pytorch_model.bin").read_bytes()
    assert sorted(server.downloaded()) == ["config.json", "pytorch_model.bin", "spiece.model"]
    asked = len(server.requests)
    for is_offline in (False, True):
        offline(monkeypatch, is_offline)
        assert hub.local(pinned) == folder and hub.download(pinned, find) == [file]
    assert len(server.requests) == asked
    assert hub.pin(NAME) == pinned  # offline, by the client's own note
    blobs = file.resolve().parent
    assert not list(blobs.glob("*incomplete"))


def test_the_vocabulary_alone(server: hub_server.Hub):
    found = hub.vocabulary(NAME)
    assert pathlib.Path(found).read_bytes() == b"1" * 2000
    assert "pytorch_model.bin" not in server.downloaded()
    assert hub.vocabulary("some/spiece.model") == "some/spiece.model"


def test_a_broken_connection_resumes(server: hub_server.Hub):
    """Within one attempt: the client asks for the rest."""
    server.cut["pytorch_model.bin"] = [100_000, 50_000]
    (file,) = hub.download(hub.pin(NAME), find)
    source = server.repositories["someone/model"]["main"] / "pytorch_model.bin"
    assert file.read_bytes() == source.read_bytes()
    ranges = [r for method, path, r in server.requests if path.endswith(".bin") and method == "GET"]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_download_that_was_killed_resumes(server: hub_server.Hub, tmp_path: pathlib.Path):
    """In a process of its own, which ends in the middle of the file."""
    server.cut["pytorch_model.bin"] = [120_000]
    pinned = hub.pin(NAME)
    if (child := os.fork()) == 0:
        try:
            client.file_download.time.sleep = lambda seconds: os._exit(9)
            hub.download(pinned, find)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (partial,) = (tmp_path / "cache").rglob("*.partial.incomplete")
    kept = partial.stat().st_size
    assert 0 < kept <= 120_000
    asked = len(server.requests)
    (file,) = hub.download(pinned, find)
    source = server.repositories["someone/model"]["main"] / "pytorch_model.bin"
    assert file.read_bytes() == source.read_bytes()
    assert f"bytes={kept}-" in [r for _, _, r in server.requests[asked:]]
    assert not partial.exists()


def test_bytes_other_than_the_hubs_are_refused_and_deleted(
    server: hub_server.Hub, tmp_path: pathlib.Path
):
    server.damage.add("pytorch_model.bin")
    refused(
        lambda: hub.download(hub.pin(NAME), find), "another SHA-256 than the hub says; they were"
    )
    assert not list((tmp_path / "cache").rglob("*incomplete"))
    server.damage.clear()
    (file,) = hub.download(hub.pin(NAME), find)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.resolve().name == digest


def test_what_is_not_open_or_not_there_is_one_line(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    missing = "no repository someone/other on the hub, or none that is open to you"
    refused(lambda: hub.pin("hf://someone/other"), missing)
    refused(
        lambda: hub.pin(f"{NAME}@oldr"),
        "revision: expected a branch, tag or commit of someone/model, got 'oldr'; nearest: 'older'",
    )
    refused(lambda: hub.local(f"{NAME}@{'ab' * 20}"), "revision: expected .*, got 'abab")
    refused(lambda: hub.file(NAME, "nothing"), "expected nothing in the repository, there is none")
    server.repositories["someone/gated"] = server.repositories["someone/model"]
    server.gated.add("someone/gated")
    refused(lambda: hub.pin("hf://someone/gated"), "the repository is gated: accept its terms")
    for name in (
        "hf://model",
        "hf://a/b/c",
        "hf://a/b@",
        "hf://a/../b",
        "hf:/a",
        "hf://a/b@x/../y",
    ):
        refused(
            lambda name=name: hub.pin(name), "expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    assert not (tmp_path / "cache" / "models--someone--other").exists()
    offline(monkeypatch)
    shutil.rmtree(tmp_path / "cache")
    refused(
        lambda: hub.pin(NAME), "offline, and it is not in the client's cache: .* without --offline"
    )
    offline(monkeypatch, False)
    pinned = hub.pin(NAME)
    offline(monkeypatch)
    refused(lambda: hub.download(pinned, find), "offline, and its tensors are not in the client's")


def test_a_server_that_does_not_answer_is_one_line(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
):
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(client.constants, "ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(client.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client.utils._http.time, "sleep", lambda seconds: None)
    refused(lambda: hub.pin(NAME), "the hub at http://127.0.0.1:9 could not be read")


def test_a_full_disk_is_one_line(
    server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    """Before anything is downloaded where that can be known, else when it fills up."""
    pinned = hub.pin(NAME)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        refused(
            lambda: hub.download(pinned, find), "expected 0.0 GiB free in .*, got 0.0 GiB; HF_HOME"
        )
    assert "pytorch_model.bin" not in server.downloaded()

    def full(*args: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(client.file_download, "http_get", full)
        refused(
            lambda: hub.download(pinned, find), "the disk is full: .*; HF_HOME names another place"
        )
    assert hub.download(pinned, find)


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def missing(name: str, *rest: Any, **settings: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")
        return real(name, *rest, **settings)

    monkeypatch.setattr(builtins, "__import__", missing)
    expected = (
        r"huggingface_hub is not installed; expected after pip install 'flipped-learning\[hub\]'"
    )
    for act in (hub.pin, hub.local, hub.vocabulary):
        refused(lambda act=act: act(NAME), expected)
