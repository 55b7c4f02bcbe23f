"""The arrows between the packages point one way, and the engine runs where TensorFlow is not."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = {
    "flipped_tasks",
    "flipped_world",
    "mixtures",
    "t5_engine",
    "flipped_eval",
    "flipped_cli",
    "flipped_t5x",
}

# Package -> which of our packages it may import (flipped_core may be imported by all).
MAY_IMPORT_OURS = {
    "flipped_core": set(),
    # Files and their paths only.
    "flipped_world": set(),
    "flipped_tasks": set(),
    "mixtures": {"flipped_tasks"},
    "t5_engine": set(),
    # The tasks' templates, texts and rows come from flipped_tasks, which mixtures stands on.
    "flipped_eval": {"mixtures", "t5_engine", "flipped_tasks"},
    "flipped_cli": {"flipped_tasks", "flipped_world", "mixtures", "t5_engine", "flipped_eval"},
    # The bridge asks T5X about the very cases that our evaluation makes, looks into checkpoints with the engine's
    # reader and tells mistakes in gin as the commands do.
    "flipped_t5x": {"mixtures", "flipped_tasks", "flipped_eval", "t5_engine", "flipped_cli"},
}
# Package -> outside packages that it must not import.
MUST_NOT_IMPORT = {
    "flipped_core": {"jax", "numpy", "seqio", "tensorflow", "gin", "torch"},
    "flipped_tasks": {"jax", "flax", "optax", "orbax", "gin", "torch", "promptsource", "t5x"},
    "mixtures": {"jax", "flax", "optax", "orbax", "gin", "torch", "promptsource", "t5x"},
    "t5_engine": {
        "clu",
        "gin",
        "promptsource",
        "seqio",
        "t5x",
        "tensorflow",
        "tensorflow_datasets",
        "tensorflow_text",
        "torch",
        "transformers",
    },
    "flipped_eval": {"gin", "promptsource", "seqio", "t5x", "tensorflow", "torch", "transformers"},
    "flipped_cli": {"promptsource", "t5x", "torch", "transformers"},
    "flipped_t5x": {"gin", "optax", "orbax", "promptsource", "torch", "transformers"},
}


def _modules(package: str) -> list[pathlib.Path]:
    folder = ROOT / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{package}.py"]


def _imported(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of each import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


@pytest.mark.parametrize("package", sorted(MAY_IMPORT_OURS))
def test_imports_point_one_way(package: str) -> None:
    files = _modules(package)
    assert files and all(file.exists() for file in files), f"{package} is missing"
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for name, line in _imported(file)
        if (name in OURS and name != package and name not in MAY_IMPORT_OURS[package])
        or name in MUST_NOT_IMPORT.get(package, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_forbidden_import_is_seen(tmp_path: pathlib.Path) -> None:
    """The test above can fail: it sees imports at the top, with an alias, and inside a function."""
    file = tmp_path / "module.py"
    file.write_text(
        "import seqio as s\nfrom gin import config\ndef f():\n    import tensorflow.io\n"
    )
    assert [name for name, _ in _imported(file)] == ["seqio", "gin", "tensorflow"]


def test_gin_folder_is_no_package() -> None:
    """An `__init__.py` there would shadow gin-config for whoever runs from the checkout."""
    assert not list((ROOT / "gin").rglob("*.py"))


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )


def test_engine_imports_where_tensorflow_raises() -> None:
    """All modules of t5_engine import beside a `tensorflow` that raises when it is touched."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in _modules("t5_engine")
        if path.name != "__init__.py"
    ]
    code = f"""
    import importlib, importlib.abc, sys

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            banned = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin")
            if name.partition(".")[0] in banned:
                raise RuntimeError(f"the engine imported {{name}}")
            return None

    sys.meta_path.insert(0, Refuse())
    for name in {names!r}:
        importlib.import_module(name)
    """
    result = _run(code)
    assert result.returncode == 0, result.stderr


def test_help_imports_nothing_heavy() -> None:
    """`flipped --help` must answer at once, so none of the heavy packages may be imported for it."""
    code = """
    import sys
    from flipped_cli.main import main
    try:
        main(["--help"], prog_name="flipped")
    except SystemExit as end:
        assert end.code == 0, end.code
    heavy = {"jax", "flax", "tensorflow", "seqio", "numpy", "yaml", "jinja2", "rich", "gin"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
    sys.exit(bool(heavy & set(sys.modules)))
    """
    result = _run(code)
    assert result.returncode == 0, result.stderr
    assert "tasks" in result.stdout


def test_rows_rendering_lint_and_evaluation_do_without_tensorflow() -> None:
    """TensorFlow takes seconds to load: what reads rows from files and needs no pipeline must not wait for it."""
    code = """
    import importlib.abc, sys

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "seqio"):
                raise RuntimeError(f"imported {name}")
            return None

    sys.meta_path.insert(0, Refuse())
    import flipped_eval.jobs
    from click.testing import CliRunner
    from flipped_cli.main import main
    for words in (
        ["tasks", "list"],
        ["tasks", "lint", "super_glue/rte"],
        ["tasks", "render", "--module", "examples/own_dataset/kettle_tasks.py", "--dataset", "kettles", "--all"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    """
    result = _run(code)
    assert result.returncode == 0, result.stderr
