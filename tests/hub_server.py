"""A small server on loopback that answers the requests of `huggingface_hub`'s downloads as the hub does.

Repositories are folders; what the hub's pages document is answered: `resolve` with commits, etags, sizes, ranges and
error codes, and the list of revisions.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

LARGE = 1000  # files from this size on have a SHA-256, as those in Git LFS


class Hub(http.server.ThreadingHTTPServer):
    """Attributes:
    repositories: "OWNER/NAME" -> revision -> folder of its files.
    gated: repositories whose files ask for a login.
    requests: (method, path, range header) of what was asked, in order.
    cut: file -> after so many bytes of an answer the connection breaks; once for each number.
    damage: files whose last byte arrives changed.
    declared: file -> a size other than its own, for files that are too large for a test and not asked for with GET.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, pathlib.Path]] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, list[int]] = {}
        self.damage: set[str] = set()
        self.declared: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> list[str]:
        """The names of the files of repositories that were asked for with GET."""
        asked = [path for method, path, _ in self.requests if method == "GET"]
        return [path.rpartition("/")[2] for path in asked if "/resolve/" in path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no news."""


def commit_of(folder: pathlib.Path) -> str:
    """A made-up commit: a hash of the folder's name."""
    return hashlib.sha1(folder.name.encode()).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[-1] == "refs":
            names = self.server.repositories["/".join(parts[2:4])]
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": "0"} for n in names]
            self._send(json.dumps({"branches": branches, "tags": [], "converts": []}).encode())
            return
        if parts[2:3] != ["resolve"]:  # what the client asks beside files
            self._refuse(404, "EntryNotFound")
            return
        repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        revisions = self.server.repositories.get(repository)
        if revisions is None:
            self._refuse(401, "RepoNotFound")
            return
        if repository in self.server.gated:
            self._refuse(403, "GatedRepo")
            return
        by_commit = {commit_of(folder): folder for folder in revisions.values()}
        folder = revisions.get(revision) or by_commit.get(revision)
        if folder is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit = {"X-Repo-Commit": commit_of(folder)}
        if not (folder / name).is_file():
            self._refuse(404, "EntryNotFound", commit)
            return
        content = (folder / name).read_bytes()
        kind = hashlib.sha256 if len(content) >= LARGE else hashlib.sha1
        if name in self.server.damage:
            self._send(
                content[:-1] + b"~", {**commit, "ETag": f'"{kind(content).hexdigest()}"'}, name
            )
            return
        self._send(content, {**commit, "ETag": f'"{kind(content).hexdigest()}"'}, name)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if asked else 200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        size = (
            self.server.declared.get(name, len(content)) if self.command == "HEAD" else len(content)
        )
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.server.cut.get(name)
        body = content[start:]
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A server without repositories."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path) -> None:
    """The client of this process asks `hub`, keeps what it downloads in `cache`, and is online."""
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="the extra 'hub' is not installed"
    )
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client writes in such pieces
