"""A Google Cloud Storage stand-in on loopback: `gcp-storage-emulator` with what a real bucket adds to it.

The emulator ignores preconditions, sends no generation with downloads and cannot move objects; TensorStore, gcsfs and
our lock need all three. Requests are served one at a time, so that each is atomic, as it is in Cloud Storage.

A test can inject faults through `Emulator.faults`, and read `Emulator.requests` to learn what was asked. For tests
with several processes, run it on its own: `python tests/gcs_emulator.py BUCKET` prints its address and serves
until its standard input closes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus, server
from urllib import request
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"
_OBJECT = re.compile(
    r"^/(?:storage/v1/|download/storage/v1/)?b/([-.\w]+)/o/([^?]+?)(/moveTo/o/[^?]+|/rewriteTo/.*|/copyTo/.*)?$"
)
_LIST = re.compile(r"^/(?:storage/v1/)?b/([-.\w]+)/o$")
_UPLOAD = re.compile(r"^/(?:upload/)?storage/v1/b/([-.\w]+)/o$")

# What a fault gets: (method, path with query, number of the request from 0); it answers with an HTTP status to send
# instead of serving the request, 0 to cut the connection, or None to serve it.
Fault = Callable[[str, str, int], int | None]


@dataclasses.dataclass
class Emulator:
    """A running server.

    Attributes:
      address: such as "http://127.0.0.1:4711".
      storage: the emulator's objects, to look into.
      faults: asked before each request, in order.
      requests: "METHOD path" of each request so far.
    """

    address: str
    storage: Storage
    faults: list[Fault] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)

    def names(self, bucket: str = BUCKET) -> list[str]:
        """The names of all objects of a bucket."""
        return sorted(self.storage.objects.get(bucket, {}))

    def read(self, name: str, bucket: str = BUCKET) -> bytes:
        """The content of an object."""
        return self.storage.get_file(bucket, name)

    def write(self, name: str, content: bytes, bucket: str = BUCKET) -> None:
        """Uploads an object, as a client would."""
        url = f"{self.address}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        request.urlopen(request.Request(url, data=content, method="POST"), timeout=10).close()

    def environment(self) -> dict[str, str]:
        """The variables that point etils, gcsfs and TensorStore at this server."""
        return {
            "EPATH_USE_TF": "0",
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
            "FSSPEC_GCS_TOKEN": "anon",  # looking for credentials takes seconds
            "FSSPEC_GS_TOKEN": "anon",
        }


@contextlib.contextmanager
def running(bucket: str = BUCKET) -> Iterator[Emulator]:
    """Serves one empty bucket from memory while the context is open."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)
    storage._write_config_to_file = lambda: None  # type: ignore[method-assign]  # it would write all objects' metadata at each request
    buckets.create_bucket(bucket, storage)
    served = Emulator("", storage)
    httpd = _Server(("127.0.0.1", 0), functools.partial(_Handler, served, threading.Lock()))
    served.address = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield served
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def forget_clients() -> None:
    """Drops the cached clients of etils and fsspec, which hold the address of the server before."""
    from etils.epath import backend
    from fsspec import config
    from fsspec.spec import AbstractFileSystem
    from gcsfs import GCSFileSystem

    config.set_conf_env(config.conf)
    type(backend.fsspec_backend)._get_filesystem.cache_clear()
    for kind in (AbstractFileSystem, GCSFileSystem):
        kind.clear_instance_cache()


