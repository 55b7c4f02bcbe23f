"""Odd values of every setting, from gin files, `--gin.NAME=`, options and run.json: a run or one line, within 5 s."""

from __future__ import annotations

import json
import pathlib
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import pytest
from click.testing import CliRunner
from etils import epath

from flipped_cli import gin_config
from flipped_cli.options import run_of, settings_options
from flipped_cli.runs import EvalRun, TrainRun
from flipped_core import settings
from flipped_core.errors import UserError
from flipped_eval.recipes import read_run
from t5_engine.config import T5Config

SECONDS = 5
VALUES = [
    "", " ", "0", "-0", "1", "-1", "1.5", "1e1", "1e400", "-1e400", "1e-400", "nan", "-inf", "1_000", "0x10",
    "0b1", "007", "24O", "1e-4x", "1,000", "1.", ".5", "+3", "--3", "1j", "9" * 50, "9" * 5000, "True", "true",
    "FALSE", "yes", "None", "none", "null", "...", "''", '""', "'", '"', "'a", "a'b", "'''a", "\\", "\\n",
    "a\nb", "a\n  b = 3", "a\rb", "\t", "#", "a # b", "%", "%%", "%SEED", "%MODEL_DIR", "%NOWHERE",
    "%gin.REQUIRED", "@", "@f", "@f()", "@a/b/c()", "@T5Config", "@T5Config()", "@config.T5Config()",
    "@TrainRun()", "[", "]", "[]", "()", "{}", "{", "[1", "[1, 2]", "(1, 2)", "((1, 2),)", "[(1, 2), (3, 4)]",
    "[[1], 2]", "{'a': 1}", "{'inputs': 9, 'targets': 8}", "{'inputs': 9.0, 'targets': '8'}",
    "{'inputs': -1, 'targets': 8}", "{1: 2}", "{'a': ['b']}", "{'a': 'b'}", "{[]: 1}", "{'a'}", "['a', None]",
    "['a', 1]", "[None]", "b'a'", "f'{1}'", "lambda: 1", "1 + 1", "a.b", "a.b = 3", "a=b", "=", "==", ":",
    "a:1", "import os", "include 'x'", "~", "~/a", "~nobody_here/a", "a/~/b", "/", "//", "gs://",
    "gs://bucket/a", "s3://b/a", "hf://a/b", "ftp://a", "\x00", "a\x00b", "\ud800", "é", "日本", "‮a",
    "\ufeff1", "１２", "[" * 300 + "]" * 300, "[" * 5000, "(" * 200 + "1" + ")" * 200, "-" * 1000 + "1",
    "a" * 100_000, "%s%n", "${HOME}", "$(touch x)", "adafactor", "Adam", "lineer", "bfloat16", "float16",
    "nlp14", "direct", "[%SEED]", "{'a': %SEED}", "[@f()]", "1 2", "a b",
]  # fmt: skip
JSON = [
    None, True, False, 0, -1, 1, 1.5, 4.0, 1e300, float("nan"), float("inf"), 2**31, 2**70, "", "a", "false",
    "TRUE", "4", "~x_no/a", "\x00", "a\nb", [], [1], [1, 2], [[1, 2]], [["a", 1]], ["a"], [None], {}, {"a": 1},
    {"inputs": 9, "targets": 8}, {"inputs": 9.5, "targets": 8}, {"a": ["b"]}, {"emb_dim": 3}, {"emb_dim": "3"},
    {"dtype": "float16"}, [[[[[[]]]]]], "a" * 100_000,
]  # fmt: skip


def odd(rng: random.Random) -> str:
    """One of the values, sometimes with a part cut off, doubled or put into another."""
    value = rng.choice(VALUES)
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randrange(min(len(value), 200) + 1)
        value = rng.choice(
            [
                value[at:],
                value[:at] + rng.choice(VALUES)[:50] + value[at:],
                f"[{value[:2000]}]",
                f"'{value[:2000]}'",
                f"{value[:2000]}, {rng.choice(VALUES)[:50]}",
            ]
        )
    return value


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


