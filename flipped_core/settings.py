"""Settings declared once: a dataclass field with its type, default, unit, bounds and one line of documentation.

gin bindings, options of the commands, `run.json` and the engine's arguments all come from such declarations, and every
value is checked against them by one function, `checked`, wherever it comes from.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from flipped_core.errors import UserError, is_utf8, nearest, unknown
from flipped_core.paths import has_scheme, is_hub, to_path

LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3.4e38  # of float32
_KEY = "setting"
_SHOWN = 80  # characters of a value in a message
_INTEGER = re.compile(r"[+-]?\d+")
_REQUIRED: Any = dataclasses.MISSING

T = TypeVar("T")


class Resume(enum.Enum):
    """What becomes of a setting when a run resumes from its checkpoints."""

    SAME = "must stay"  # it decides the run's numbers: another value is another run
    FREE = "may change"
    LOCAL = "not recorded"  # of this process or machine


@dataclasses.dataclass(frozen=True)
class Setting:
    """The declaration of one field.

    Attributes:
      doc: one line.
      macro: the name in gin files; None where it has none.
      option: the name of the command's option without its dashes; None where there is none.
      metavar: how the option's help writes a value; None derives it from the type.
      env: the environment variable that the option falls back to.
      unit: such as "steps"; None for what has none.
      minimum, maximum: bounds of each number in the value, both allowed.
      above, below: bounds of each number, themselves not allowed.
      choices: the allowed names; None allows all.
      path: whether texts are paths: `~` is expanded.
      keys: of a mapping, exactly these; None allows all.
      resume: whether it may change when a run resumes.
    """

    doc: str
    macro: str | None = None
    option: str | None = None
    metavar: str | None = None
    env: str | None = None
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    path: bool = False
    keys: tuple[str, ...] | None = None
    resume: Resume = Resume.SAME


def setting(
    doc: str, default: Any = _REQUIRED, *, factory: Any = _REQUIRED, **declared: Any
) -> Any:
    """A dataclass field that declares a setting.

    Args:
      doc: one line.
      default: its default; required without one.
      factory: makes the default, where it is mutable.
      declared: the other attributes of `Setting`.
    """
    metadata = {_KEY: Setting(doc, **declared)}
    if factory is not _REQUIRED:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Declared:
    """One setting of a class: its name and type besides what `Setting` holds."""

    owner: str
    name: str
    type: Any
    default: Any  # `dataclasses.MISSING` where it is required
    setting: Setting

    @property
    def label(self) -> str:
        """How messages call it: its macro, else CLASS.FIELD."""
        return self.setting.macro or f"{self.owner}.{self.name}"

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING

    @property
    def is_text(self) -> bool:
        """Whether a value is one text (or None), so that anything written for it is that text."""
        return str in _options(self.type) and not set(_options(self.type)) - {str, type(None)}

    @property
    def holds_text(self) -> bool:
        """Whether a value is a text or a list of texts (or None)."""
        texts = {str, tuple[str, ...], type(None)}
        return set(_options(self.type)) <= texts and _options(self.type) != (type(None),)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return _described(self.type, self.setting)


def declared(cls: Any) -> Mapping[str, Declared]:
    """Field name -> declaration, of all fields of a dataclass that declare a setting."""
    return _declared(cls)


@functools.cache
def _declared(cls: Any) -> Mapping[str, Declared]:
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        if _KEY in field.metadata:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            found[field.name] = Declared(
                cls.__name__, field.name, hints[field.name], default, field.metadata[_KEY]
            )
    return found


def macros(cls: type) -> dict[str, Declared]:
    """Macro -> declaration, those of nested settings included."""
    found = {}
    for one in declared(cls).values():
        if one.setting.macro:
            found[one.setting.macro] = one
        for option in _options(one.type):
            if dataclasses.is_dataclass(option):
                found |= macros(typing.cast(type, option))
    return found


def check_fields(instance: Any) -> None:
    """Replaces each field of a frozen dataclass by its checked value; call it in `__post_init__`.

    Raises:
      UserError: a value is not of its field's type or out of its bounds.
    """
    for name, one in declared(type(instance)).items():
        object.__setattr__(instance, name, checked(one, getattr(instance, name)))


def from_mapping(
    cls: type[T], values: Mapping[str, Any], where: str, *, partial: bool = False
) -> dict[str, Any]:
    """Checked arguments for `cls`, from a file that holds its fields as plain values.

    Args:
      cls: a dataclass of settings.
      values: field -> value.
      where: the file, for messages.
      partial: whether required fields may be missing.

    Raises:
      UserError: an unknown field, a value of another type, or a required field that is missing.
    """
    known = declared(cls)
    found = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}: {unknown('field', name, known)}")
        found[name] = checked(known[name], value, f"{where}: {name}")
    missing = [name for name, one in known.items() if one.required and name not in found]
    if missing and not partial:
        raise UserError(f"{where}: expected the field {missing[0]!r}, which is missing")
    return found


def from_texts(cls: Any, texts: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """Checked arguments for `cls` from what was written on a command line, without those that are None.

    Args:
      cls: a dataclass of settings.
      texts: field -> text, or a list or mapping of texts, or a value.
      labels: field -> how messages call it.
    """
    known = declared(cls)
    values = {}
    for name, text in texts.items():
        if text is None:
            continue
        one = known[name]
        if isinstance(text, str) and not one.is_text:
            text = _literal(text)
        elif isinstance(text, Mapping):
            text = {
                key: _literal(value) if _numeric(one.type) else value for key, value in text.items()
            }
        values[name] = checked(one, text, labels.get(name))
    return values


def checked(one: Declared, value: Any, label: str | None = None) -> Any:
    """`value` as the declared type.

    true and false in any case are booleans, a whole-valued float is an integer where one is expected, an integer is a
    float where one is expected, one text is a list of one text, `~` is expanded in paths.

    Args:
      one: the setting.
      value: from gin, a command line or JSON.
      label: how the message calls it; its macro where not given.

    Raises:
      UserError: one line with the setting, what was expected and what was given.
    """
    label = label or one.label
    try:
        return _as(one.type, one.setting, value)
    except _Mismatch as error:
        why = f"; {error}" if str(error) else ""
        raise UserError(f"{label}: expected {one.expected}, got {shown(value)}{why}") from None
    except UserError as error:  # of a field of nested settings
        raise UserError(f"{label}: {error}") from None


def shown(value: Any) -> str:
    """`value` in a message: its `repr` on one line, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, a list in itself
        text = f"a {type(value).__name__} that is too long to print"
    return shortened(text)


