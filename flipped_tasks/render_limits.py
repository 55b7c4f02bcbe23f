"""The limits of a render: the memory and the time that a template may use, and the size of what it asks for.

`flipped_tasks.sandbox` puts them where templates run. Each check raises `OverLimit`; docs/data.md has the margins.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2.sandbox import SecurityError

METER = "render meter"  # has a space: no template can name it
MAX_SOURCE = 1 << 16  # characters of a template
MAX_VALUE = 1 << 21  # size of one value: characters and items, those of items included
MAX_WORK = 1 << 24  # sizes of all values that a render makes
MAX_OUTPUT = 1 << 21  # characters of prompt and target
MAX_CHOICES = 10_000
MAX_TURNS = 100_000  # of all loops of a render
MAX_SECONDS = 5.0  # of CPU time
MAX_WIDTH = 10_000  # of a column in a format, of `center`, `batch`, …
MAX_DEPTH = 64  # of lists in lists
_SLOW_INPUT = 100_000  # characters for what takes more than linear time
_NEEDLE = 1_000  # characters of what is looked for from the right, or stripped
_MAX_BITS = 1 << 14  # of a whole number: Python prints no more than 4,300 digits
_CHECK_EVERY = 256
SMALL = 4_096  # characters of a text that is not counted: only lists and loops can gather many, which are
SHORT_LOOP = 16  # items: loops of so few are not counted where no loop is around them

NUMBERS = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*([\d*]*)(?:\.([\d*]*))?")


class OverLimit(SecurityError):
    """A template asks for more memory or time than a render may take."""


class Meter:
    """What a render may still use.

    Attributes:
      from_end: a computed index below 0 counts from the end, as Python's do.
    """

    # Defaults of the class: most renders of the thousands a second change none of them.
    from_end = False
    _turns, _work, _ticks, _ends = MAX_TURNS, MAX_WORK, 0, 0.0

    def turns(self, items: Any) -> Iterable[Any]:
        """`items`, each counted as a turn of a loop."""
        try:
            size = len(items)
        except TypeError:
            size = MAX_TURNS
        if size > SHORT_LOOP:
            return self._counted(items)
        self._turn(size)
        return items

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._turn(1)
            yield item

    def _turn(self, count: int) -> None:
        self._turns -= count
        if self._turns < 0:
            raise OverLimit(f"its loops take more than {MAX_TURNS:,} turns")
        self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        if self._ticks % _CHECK_EVERY:
            return
        now = time.thread_time()
        if not self._ends:
            self._ends = now + MAX_SECONDS
        elif now > self._ends:
            raise OverLimit(f"it takes more than {MAX_SECONDS:g} s of CPU time")

    def made(self, value: Any) -> Any:
        """`value`, counted as made by the template."""
        size = weigh(value)
        self._work -= size
        if size > MAX_VALUE or self._work < 0:
            _too_large(size if size > MAX_VALUE else MAX_WORK - self._work)
        self._tick()
        return value


def _too_large(size: int) -> NoReturn:
    raise OverLimit(f"it makes values of {size:,} characters and items or more")


def check_size(size: int) -> None:
    if size > MAX_VALUE:
        _too_large(size)


def check_width(width: Any) -> None:
    if isinstance(width, int | float) and not -MAX_WIDTH <= width <= MAX_WIDTH:
        raise OverLimit(f"expected a width or number of at most {MAX_WIDTH:,}, got more")


def _check_slow(value: Any) -> None:
    if weigh(value) > _SLOW_INPUT:
        raise OverLimit(f"expected at most {_SLOW_INPUT:,} characters here, got more")


def weigh(value: Any) -> int:
    """The size of a value as text, roughly: characters and items, counted again wherever they occur.

    Counting stops soon after `MAX_VALUE`. Raises `OverLimit` where lists lie deeper in each other than `MAX_DEPTH`.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return _leaf(value)
    size = 0
    stack = [(iter(_parts(value)), 1)]
    while stack:
        parts, depth = stack[-1]
        for part in parts:
            if isinstance(part, str | bytes):
                size += 1 + len(part)
            elif isinstance(part, list | tuple | dict):
                if depth == MAX_DEPTH:
                    raise OverLimit(f"it puts lists deeper into each other than {MAX_DEPTH}")
                size += 2
                stack.append((iter(_parts(part)), depth + 1))
                break
            else:
                size += _leaf(part)
            if size > MAX_VALUE:
                return size
        else:
            stack.pop()
    return size


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def _parts(value: Any) -> Iterable[Any]:
    return itertools.chain.from_iterable(value.items()) if isinstance(value, dict) else value


