"""Options of the commands, made of declared settings."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from flipped_cli.path_options import LOCAL
from flipped_core.errors import UserError
from flipped_core.settings import Declared, Resume, declared, from_texts, shown

T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# Gives the command `modules`.
module_option: Decorator = click.option(
    "--module",
    "modules",
    type=LOCAL,
    multiple=True,
    help="A Python file or module that registers custom datasets.",
)


def length_options(minimum: int) -> Decorator:
    """Adds --inputs_length and --targets_length, in tokens, of at least `minimum`."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, default, what in (("targets", 128, "a target"), ("inputs", 512, "an input")):
            function = click.option(
                f"--{name}_length",
                type=click.IntRange(min=minimum),
                default=default,
                show_default=True,
                help=f"Most tokens of {what}.",
            )(function)
        return function

    return add


def settings_options(run_class: type, only: Sequence[str] | None = None) -> Decorator:
    """Adds an option for each setting of a class that has one; `run_of` and `values_of` read them.

    Args:
      run_class: the class of settings.
      only: the fields to add; None adds all.
    """
    ordered = sorted(
        declared(run_class).values(),
        key=lambda one: (not one.required, one.setting.resume is Resume.LOCAL),
    )
    found = [
        option
        for one in ordered
        if one.setting.option is not None and (only is None or one.name in only)
        for option in _options(one)
    ]

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(found):
            function = option(function)
        return function

    return add


def run_of(run_class: type[T], given: Mapping[str, Any]) -> T:
    """The run that the options of `settings_options` describe.

    Args:
      run_class: the class of settings.
      given: what click passes to the command, by field.

    Raises:
      UserError: a value is not of its setting's type; names the option.
    """
    return run_class(**values_of(run_class, given))


def values_of(
    run_class: type, given: Mapping[str, Any], only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Field -> checked value of the options that were given; see `run_of`."""
    texts, labels = {}, {}
    for name, one in declared(run_class).items():
        if one.setting.option is None or (only is not None and name not in only):
            continue
        if one.setting.keys:
            labels[name] = " and ".join(_key_options(one))
            texts[name] = _by_key(one, given, labels[name])
            continue
        labels[name] = f"--{one.setting.option}"
        value = given[name]
        if _is_mapping(one):
            value = _pairs(one, value)
        texts[name] = None if value in ((), {}) else value
    return from_texts(run_class, texts, labels)


def _options(one: Declared) -> list[Callable[..., Any]]:
    setting = one.setting
    name = f"--{setting.option}"
    attributes: dict[str, Any] = {"help": _help(one)}
    if setting.env:
        attributes["envvar"] = setting.env
    if setting.keys:
        return [
            click.option(option, f"{one.name}_{key}", metavar="NUMBER", help=attributes["help"])
            for key, option in zip(setting.keys, _key_options(one), strict=True)
        ]
    if one.type is bool and one.default is False:
        return [click.option(name, one.name, is_flag=True, **attributes)]
    if one.type is bool or bool in typing.get_args(one.type):
        return [click.option(f"{name}/--no_{setting.option}", one.name, default=None, **attributes)]
    several = _is_mapping(one) or (one.holds_text and not one.is_text)
    attributes["metavar"] = f"{setting.metavar or _metavar(one)}{'…' if several else ''}"
    return [
        click.option(
            name, one.name, required=one.required, multiple=several, default=None, **attributes
        )
    ]


def _help(one: Declared) -> str:
    """The setting's line with its default; what None stands for, which the line ends with, is that default."""
    doc = one.setting.doc
    if one.required:
        return doc
    if one.default is None:
        text, semicolon, meaning = doc.rpartition("; None")
        if not semicolon:
            return f"{doc} [default: none]"
        return f"{text} [default: {meaning.lstrip(', ').rstrip('.')}]"
    if one.default is False:
        return doc
    default = one.default
    words = " ".join(default) if isinstance(default, tuple) else default
    return f"{doc} [default: {'none' if words in ('', {}) else words}]"


def _key_options(one: Declared) -> list[str]:
    """An option for each key of a mapping, such as --inputs_length."""
    return [f"--{key}_{one.setting.option}" for key in one.setting.keys or ()]


def _metavar(one: Declared) -> str:
    if not one.holds_text:
        return "NUMBER"
    return "PATH" if one.setting.path else "NAME"


def _is_mapping(one: Declared) -> bool:
    return typing.get_origin(one.type) is Mapping


def _by_key(one: Declared, given: Mapping[str, Any], label: str) -> dict[str, str] | None:
    found = {key: given[f"{one.name}_{key}"] for key in one.setting.keys or ()}
    values = {key: value for key, value in found.items() if value is not None}
    if values and set(values) != set(one.setting.keys or ()):
        raise UserError(f"{label}: expected both or neither")
    return values or None


def _pairs(one: Declared, words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not (key and sign and value):
            raise UserError(
                f"--{one.setting.option}: expected {one.setting.metavar or 'NAME=VALUE'}, got {shown(word)}"
            )
        pairs[key] = value
    return pairs
