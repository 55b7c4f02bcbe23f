"""Files that a library can only write locally: in a temporary folder, whose files are copied to a bucket."""

from __future__ import annotations

import contextlib
import pathlib
import shutil

from etils import epath

from flipped_core.errors import UserError
from flipped_core.files import temporary_folder, write_atomically
from flipped_core.paths import explain, is_bucket

_WHOLE = 1 << 26  # bytes of a file that is copied at once


class Uploaded:
    """A folder of a user to write into: itself where it is local, else a temporary one that is copied there.

    Attributes:
      local: where to write.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Args: folder: as from `paths.to_path`."""
        self._folder = folder
        self._in_bucket = is_bucket(folder)
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of the copy
        self._stack = contextlib.ExitStack()
        if self._in_bucket:
            self.local = self._stack.enter_context(temporary_folder())
        else:
            self.local = pathlib.Path(folder)

    def upload(self) -> None:
        """Copies what has changed; does nothing for a local folder.

        Raises:
          UserError: a file cannot be copied.
        """
        if not self._in_bucket:
            return
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            state = path.stat()
            if path.is_file() and self._sent.get(name) != (state.st_size, state.st_mtime_ns):
                upload_file(path, self._folder / name)
                self._sent[name] = (state.st_size, state.st_mtime_ns)

    def close(self) -> None:
        """The last `upload`; the temporary folder goes."""
        with self._stack:
            self.upload()


def upload_file(path: pathlib.Path, target: epath.Path) -> None:
    """Copies a local file to a bucket, in parts where it is large; it appears whole.

    Raises:
      UserError: it cannot be copied.
    """
    if path.stat().st_size < _WHOLE:
        write_atomically(target, path.read_bytes())
        return
    try:
        with path.open("rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _WHOLE)
    except Exception as error:
        raise UserError(f"cannot write {target}: {explain(error)}") from error


def download_file(path: epath.Path, target: pathlib.Path) -> None:
    """Copies an object to a local file, whose folder is made where it is missing.

    Raises:
      UserError: it cannot be read or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _WHOLE)  # type: ignore[misc]
    except Exception as error:
        raise UserError(f"cannot copy {path} to {target}: {explain(error)}") from error
