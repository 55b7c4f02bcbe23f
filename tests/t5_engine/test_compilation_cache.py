"""Compiled programs are kept where the macro says, and a place that cannot hold them is refused."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from flipped_core.errors import UserError
from t5_engine import compilation_cache
from tests.gcs_emulator import Emulator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from t5_engine import compilation_cache
compilation_cache.enable(sys.argv[1])
import jax, logging
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_explain_cache_misses", True)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x * 2 + 1)(3.0)
print("/jax/compilation_cache/cache_hits" in hits)
"""


def test_a_second_start_loads_what_the_first_compiled(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "cache"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said == ["False\n", "True\n"] and any(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="COMPILATION_CACHE_DIR: expected a folder, got .* is a file"
    ):
        compilation_cache.enable(str(tmp_path / "file" / "cache"))


def test_a_bucket_leaves_no_local_folder_to_xla(
    gcs: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    set_to: dict[str, str] = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_to.update({name: value}))
    variables = {**os.environ, "JAX_COMPILATION_CACHE_DIR": "gs://bucket/xla"}
    monkeypatch.setattr(os, "environ", variables)
    compilation_cache.enable(None)
    assert set_to == {
        "jax_compilation_cache_dir": "gs://bucket/xla",
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    variables["JAX_COMPILATION_CACHE_DIR"] = "gs://absent/xla"
    with pytest.raises(UserError, match="COMPILATION_CACHE_DIR: there is no bucket gs://absent"):
        compilation_cache.enable(None)


def test_the_variable_alone_leaves_no_local_folder_to_xla_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the commands that have no macro; `errors.begin` calls it in all."""
    for folder, expected in (("gs://bucket/xla", "none"), ("xla", None)):
        monkeypatch.setattr(os, "environ", {"JAX_COMPILATION_CACHE_DIR": folder})
        compilation_cache.keep_from_xla()
        assert os.environ.get("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES") == expected