class _Server(server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none of a server's errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Response(emulator.Response):
    """Adds the generation to downloads."""

    def __init__(self, handler: _Handler, generation: str | None) -> None:
        super().__init__(handler)
        if generation is not None:
            self["x-goog-generation"] = generation
            self["x-goog-metageneration"] = "1"


class _Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgment

    def __init__(self, served: Emulator, lock: threading.Lock, *args: object) -> None:
        self._served, self._lock = served, lock
        self.storage = served.storage
        super().__init__(*args)  # type: ignore[arg-type]

    def _serve(self) -> None:
        with self._lock:
            number = len(self._served.requests)
            self._served.requests.append(f"{self.command} {self.path}")
            for fault in self._served.faults:
                status = fault(self.command, self.path, number)
                if status is not None:
                    self._refuse(status)
                    return
            self._answer()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

    def _refuse(self, status: int) -> None:
        emulator._read_raw_data(self)
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return
        body = b'{"error": {"code": %d, "message": "refused by the test"}}' % status
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        request = emulator.Request(self, self.command)
        name = self._object(url.path, query, request)
        generation = self._generation(*name) if name else None
        wanted = query.get("ifGenerationMatch", [None])[0]
        unwanted = query.get("ifGenerationNotMatch", [None])[0]
        if wanted is not None and wanted != (generation or "0"):
            emulator._read_raw_data(self)
            self._refuse_read(HTTPStatus.PRECONDITION_FAILED)
            return
        if unwanted is not None and unwanted == (generation or "0"):
            self._refuse_read(HTTPStatus.NOT_MODIFIED)
            return
        listed = _LIST.match(url.path)
        if listed and self.command == "GET":
            self._list(listed[1], {name: values[0] for name, values in query.items()})
            return
        moved = _OBJECT.match(url.path)
        if moved and (moved[3] or "").startswith("/moveTo/"):
            self._move(moved[1], unquote(moved[2]), unquote(moved[3].removeprefix("/moveTo/o/")))
            return
        _Router(self, request, generation if self.command == "GET" else None).handle(self.command)

    def _refuse_read(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _object(
        self, path: str, query: dict[str, list[str]], request: emulator.Request
    ) -> tuple[str, str] | None:
        """(bucket, object) that a precondition of the request is about."""
        if found := _OBJECT.match(path):
            if found[3] and (target := re.search(r"/b/([-.\w]+)/o/(.+)$", found[3])):
                return target[1], unquote(target[2])
            return found[1], unquote(found[2])
        if found := _UPLOAD.match(path):
            if "name" in query:
                return found[1], query["name"][0]
            if "upload_id" in query:
                return None
            data = request.data
            if isinstance(data, dict):
                return found[1], str(data.get("meta", data).get("name"))
        return None

    def _generation(self, bucket: str, name: str) -> str | None:
        try:
            return str(self.storage.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return None

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        """Objects and prefixes in order, in pages, between the offsets: the emulator lists all at once."""
        response = _Response(self, None)
        try:
            items, prefixes = self.storage.get_file_list(
                bucket, query.get("prefix"), query.get("delimiter"), None
            )
        except NotFound:
            response.status = HTTPStatus.NOT_FOUND
            response.json(
                {"error": {"code": 404, "message": "The specified bucket does not exist."}}
            )
            response.close()
            return
        found: dict[str, dict[str, object] | None] = {item["name"]: item for item in items}
        found.update(dict.fromkeys(prefixes))
        start, end = query.get("startOffset", ""), query.get("endOffset")
        names = [name for name in sorted(found) if name >= start and (not end or name < end)]
        begin = int(query.get("pageToken", 0))
        stop = begin + int(query.get("maxResults", 1000))
        page = names[begin:stop]
        answer: dict[str, object] = {
            "kind": "storage#objects",
            "items": [found[name] for name in page if found[name] is not None],
            "prefixes": [name for name in page if found[name] is None],
        }
        if stop < len(names):
            answer["nextPageToken"] = str(stop)
        response.json(answer)
        response.close()

    def _move(self, bucket: str, source: str, target: str) -> None:
        from gcp_storage_emulator.handlers import objects

        response = _Response(self, None)
        try:
            response.json(
                objects._copy(self._served.address, self.storage, bucket, source, bucket, target)
            )
            self.storage.delete_file(bucket, source)
        except NotFound:
            response.status = HTTPStatus.NOT_FOUND
        response.close()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Router(emulator.Router):
    """The emulator's, with a request whose body may have been read already."""

    def __init__(
        self, handler: _Handler, request: emulator.Request, generation: str | None
    ) -> None:
        super().__init__(handler)
        self._request, self._generation = request, generation

    def handle(self, method: str) -> None:
        response = _Response(self._request_handler, self._generation)
        for regex, handlers in emulator.HANDLERS:
            match = re.fullmatch(regex, self._request.path)
            if match is None:
                continue
            self._request.set_match(match)
            handler = handlers.get(method)
            if handler is None and method == "POST" and self._request.query.get("uploadType"):
                handler = emulator.objects.insert
            if handler is None:
                response.status = HTTPStatus.NOT_IMPLEMENTED
            else:
                handler(self._request, response, self._request_handler.storage)
            break
        else:
            response.status = HTTPStatus.NOT_IMPLEMENTED
        response.close()


def main() -> None:
    """Serves until standard input ends."""
    with running(*sys.argv[1:2]) as served:
        print(served.address, flush=True)
        sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
