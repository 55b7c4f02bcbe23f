"""Files of models on Hugging Face's hub, named as `hf://OWNER/NAME[@REVISION]`, through its client `huggingface_hub`.

`pin` asks once which commit a revision stands for; all else works with that commit, needs no server for what lies in
the client's cache (`HF_HOME`), and opens no connection with `--offline` or `HF_HUB_OFFLINE=1`. The client is imported
when a function needs it.

The client keeps nothing of a download that was killed. Large files are therefore fetched here, with the client's own
HTTP, into a partial file in its cache, from which the next attempt continues; what arrived is compared with the
SHA-256 that the hub gives, then handed to the client as one of its blobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from flipped_core.errors import UserError, nearest
from flipped_core.paths import to_path

SCHEME = "hf://"
CONFIG = "config.json"
VOCABULARY = "spiece.model"
# What is taken beside the tensors, where a repository has it; the last two are ours.
BESIDE = (CONFIG, VOCABULARY, "recipe.json", "run.json", "origin.json")
_REFERENCE = re.compile(
    r"hf://(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?/?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEFAULT = "main"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_EXTRA = "pip install 'flipped-learning[hub]'"

Fetch = Callable[[str], pathlib.Path | None]


@dataclasses.dataclass(frozen=True)
class _Reference:
    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"


def is_reference(path: object) -> bool:
    """Whether a path names a repository of the hub."""
    return str(path).startswith("hf:")


def name_of(path: str) -> str:
    """The last part of a path or reference, without its revision: a name for tables and titles."""
    if is_reference(path):
        return _parse(path).repo.rpartition("/")[2]
    return path.rstrip("/").rpartition("/")[2]


def pin(path: str | pathlib.Path, before: str | None = None) -> str:
    """The reference with the commit that its revision stands for now; any other path as it is.

    Args:
      path: a reference, or any other path.
      before: what an earlier call gave: of the same repository, it stays, unless `path` names another commit.

    Raises:
      UserError: no such repository or revision, one that is not open to the user, or no way to ask; or, offline, a
        revision that was never asked for before.
    """
    if not is_reference(path):
        return str(path)
    reference = _parse(path)
    if _COMMIT.fullmatch(reference.revision):
        return str(reference)
    if before is not None and is_reference(before) and _parse(before).repo == reference.repo:
        return before
    with _errors(reference) as client:
        if _is_offline(client):
            known = _cache(reference) / "refs" / reference.revision
            if not known.is_file():
                raise _not_cached(reference, "it is")
            commit = known.read_text().strip()
        else:
            commit = _ask_commit(reference, client)
    return str(dataclasses.replace(reference, revision=commit))


def file(path: str | pathlib.Path, name: str) -> pathlib.Path:
    """Where a small file of a repository lies, which is downloaded where it is not cached.

    Raises:
      UserError: there is none, or as in `pin`.
    """
    found = _optional(_parse(pin(path)), name)
    if found is None:
        raise UserError(f"{path}: expected {name} in the repository, there is none")
    return found


def local(path: str | pathlib.Path) -> epath.Path:
    """The folder in the client's cache with the small files (`BESIDE`) of a reference; any other path as it is."""
    if not is_reference(path):
        return to_path(path)
    reference = _parse(pin(path))
    for name in BESIDE:
        _optional(reference, name)
    return epath.Path(_snapshot(reference))


def vocabulary(path: str) -> str:
    """The SentencePiece model of a reference; any other path as it is."""
    return str(file(path, VOCABULARY)) if is_reference(path) else path


