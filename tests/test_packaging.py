"""Packaging: what is shipped, what is pinned, and that no file names a machine."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _setup() -> dict[str, object]:
    """The keyword arguments of `setup(…)` that are literals."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "setup"]
    found: dict[str, object] = {}
    for keyword in call.keywords:
        try:
            found[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return found


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-")


def _tracked() -> list[pathlib.Path]:
    """The files of the project: those of git, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_metadata() -> None:
    setup = _setup()
    assert setup["python_requires"] == ">=3.11"
    assert setup["entry_points"] == {"console_scripts": ["flipped = flipped_cli.__main__:start"]}
    extras = setup["extras_require"]
    assert isinstance(extras, dict)
    assert set(extras) == {"cuda", "gcs", "hub", "plan", "t5x", "test", "tpu"}
    install = setup["install_requires"]
    assert isinstance(install, list)
    names = {_name(one) for one in install}
    # promptsource's own metadata refuses this Python; torch is for tests only.
    assert not names & {"promptsource", "torch", "transformers"}


def test_constraints_pin_all_that_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
    pinned = {_name(pin) for pin in pins}
    assert "torch" not in pinned
    setup = _setup()
    required = {*setup["install_requires"], *setup["extras_require"]["test"]}  # type: ignore[misc,index]
    assert {_name(one) for one in required} - {"torch", "setuptools"} <= pinned


def test_every_package_is_shipped() -> None:
    from setuptools import find_packages

    names = (
        "flipped_tasks", "mixtures", "t5_engine", "flipped_eval", "flipped_cli", "flipped_t5x",
    )  # fmt: skip
    found = find_packages(str(ROOT), include=[f"{n}{tail}" for n in names for tail in ("", ".*")])
    for name in names:
        for folder in {path.parent for path in (ROOT / name).rglob("*.py")}:
            assert ".".join(folder.relative_to(ROOT).parts) in found, f"{folder} has no __init__.py"


def test_no_file_names_a_machine_or_a_registry() -> None:
    """Paths of one machine and addresses of package registries work for nobody else."""
    here = str(ROOT.parent)
    banned = [r"file://", r"https?://[\w.-]*(pypi|simple|registry|artifactory|nexus)", r"index-url"]
    if len(ROOT.parts) > 2:
        banned.append(re.escape(here) + r"/\w")
    pattern = re.compile("|".join(banned), re.IGNORECASE)
    wrong = []
    for path in _tracked():
        if path == pathlib.Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {found[0]}")
    assert not wrong, "\n".join(wrong)


def test_tools_are_configured() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"ruff", "mypy", "pytest"} <= set(config["tool"])
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
