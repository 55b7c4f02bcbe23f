"""Reads gin files and `--gin.NAME=VALUE` bindings; every mistake in them becomes one line.

The files use gin's dynamic registration: a file imports what it binds, so the functions and classes
that are configured need no decorator and the engine knows nothing of gin. A name in capitals is a
macro (`TRAIN_STEPS`), as in T5X; anything else is `CLASS.FIELD` (`TrainRun.steps`).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import logging
import os
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import gin
from gin import config as gin_internals
from gin import config_parser

from flipped_cli import offline
from flipped_core import settings
from flipped_core.errors import UserError, nearest, unknown
from flipped_core.paths import to_local_path
from flipped_core.settings import Declared, declared, shown, table

T = TypeVar("T")
PROJECT_DIR = pathlib.Path(__file__).resolve().parents[1]
_SPELLED = re.compile(r"=\s*([^\s#]+)")
_BOOLEAN = re.compile(r"^([^#=\n]*=[ \t]*)(true|false)(?=[ \t]*(?:#.*)?$)", re.MULTILINE | re.I)
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
            bindings.append(("DATA_DIR", value))
        else:
            bindings.append((name.removeprefix("--gin.").strip(), value))
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
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return repr(text)
    return text


def _quoted_for(value: str, one: Declared | None) -> str:
    """Like `quoted`; what is written for a setting that is a text stays that text, `20261128` or `1e3` too."""
    text = value.strip()
    if one is None or not one.holds_text or text[:1] in tuple("@%\"'"):
        return quoted(value)
    if text == "None" or (text[:1] in tuple("[(") and not one.is_text):
        return text
    return repr(value)


def load(arguments: Arguments, run_class: type | None = None) -> None:
    """Forgets what gin knew, then reads the files and the bindings, in this order.

    Args:
      arguments: the command line.
      run_class: `TrainRun` or `EvalRun`, whose macros are bound to its fields.

    Raises:
      UserError: a missing or malformed file, an unknown macro, function or parameter, a macro that
        is still `%gin.REQUIRED`, or macros that refer to each other in a circle.
    """
    gin.clear_config()
    gin.add_config_file_search_path(str(PROJECT_DIR))
    if run_class is not None:
        _register(run_class)
    texts: dict[str, str] = {}
    for path in arguments.gin_files:
        _parse_file(path)
        texts |= _number_texts(path)
    declared_here = {} if run_class is None else settings.macros(run_class)
    known = macros() | {m for m, one in declared_here.items() if one.owner == _name(run_class)}
    for name, value in arguments.bindings:
        if "." not in name and name not in known:
            raise unknown("gin macro", name, known)
        text = _quoted_for(value, declared_here.get(name) or _parameter(name, run_class))
        _guarded(functools.partial(gin.parse_config, f"{name} = {text}"), f"--gin.{name}")
        texts.pop(name, None)
    if run_class is not None:
        _refuse_unused()
        _bind(run_class, texts)
    _refuse_circles()
    refuse_missing()
    _guarded(gin.finalize, "gin")


def make(run_class: type[T]) -> T:
    """The run that the loaded files and bindings describe.

    Raises:
      UserError: a required setting is not bound, or a value is not of its setting's type.
    """
    configured = gin.get_configurable(run_class)
    bound = gin.get_bindings(run_class, False)
    for name, one in declared(run_class).items():
        if one.required and name not in bound:
            raise UserError(
                f"required setting {one.label} is missing: "
                + (f"--gin.{one.setting.macro}=…" if one.setting.macro else one.setting.doc)
            )
    found: list[T] = []
    try:
        _guarded(lambda: found.append(configured()), "gin")
    except UserError as error:  # gin adds lines of its own to the message of whatever passes it
        raise UserError(str(error).split("\n  In call to configurable")[0]) from None
    # gin instantiates a subclass of its own, which would equal no other run.
    return run_class(**{name: getattr(found[0], name) for name in declared(run_class)})


def operative() -> str:
    """The bindings in force, as a gin file."""
    return gin.operative_config_str()


def settings_help(run_class: type) -> str:
    """A line for each macro of a run: its default, what is expected, and its documentation."""
    lines = []
    for macro, default, expected, doc in table(run_class):
        lines += [f"  {macro} ({default}): {doc}", f"      {expected}"]
    return "\n".join(lines)


def _register(run_class: type) -> None:
    try:
        gin.get_configurable(run_class)
    except ValueError:
        gin.external_configurable(run_class, module=run_class.__module__)


def _parameter(name: str, run_class: type | None) -> Declared | None:
    """The setting that CLASS.FIELD names."""
    owner, _, field = name.rpartition(".")
    if run_class is None or owner.rpartition(".")[2] != run_class.__name__:
        return None
    return declared(run_class).get(field)


def _bind(run_class: type, texts: Mapping[str, str]) -> None:
    """Binds each field to its macro, where that is bound; numbers written for texts become those texts."""
    selector = f"{run_class.__module__}.{run_class.__name__}"
    for name, one in declared(run_class).items():
        macro = one.setting.macro
        explicit = gin_internals._CONFIG.get(("", selector), {})
        if name in explicit:
            explicit[name] = _as_text(one, explicit[name], None)
        elif macro in _bound_macros():
            end = _end_of(macro)
            value = gin_internals._CONFIG[(end, "gin.macro")]["value"]
            if (text := _as_text(one, value, texts.get(end))) is not value:
                gin.bind_parameter((macro, "gin.macro", "value"), text)
            gin.parse_config(f"{selector}.{name} = %{macro}")


def _end_of(macro: str) -> str:
    """The macro whose value a chain of macros that only name each other ends in."""
    seen = [macro]
    while True:
        value = gin_internals._CONFIG.get((macro, "gin.macro"), {}).get("value")
        following = _macro_name(value)
        if following is None or (following, "gin.macro") not in gin_internals._CONFIG:
            return macro
        if following in seen:
            raise _circle([*seen[seen.index(following) :], following])
        seen.append(following)
        macro = following


def _as_text(one: Declared, value: Any, text: str | None) -> Any:
    """A number that stands for a text, as that text; anything else as it is."""
    if not one.holds_text:
        return value
    if isinstance(value, (bool, int, float)):
        if text is not None:
            return text
        if isinstance(value, float):  # 2026.10 and 2026.1 are one number
            raise UserError(f"{one.label}: expected {one.expected}, got {shown(value)}; quote it")
        return str(value)
    if isinstance(value, (list, tuple)) and not one.is_text:
        return [_as_text(one, item, None) for item in value]
    return value


class _Blind(config_parser.ParserDelegate):
    """Reads a file's syntax without looking up what it names."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        return None

    def macro(self, macro_name: str) -> None:
        return None


