"""Reads gin files and `--gin.NAME=VALUE` bindings; every mistake in them becomes one line.

The files use gin's dynamic registration: a file imports what it binds, so the functions and classes
that are configured need no decorator and the engine knows nothing of gin. A name in capitals is a
macro (`TRAIN_STEPS`), as in T5X; anything else is `function.parameter` (`train.steps`).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import logging
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gin
from gin import config as gin_internals

from flipped_cli import offline
from flipped_core.errors import UserError, nearest, unknown

PROJECT_DIR = pathlib.Path(__file__).resolve().parents[1]
_FLAGS = ("--gin_file", "--data_dir", "--gin.NAME", "--offline", "--help")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What stands on the command line: the gin files, and (name, value) pairs in their order."""

    gin_files: tuple[str, ...]
    bindings: tuple[tuple[str, str], ...]


def parse_arguments(words: Sequence[str], usage: str) -> Arguments:
    """Reads `--gin_file=F … --gin.NAME=VALUE … --data_dir=D [--offline]`; `--data_dir` binds DATA_DIR.

    Args:
      words: the command line without the program's name; `--flag VALUE` is accepted too.
      usage: printed by `--help`, which then leaves the program.
    """
    files: list[str] = []
    bindings: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--help", "-h"):
            print(usage.strip())
            raise SystemExit(0)
        if word == "--offline":
            offline.go_offline()
            continue
        name, equals, value = word.partition("=")
        if name not in ("--gin_file", "--data_dir") and not name.startswith("--gin."):
            if not name.startswith("-"):
                raise UserError(f"unexpected argument {word!r}; a gin file is --gin_file={word}")
            raise unknown("flag", name, _FLAGS)
        if not equals:
            if not rest:
                raise UserError(f"flag {name} needs a value: {name}=…")
            value = rest.pop(0)
        if name == "--gin_file":
            files.append(value)
        elif name == "--data_dir":
            bindings.append(("DATA_DIR", repr(value)))
        else:
            bindings.append((name.removeprefix("--gin.").strip(), quoted(value)))
    if not files:
        raise UserError("no gin file given: --gin_file=gin/runs/….gin (see --help)")
    return Arguments(tuple(files), tuple(bindings))


def quoted(value: str) -> str:
    """`value` as gin reads it: a bare word or path, which the shell left unquoted, is a string."""
    text = value.strip()
    if text[:1] in tuple("@%[({\"'"):
        return text
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return repr(text)
    return text


def load(arguments: Arguments) -> None:
    """Forgets what gin knew, then reads the files and the bindings, in this order.

    Raises:
      UserError: a missing or malformed file, an unknown macro, function or parameter, a macro that
        is still `%gin.REQUIRED`.
    """
    gin.clear_config()
    gin.add_config_file_search_path(str(PROJECT_DIR))
    for path in arguments.gin_files:
        _parse_file(path)
    known = macros()
    for name, value in arguments.bindings:
        if "." not in name and name not in known:
            raise unknown("gin macro", name, known)
        _guarded(functools.partial(gin.parse_config, f"{name} = {value}"), f"--gin.{name}")
    refuse_missing()
    _guarded(gin.finalize, "gin")


def macros() -> set[str]:
    """The macros that the files bind or use."""
    return _bound_macros() | _used_macros()


def watch_macros(given: Iterable[str]) -> None:
    """Has gin refuse macros of the command line that nothing uses, once a program of others has read its files."""

    def look(_: object) -> None:
        used = _used_macros()
        for name in given:
            if name not in used:
                raise unknown("gin macro", name, used)

    gin_internals.register_finalize_hook(look)


def unbound_macros() -> list[str]:
    """The macros that the files use and none binds."""
    return sorted(_used_macros() - _bound_macros())


def _bound_macros() -> set[str]:
    return {scope for scope, selector in gin_internals._CONFIG if selector == "gin.macro"}


def _used_macros() -> set[str]:
    references = gin_internals.iterate_references(
        gin_internals._CONFIG, to=gin.get_configurable(gin_internals.macro)
    )
    return {reference.scoped_selector.rpartition("/")[0] for reference in references}


def call(function: Callable[..., Any]) -> Any:
    """Calls `function` with the values that the loaded files bind to its parameters."""
    try:
        configured = gin.get_configurable(function)
    except ValueError:
        raise UserError(
            f"the gin files bind nothing of {function.__name__!r}; "
            f"expected a file of gin/runs that does (--gin_file)"
        ) from None
    missing = sorted(set(_required_parameters(function)) - set(gin.get_bindings(function, False)))
    if missing:
        name = f"{function.__name__}.{missing[0]}"
        raise UserError(f"gin binding {name} is required: --gin.{name}=…")
    try:
        return configured()
    except UserError as error:  # gin adds lines of its own to the message of whatever passes it
        raise UserError(str(error).split("\n  In call to configurable")[0]) from None


