"""Without T5X, or with the registry's jestimator: one line, or a mended import."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A finder that makes t5x (and what is named) impossible to import.
REFUSE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None
sys.meta_path.insert(0, Refuse())
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def _main(words: list[str], names: set[str]) -> subprocess.CompletedProcess[str]:
    code = f"from flipped_t5x.__main__ import main\nsys.exit(main({words!r}))"
    return _run(REFUSE.format(names=names) + code)


def test_without_t5x_one_line_names_the_installation_command() -> None:
    for missing, what in (
        ({"t5x", "jestimator"}, "T5X is not installed: "),
        ({"jestimator"}, "T5X cannot be imported (No module named 'jestimator"),
    ):
        done = _main(["train", "--gin_file=gin/t5x/train.gin"], missing)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert what in line or "T5X is not installed" in line  # where it is really not there
        assert "pip install --no-deps -r requirements-t5x.txt" in line
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("flipped_t5x/__main__.py", "eval", "--gin_file=gin/t5x/eval.gin"),
        ("benchmarks/train_step.py", "--beside", "t5x", "--sizes", "mini"),
    ],
)
def test_every_command_that_needs_t5x_says_so(command: tuple[str, ...]) -> None:
    path, *words = command
    code = f"import runpy\nsys.argv = {[path, *words]!r}\nrunpy.run_path({path!r}, run_name='__main__')"
    done = _run(REFUSE.format(names={"t5x"}) + code)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "T5X is not installed: pip install" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown program of T5X 'trian'; nearest: 'train'"),
        ([], "expected one of train, eval, infer"),
        (["--gin_file=x"], "expected one of train, eval, infer"),
    ],
)
def test_mistakes_of_the_command_are_one_line(words: list[str], expected: str) -> None:
    done = _main(words, {"t5x"})
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_the_name_that_jestimator_lacks_is_put_there_and_told(tmp_path: pathlib.Path) -> None:
    """With a stand-in that imports what jestimator 0.3.3 imports."""
    package = tmp_path / "jestimator"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "amos_helper.py").write_text("from jax.experimental.pjit import PartitionSpec\n")
    done = _run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from flipped_t5x import requirement\n"
        "requirement._mend_jestimator()\n"
        "import jax, jestimator.amos_helper as helper\n"
        "assert helper.PartitionSpec is jax.sharding.PartitionSpec\n"
    )
    assert done.returncode == 0, done.stderr
    assert "jestimator asks for jax.experimental.pjit.PartitionSpec" in done.stderr


def test_the_commits_are_those_of_the_requirements() -> None:
    from flipped_t5x.requirement import COMMITS

    text = (ROOT / "requirements-t5x.txt").read_text(encoding="utf-8")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    note = (ROOT / "docs" / "t5x.md").read_text(encoding="utf-8")
    for name, commit in COMMITS.items():
        assert f"{name} @ git+https://github.com/google" in text
        assert commit in text and commit in note and commit in setup


def test_what_t5x_would_overwrite_is_left_out() -> None:
    """Of the requirements of T5X and airio, those that bring the files of a package of ours in another version."""
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements-t5x.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    left_out = {one.name for one in parsed if one.marker and not one.marker.evaluate()}
    assert left_out == {"tensorflow-cpu", "tfds-nightly"}
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for one in parsed:
        exact = [
            pin.removeprefix(f"{one.name}==")
            for pin in pinned.split()
            if pin.startswith(f"{one.name}==")
        ]
        assert not exact or one.specifier.contains(exact[0]), f"{one} and constraints.txt differ"