FILES = ("gin/models/tiny.gin", "gin/recipes/direct.gin", "gin/runs/train.gin")


def of_gin(rng: random.Random, folder: pathlib.Path) -> str:
    """A value for a macro or a field, on the command line or in a gin file."""
    cls = rng.choice([TrainRun, EvalRun])
    one = rng.choice([*settings.declared(cls).values(), *settings.declared(T5Config).values()])
    name = one.setting.macro or f"{one.owner}.{one.name}"
    if rng.random() < 0.3:
        name = f"{one.owner}.{one.name}"
    value = odd(rng)
    files = FILES if cls is TrainRun else ("gin/runs/eval.gin",)
    bindings = [("MODEL_DIR", "a"), ("VOCAB_PATH", "b")] if cls is TrainRun else [
        ("CHECKPOINT_PATH", "a"), ("EVAL_OUTPUT_DIR", "b")
    ]  # fmt: skip
    if rng.random() < 0.5:
        file = folder / "odd.gin"
        file.write_text(f"{name} = {value}\n", encoding="utf-8", errors="surrogatepass")
        files += (str(file),)
    else:
        bindings.append((name, value))
    gin_config.load(gin_config.Arguments(files, tuple(bindings)), cls)
    gin_config.make(cls)
    return name


@click.command()
@settings_options(EvalRun)
@click.pass_context
def options(context: click.Context, **given: Any) -> None:
    context.obj.append(run_of(EvalRun, given))


def of_options(rng: random.Random, folder: pathlib.Path) -> str:
    """A value for an option of `flipped eval`."""
    parameter = rng.choice([p for p in options.params if isinstance(p, click.Option)])
    words = [parameter.opts[0]] if parameter.is_flag else [f"{parameter.opts[0]}={odd(rng)}"]
    line = ["--checkpoint", "a", "--output", "b", *words]
    found: list[EvalRun] = []
    result = CliRunner().invoke(options, line, obj=found, standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, click.ClickException):
        raise result.exception
    return parameter.opts[0]


def of_run_file(rng: random.Random, folder: pathlib.Path) -> str:
    """A value in `run.json`, of training's settings or the model's."""
    one = rng.choice([*settings.declared(TrainRun).values(), *settings.declared(T5Config).values()])
    value = rng.choice([rng.choice(JSON), odd(rng)])
    if isinstance(value, str):
        value = value.replace("\ud800", "")
    recipe = {one.name: value} if one.owner != "T5Config" else {"model": {one.name: value}}
    file = folder / "run.json"
    file.write_text(json.dumps({"recipe": recipe}))
    read_run(epath.Path(file), partial=True)
    return one.name


ROUTES: list[Callable[[random.Random, pathlib.Path], str]] = [of_gin, of_options, of_run_file]


def attempt(seed: int, folder: pathlib.Path) -> bool:
    """Whether the value of a seed is taken; anything but a run or one line is an error."""
    rng = random.Random(seed)
    route = ROUTES[seed % len(ROUTES)]
    try:
        with within(SECONDS):
            route(rng, folder)
        return True
    except UserError as error:
        text = str(error)
        assert "\n" not in text and "Traceback" not in text, (seed, text)
        assert len(text) < 2000, (seed, text[:200])
        return False
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error


def fuzz(first: int, count: int, folder: pathlib.Path) -> None:
    taken = sum(attempt(seed, folder) for seed in range(first, first + count))
    print(
        f"seeds {first} to {first + count - 1}: {taken} taken, {count - taken} refused in one line"
    )
    assert 0 < taken < count


def test_odd_values(tmp_path: pathlib.Path) -> None:
    fuzz(0, 90, tmp_path)


@pytest.mark.slow
def test_two_thousand_odd_values(tmp_path: pathlib.Path) -> None:
    """python -m pytest -m slow -s tests/flipped_cli/test_settings_fuzz.py"""
    fuzz(1_000, 2_000, tmp_path)