def _number_texts(path: str) -> dict[str, str]:
    """Macro -> how the file, which gin has read before, spells its number; included files come in their order."""
    file = next(f for f in (pathlib.Path(path), PROJECT_DIR / path) if f.is_file())
    texts: dict[str, str] = {}
    with _read(str(file)) as content:
        for statement in config_parser.ConfigParser(content, _Blind()):
            if isinstance(statement, config_parser.IncludeStatement):
                texts |= _number_texts(statement.filename)
            elif isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
                texts.pop(statement.selector, None)
                spelled = _SPELLED.search(statement.location.line_content)
                if isinstance(statement.value, (bool, int, float)) and spelled:
                    texts[statement.selector] = spelled[1]
    return texts


def macros() -> set[str]:
    """The macros that the files bind or use."""
    return _bound_macros() | _used_macros()


def _name(run_class: type | None) -> str:
    return "" if run_class is None else run_class.__name__


def _refuse_unused() -> None:
    """Refuses macros that nothing reads: most are misspelt."""
    from flipped_cli.runs import EvalRun, TrainRun

    # A recipe's macros may stand in a file that an evaluation reads.
    known = {*settings.macros(TrainRun), *settings.macros(EvalRun)} | _used_macros()
    for name in sorted(_bound_macros()):
        if name not in known:
            raise unknown("gin macro", name, known)


def _macro_name(value: Any) -> str | None:
    """The macro that a value refers to, if it is nothing but that."""
    is_reference = isinstance(value, gin_internals.ConfigurableReference)
    if is_reference and value.config_key[1] == "gin.macro":
        return value.config_key[0]
    return None


def _refuse_circles() -> None:
    """Raises for values that refer to themselves, directly or through others; gin would not end."""
    edges: dict[tuple[str, str], list[tuple[str, str]]] = {
        key: [one.config_key for one in gin_internals.iterate_references(dict(values))]
        for key, values in gin_internals._CONFIG.items()
    }
    done: set[tuple[str, str]] = set()

    def visit(key: tuple[str, str], path: list[tuple[str, str]]) -> None:
        if key in path:
            raise _circle([_shown_key(one) for one in [*path[path.index(key) :], key]])
        if key in done:
            return
        for following in edges.get(key, ()):
            visit(following, [*path, key])
        done.add(key)

    for key in edges:
        visit(key, [])


def _shown_key(key: tuple[str, str]) -> str:
    scope, selector = key
    return scope if selector == "gin.macro" else selector.rpartition(".")[2]


def _circle(names: Sequence[str]) -> UserError:
    chain = " -> ".join(f"%{name}" for name in names)
    return UserError(f"gin macro {names[0]}: expected a value, got a reference to itself ({chain})")


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


def _parse_file(path: str) -> None:
    to_local_path(path, "gin file")
    candidates = [pathlib.Path(path), PROJECT_DIR / path]
    if not any(candidate.is_file() for candidate in candidates):
        raise unknown("gin file", path, _shipped())
    root = logging.getLogger()
    root.addFilter(_is_no_search)
    readers = gin_internals._FILE_READERS
    gin_internals._FILE_READERS = [(_read, os.path.isfile)]
    try:
        _guarded(functools.partial(gin.parse_config_file, path), path)
    finally:
        gin_internals._FILE_READERS = readers
        root.removeFilter(_is_no_search)


class _Named(io.StringIO):
    name: str  # gin names it in errors


def _read(path: str) -> _Named:
    """A gin file, with `true` and `false` in any case as gin spells them."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    file = _Named(_BOOLEAN.sub(lambda found: found[1] + found[2].capitalize(), text))
    file.name = path
    return file


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
        line = settings.shortened((error.text or "").strip())
        if "malformed node" in str(error.msg):
            return f"not gin syntax: a text needs quotes, line {error.lineno}: {line}"
        return f"not gin syntax: {settings.shortened(str(error.msg))}, line {error.lineno}: {line}"
    return f"{settings.shortened(text, 300)}{place}"


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