def _required_parameters(function: Callable[..., Any]) -> Iterable[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def _parse_file(path: str) -> None:
    candidates = [pathlib.Path(path), PROJECT_DIR / path]
    if not any(candidate.is_file() for candidate in candidates):
        raise unknown("gin file", path, _shipped())
    root = logging.getLogger()
    root.addFilter(_is_no_search)
    try:
        _guarded(functools.partial(gin.parse_config_file, path), path)
    finally:
        root.removeFilter(_is_no_search)


def _is_no_search(record: logging.LogRecord) -> bool:
    """Not gin's error for each folder in which a file is not, when it is in the next one."""
    return not record.getMessage().startswith("Path not found")


def refuse_missing() -> None:
    """Raises for the macros that are still `%gin.REQUIRED`, all in one line."""
    missing = []
    for (scope, selector), values in gin_internals._CONFIG.items():
        for name, value in values.items():
            if (
                isinstance(value, gin_internals.ConfigurableReference)
                and value.scoped_selector == "gin.REQUIRED/gin.constant"
            ):
                short = selector.rpartition(".")[2]
                missing.append(scope if selector == "gin.macro" else f"{short}.{name}")
    if missing:
        flags = " ".join(f"--gin.{name}=…" for name in sorted(missing))
        plural = "bindings are" if len(missing) > 1 else "binding is"
        raise UserError(f"required gin {plural} missing: {flags}")


def _guarded(action: Callable[[], object], where: str) -> None:
    """Runs `action`; whatever gin raises becomes one line that names the place and the nearest."""
    try:
        action()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - gin raises nearly every built-in kind
        raise UserError(f"{where}: {explained(error)}") from error


def explained(error: Exception) -> str:
    """One line for what gin raised, with the nearest names where a name was not found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    place = next((line for line in lines if re.match(r"In (file|bindings)", line)), "")
    place = f" ({place[0].lower() + place[1:]})" if place and "bindings string" not in place else ""

    found = re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text)
    if found:
        names = [p for p in _parameters_of(found[1]) if p != "self"]
        return f"{unknown(f'parameter of {found[1]}', found[2], names)}{place}"
    found = re.search(r"No configurable matching '([^']+)'", text)
    if found:
        return f"{unknown('gin binding', found[1], _registered())}{place}"
    found = re.search(r"Couldn't resolve selector ([\w.]+); <module '([\w.]+)'", text)
    if found:
        symbols = _members(found[2])
        return f"{unknown(f'name in {found[2]}', found[1].rpartition('.')[2], symbols)}{place}"
    found = re.search(r"No bindings specified for '([^']+)/gin.macro'", text)
    if found:
        return str(unknown("gin macro", found[1], macros() - {found[1]}))
    found = re.search(r"'([^']+)' was not provided by an import statement", text)
    if found:
        close = nearest(found[1], _registered())
        hint = f"; nearest: {', '.join(map(repr, close))}" if close else ""
        return f"{found[1]!r} is imported by no statement of this file{hint}{place}"
    found = re.search(r"Unable to open file: (.+?)\. Searched config paths", text)
    if found:
        return f"{unknown('gin file', found[1], _shipped())}{place}"
    if isinstance(error, tokenize.TokenError):
        return f"not gin syntax: {error.args[0]}"
    if isinstance(error, SyntaxError):
        return f"not gin syntax: {error.msg}, line {error.lineno}: {(error.text or '').strip()}"
    return f"{text}{place}"


def _shipped() -> list[str]:
    """The gin files of this project."""
    return [str(path.relative_to(PROJECT_DIR)) for path in (PROJECT_DIR / "gin").rglob("*.gin")]


def _registered() -> list[str]:
    """Names of all configurables but gin's own, as they are bound: `train`, `T5Config`."""
    names = {selector.rpartition(".")[2] for selector, _ in gin_internals._REGISTRY.items()}
    return sorted(names - {"macro", "constant", "singleton"})


def _parameters_of(selector: str) -> list[str]:
    matches = gin_internals._REGISTRY.matching_selectors(selector.rpartition(".")[2])
    if not matches:
        return []
    configurable = gin_internals._REGISTRY[matches[0]]
    return list(inspect.signature(configurable.wrapped).parameters)


def _members(module: str) -> list[str]:
    found = sys.modules.get(module)
    return [name for name in dir(found) if not name.startswith("_")] if found else []