def download(path: str, find: Callable[[str, Fetch], list[pathlib.Path]]) -> list[pathlib.Path]:
    """The large files of a repository, downloaded where they are not cached.

    Args:
      path: a reference with a commit, as `pin` gives it.
      find: from the reference, and a function from a file's name to where it lies (None where there is none), to
        the files that are wanted. Only names that end in `.json` can be read before it returns.

    Raises:
      UserError: whatever `find` raises; no such file, no space for them, a connection that stays broken, or bytes
        other than the hub's; or, offline, a file that is not cached.
    """
    reference = _parse(path)
    snapshot = _snapshot(reference)

    def cached(name: str) -> pathlib.Path | None:
        return snapshot / name if (snapshot / name).is_file() else None

    with _errors(reference) as client:
        try:
            return find(path, cached)
        except UserError:
            if _is_offline(client):
                raise _not_cached(reference, "its tensors are") from None
        missing: dict[str, Any] = {}

        def located(name: str) -> pathlib.Path | None:
            if (found := cached(name)) is not None:
                return found
            if name.endswith(".json"):
                return _optional(reference, name)
            described = _describe(reference, name, client)
            if described is None:
                return None
            missing[name] = described
            return snapshot / name

        files = find(path, located)
        _refuse_little_space(reference, missing)
        for name, described in missing.items():
            _download_large(reference, name, described, client)
            client.hf_hub_download(reference.repo, name, revision=reference.revision)
    return files


def _parse(path: str | pathlib.Path) -> _Reference:
    # pathlib makes one slash of two.
    text = re.sub(r"^hf:/(?!/)", SCHEME, str(path))
    found = _REFERENCE.fullmatch(text)
    if not found or ".." in text or "--" in found["repo"]:
        raise UserError(
            f"{path}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, such as hf://bigscience/T0_3B"
        )
    return _Reference(found["repo"], found["revision"] or _DEFAULT)


def _cache(reference: _Reference) -> pathlib.Path:
    """The repository's folder in the client's cache."""
    from huggingface_hub import constants

    return pathlib.Path(constants.HF_HUB_CACHE) / f"models--{reference.repo.replace('/', '--')}"


def _snapshot(reference: _Reference) -> pathlib.Path:
    with _errors(reference):
        return _cache(reference) / "snapshots" / reference.revision


def _ask_commit(reference: _Reference, client: Any) -> str:
    """The commit, by way of the configuration; the client notes it for later, without a network."""
    try:
        found = client.hf_hub_download(reference.repo, CONFIG, revision=reference.revision)
    except client.errors.RemoteEntryNotFoundError as error:
        return error.response.headers["X-Repo-Commit"]
    return pathlib.Path(found).parent.name


def _optional(reference: _Reference, name: str) -> pathlib.Path | None:
    """A small file; None where the repository has none, or offline the cache."""
    with _errors(reference) as client:
        known = client.try_to_load_from_cache(reference.repo, name, revision=reference.revision)
        if isinstance(known, str):
            return pathlib.Path(known)
        if known is not None or _is_offline(client):
            return None
        try:
            found = client.hf_hub_download(reference.repo, name, revision=reference.revision)
        except client.errors.RemoteEntryNotFoundError:
            return None
        return pathlib.Path(found)


def _is_offline(client: Any) -> bool:
    """Whether no connection may be opened; the client itself looks at the variable only when it is imported."""
    return client.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1"


def _describe(reference: _Reference, name: str, client: Any) -> Any:
    """Size and hash of a file, from the hub; None where there is none."""
    url = client.hf_hub_url(reference.repo, name, revision=reference.revision)
    try:
        return client.get_hf_file_metadata(url)
    except client.errors.RemoteEntryNotFoundError:
        return None


def _refuse_little_space(reference: _Reference, missing: dict[str, Any]) -> None:
    blobs = _blobs(reference)
    needed = 0
    for described in missing.values():
        partial = _partial(blobs, described.etag)
        needed += (described.size or 0) - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        raise UserError(
            f"{reference}: expected {needed / 2**30:.1f} GiB free in {blobs.parents[1]}, got {free / 2**30:.1f} GiB; "
            "HF_HOME names another place"
        )