def shortened(text: str, most: int = _SHOWN) -> str:
    """A text on one line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain(value: Any) -> Any:
    """`value` as JSON holds it: tuples as lists, nested settings as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def table(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """(macro, default, what is expected, documentation) of each setting that has a macro, as the help prints them."""
    for one in declared(cls).values():
        if one.setting.macro:
            default = "required" if one.required else shown(one.default)
            unit = f", {one.setting.unit}" if one.setting.unit else ""
            yield one.setting.macro, default, f"{one.expected}{unit}", one.setting.doc


class _Mismatch(Exception):
    """A value that is not of its type; the text says why where the type alone does not."""


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: (int, NoneType) of `int | None`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _numeric(hint: Any) -> bool:
    return any(
        int in typing.get_args(one) or float in typing.get_args(one) for one in _options(hint)
    )


def _as(hint: Any, rule: Setting, value: Any) -> Any:
    options = _options(hint)
    if value is None:
        if type(None) in options:
            return None
        raise _Mismatch
    [one] = [option for option in options if option is not type(None)]
    origin, arguments = typing.get_origin(one) or one, typing.get_args(one)
    if origin is bool:
        return _boolean(value)
    if origin is int:
        return _integer(rule, value)
    if origin is float:
        return _number(rule, value)
    if origin is str:
        return _text(rule, value)
    if origin is tuple:
        return _tuple(arguments, rule, value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(arguments, rule, value)
    if dataclasses.is_dataclass(origin):
        cls = typing.cast(type, origin)
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**from_mapping(cls, value, cls.__name__))
    raise _Mismatch


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise _Mismatch


def _integer(rule: Setting, value: Any) -> int:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_INT:
        raise _Mismatch
    _in_bounds(rule, value)
    return int(value)


def _number(rule: Setting, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _Mismatch
    if not abs(value) <= LARGEST_FLOAT:  # NaN too
        raise _Mismatch
    _in_bounds(rule, value)
    return float(value)


def _in_bounds(rule: Setting, value: float) -> None:
    if (
        (rule.minimum is not None and value < rule.minimum)
        or (rule.maximum is not None and value > rule.maximum)
        or (rule.above is not None and value <= rule.above)
        or (rule.below is not None and value >= rule.below)
    ):
        raise _Mismatch


def _text(rule: Setting, value: Any) -> str:
    if not isinstance(value, str):
        raise _Mismatch
    if not value.strip() or "\0" in value:
        raise _Mismatch
    if not is_utf8(value):
        raise _Mismatch("which is not UTF-8")
    if rule.choices is not None and value not in rule.choices:
        close = nearest(value, rule.choices)
        raise _Mismatch(f"nearest: {', '.join(map(repr, close))}" if close else "")
    if not rule.path:
        return value
    if has_scheme(value) and not is_hub(value):
        try:
            to_path(value)
        except UserError as error:
            raise _Mismatch(str(error).removeprefix("path: ").partition(", got")[0]) from None
    if not value.startswith("~"):
        return value
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        raise _Mismatch("there is no such user; a folder of that name is ./~…")
    return expanded


def _tuple(arguments: tuple[Any, ...], rule: Setting, value: Any) -> tuple[Any, ...]:
    each = arguments[0]
    if arguments[1:] == (...,):
        if isinstance(value, str) and each is str:
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise _Mismatch
        return tuple(_as(each, rule, item) for item in value)
    if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
        raise _Mismatch
    return tuple(_as(hint, rule, item) for hint, item in zip(arguments, value, strict=True))


def _mapping(arguments: tuple[Any, ...], rule: Setting, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _Mismatch
    if rule.keys is not None and set(value) != set(rule.keys):
        raise _Mismatch
    return {key: _as(arguments[1], rule, item) for key, item in value.items()}


def _literal(text: str) -> Any:
    """A number, list or mapping that a text spells; the text itself where it spells none."""
    text = text.strip()
    if _INTEGER.fullmatch(text) and len(text) < 4000:
        return int(text)
    try:
        return float(text)
    except ValueError:
        pass
    if text == "None" or text[:1] in tuple("[({"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return text


def _described(hint: Any, rule: Setting) -> str:
    options = _options(hint)
    words = [_described_one(one, rule) for one in options if one is not type(None)]
    return " or ".join(words + ["None"] * (type(None) in options))


def _described_one(hint: Any, rule: Setting) -> str:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is bool:
        return "True or False"
    if origin in (int, float):
        return f"a {'whole ' if origin is int else ''}number{_bounds(rule, origin)}"
    if origin is str:
        if rule.choices:
            return " or ".join(map(repr, rule.choices))
        return "a path" if rule.path else "a name"
    if origin is tuple and arguments[1:] == (...,):
        if arguments[0] is str:
            return f"{_described_one(str, rule)} or a list of them"
        return f"a list of {_plural(arguments[0], rule)}"
    if origin is tuple:
        return (
            f"({', '.join('number' for _ in arguments)}), each {_described_one(arguments[0], rule)}"
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys = ", ".join(f"{key!r}: …" for key in rule.keys or ("NAME",))
        return f"{{{keys}}}, each {_described(arguments[1], rule)}"
    return f"@{origin.__name__}()"


def _plural(hint: Any, rule: Setting) -> str:
    if typing.get_origin(hint) is tuple:
        one = _described_one(typing.get_args(hint)[0], rule).removeprefix("a ")
        return f"pairs of {one.replace('number', 'numbers')}"
    return _described_one(hint, rule)


def _bounds(rule: Setting, origin: Any) -> str:
    words = []
    if rule.minimum is not None:
        words.append(f"of at least {rule.minimum:g}")
    if rule.above is not None:
        words.append(f"above {rule.above:g}")
    if rule.maximum is not None:
        words.append(f"of at most {rule.maximum:g}")
    elif rule.below is not None:
        words.append(f"below {rule.below:g}")
    elif origin is int:
        words.append(f"below {LARGEST_INT + 1}" if rule.minimum is None else "")
    return "".join(f" {word}" for word in words if word)