def _leaf(value: Any) -> int:
    return 1 + value.bit_length() // 4 if isinstance(value, int) else 4


def _check_percent(form: Any, values: Any) -> None:
    """Of `form % values`, where `form` is text."""
    if len(form) > MAX_WIDTH:
        raise OverLimit(f"expected a format of at most {MAX_WIDTH:,} characters, got {len(form):,}")
    found = _PERCENT.findall(str(form))
    for number in itertools.chain.from_iterable(found):
        if "*" in number:
            raise OverLimit("a width of '*' is not supported; expected a number")
        check_width(int(number[:20] or 0))
    parts = values if isinstance(values, tuple) else (values,)
    often = len(found) if isinstance(values, dict) else 1
    check_size(sum(map(weigh, parts)) * often + len(found) * 4 + len(form))


def _check_multiply(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
            check_size(weigh(value) * max(times, 0))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise OverLimit(f"it makes a whole number of {bits:,} bits")


def _check_add(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes | list | tuple):
        check_size(weigh(left) + weigh(right))


def _check_percent_operator(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes):
        _check_percent(left if isinstance(left, str) else left.decode("latin-1"), right)


OPERATORS: Mapping[str, Callable[[Any, Any], None]] = {
    "*": _check_multiply,
    "**": _check_power,
    "+": _check_add,
    "%": _check_percent_operator,
}


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    old, new = str(old), str(new)
    check_size(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _check_join(separator: Any, items: Any = (), *_: Any) -> None:
    if type(items) is list:
        size = sum(map(len, items)) if all(map(is_text, items)) else weigh(items)
        check_size(size + len(items) * len(separator))
    elif isinstance(items, tuple | dict | str):
        check_size(weigh(items) + len(items) * len(separator))


def _check_translate(text: Any, table: Any = None, *_: Any) -> None:
    if isinstance(table, dict):
        check_size(len(text) * max((weigh(value) for value in table.values()), default=1))


def _check_needle(text: Any, needle: Any = None, *_: Any) -> None:
    if isinstance(needle, str | bytes) and len(needle) > _NEEDLE and len(text) > _NEEDLE:
        raise OverLimit(f"expected at most {_NEEDLE:,} characters to look for, got {len(needle):,}")


def _check_first_width(text: Any, width: Any = 0, *_: Any) -> None:
    check_width(width)


def _check_tabs(text: Any, width: Any = 8, *_: Any) -> None:
    check_width(width)
    check_size(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * int(width))


def _check_text(text: Any, *_: Any) -> None:
    _check_slow(text)


# Methods of text and numbers whose result may be much larger than the value, or take more than linear time.
METHODS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill", "to_bytes"), _check_first_width),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit"), _check_needle),
    **dict.fromkeys(("striptags", "unescape"), _check_text),
    "rpartition": _check_needle,
    "expandtabs": _check_tabs,
    "replace": _check_replace,
    "join": _check_join,
    "translate": _check_translate,
}


def _no_check(value: Any, *_: Any) -> None:
    """Linear: it is enough to measure the result."""


def _filter_replace(value: Any, *args: Any) -> None:
    _check_replace(str(value), *args)


def _filter_join(items: Any, separator: Any = "", *_: Any) -> None:
    _check_join(str(separator), items)


def _filter_format(form: Any, *values: Any) -> None:
    if len(values) == 1 and isinstance(values[0], dict):
        _check_percent(str(form), values[0])
    _check_percent(str(form), values)


def _filter_indent(text: Any, width: Any = 4, *_: Any) -> None:
    check_width(width)
    check_size(
        len(text) + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width))
    )


def _filter_json(value: Any, indent: Any = None, *_: Any) -> None:
    check_width(indent)
    check_size(weigh(value) * (1 + (indent or 0)))


def _filter_sum(items: Any, *args: Any) -> None:
    if any(isinstance(value, list | tuple) for value in args):
        _check_slow(items)


def _filter_widths(value: Any, *args: Any) -> None:
    for width in args:
        check_width(width)


def _filter_trim(text: Any, chars: Any = None, *_: Any) -> None:
    _check_needle(str(text), chars)


FILTERS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("list", "groupby", "escape", "forceescape", "urlencode"), _no_check),
    **dict.fromkeys(("dictsort", "sort", "unique"), _no_check),
    **dict.fromkeys(("batch", "slice", "center", "round"), _filter_widths),
    **dict.fromkeys(("striptags", "urlize", "wordwrap", "xmlattr", "pprint"), _check_text),
    "replace": _filter_replace,
    "join": _filter_join,
    "format": _filter_format,
    "indent": _filter_indent,
    "tojson": _filter_json,
    "sum": _filter_sum,
    "trim": _filter_trim,
}