def _download_large(reference: _Reference, name: str, described: Any, client: Any) -> None:
    """Fetches a file into the client's blobs, from where the last attempt ended."""
    from huggingface_hub.file_download import http_get

    blobs = _blobs(reference)
    blob, partial = blobs / described.etag, _partial(blobs, described.etag)
    with open(partial, "ab") as content:
        fcntl.flock(content, fcntl.LOCK_EX)  # one process of a host downloads, the others wait
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        headers = {**client.utils.build_hf_headers(), "Accept-Encoding": "identity"}
        http_get(
            client.hf_hub_url(reference.repo, name, revision=reference.revision),
            content,
            resume_size=content.tell(),
            headers=headers,
            expected_size=described.size,
            displayed_filename=name,
        )
        content.flush()
        os.fsync(content.fileno())
        if _SHA256.fullmatch(described.etag):
            with open(partial, "rb") as arrived:
                if hashlib.file_digest(arrived, "sha256").hexdigest() != described.etag:
                    partial.unlink()
                    raise UserError(
                        f"{reference}: {name}: the bytes that arrived have another SHA-256 than the hub says; they "
                        "were deleted, run the same command again"
                    )
        partial.rename(blob)


def differences(files: Iterable[pathlib.Path]) -> list[str]:
    """Of files in the client's cache, those whose bytes are no longer the hub's, one line for each."""
    found = []
    for path in files:
        digest = path.resolve().name
        if _SHA256.fullmatch(digest):
            with open(path, "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                    found.append(
                        f"{path.name}: other bytes than the hub's; delete {path.resolve()}"
                    )
    return found


def _blobs(reference: _Reference) -> pathlib.Path:
    folder = _cache(reference) / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _partial(blobs: pathlib.Path, etag: str) -> pathlib.Path:
    return blobs / f"{etag}.partial.incomplete"


def _client() -> Any:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    # It logs each try again; what fails in the end raises.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


@contextlib.contextmanager
def _errors(reference: _Reference) -> Iterator[Any]:
    """The client; whatever it raises within is told in one line."""
    try:
        client = _client()
    except ImportError as error:
        raise UserError(
            f"{reference}: {error.name} is not installed; expected after {_EXTRA}"
        ) from None
    try:
        yield client
    except UserError:
        raise
    except Exception as error:
        message = _message(reference, error, client)
        if message is None:
            raise
        raise UserError(f"{reference}: {message}") from error


def _message(reference: _Reference, error: Exception, client: Any) -> str | None:
    """One line for an error of the client, of the network or of the disk; None for a bug."""
    errors = client.errors
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated: accept its terms on its page, then log in (hf auth login, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        close = nearest(reference.revision, _revisions(reference, client))
        hint = f"; nearest: {', '.join(map(repr, close))}" if close else ""
        return f"revision: expected a branch, tag or commit of {reference.repo}, got {reference.revision!r}{hint}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"no repository {reference.repo} on the hub, or none that is open to you: check the name; for a "
            "private one log in (hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and _is_offline(client)
    ):
        return str(_not_cached(reference, "it is")).partition(": ")[2]
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the disk is full: {client.constants.HF_HUB_CACHE}; HF_HOME names another place"
    if isinstance(error, PermissionError):
        return f"{error.filename}: cannot be written: {error.strerror}"
    if isinstance(error, OSError) or type(error).__module__.startswith(
        ("httpx", "httpcore", "requests", "huggingface_hub")
    ):
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        why = str(cause or error).strip().partition("\n")[0] or type(error).__name__
        return f"the hub at {client.constants.ENDPOINT} could not be read: {why}"
    return None


def _revisions(reference: _Reference, client: Any) -> list[str]:
    with contextlib.suppress(Exception):  # it is only for a hint
        refs = client.HfApi().list_repo_refs(reference.repo)
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    return []


def _not_cached(reference: _Reference, what: str) -> UserError:
    return UserError(
        f"{reference}: offline, and {what} not in the client's cache: run the command once without --offline"
    )
