"""JAX's compilation cache: a start after the first one loads its programs instead of compiling them."""

from __future__ import annotations

import os
import pathlib
import sys

from flipped_core.errors import UserError
from flipped_core.paths import check_bucket, is_bucket, to_local_path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# XLA itself knows no buckets: its cache of GPU kernels would go to a folder named like the address.
_NO_XLA_CACHES = {"jax_persistent_cache_enable_xla_caches": "none"}


def keep_from_xla() -> None:
    """Lets no command make a folder `gs:` where JAX's variable names a bucket. Call it before JAX is imported."""
    if "://" in os.environ.get(VARIABLE, ""):
        os.environ.update({name.upper(): value for name, value in _NO_XLA_CACHES.items()})


def enable(folder: str | None) -> None:
    """Has JAX keep compiled programs in that folder or bucket; None leaves it to JAX's variable.

    Raises:
      UserError: the folder or bucket cannot be made or written. JAX would compile without it and only warn.
    """
    folder = folder or os.environ.get(VARIABLE)
    if not folder:
        return
    settings = {"jax_compilation_cache_dir": folder}
    if is_bucket(folder):
        check_bucket(folder, "COMPILATION_CACHE_DIR", write=True)
        settings |= _NO_XLA_CACHES
    else:
        _check_writable(to_local_path(folder, "COMPILATION_CACHE_DIR"))
    for name, value in settings.items():
        os.environ[name.upper()] = value
        if jax := sys.modules.get("jax"):  # which reads the variables when it is imported
            jax.config.update(name, value)


def _check_writable(folder: pathlib.Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(
            f"COMPILATION_CACHE_DIR: expected a folder, got {folder}: {there} is a file"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"COMPILATION_CACHE_DIR: cannot write {there}: permission denied")
