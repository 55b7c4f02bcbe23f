"""Where templates run: Jinja's immutable sandbox, with limits on the memory and the time of a render.

Jinja's sandbox keeps a template away from Python's internals, but not from the machine: `'x' * 10**10` is one
expression. Three rules bound a render here, all far above any real template (docs/data.md has the margins):

- Operations whose result can be much larger than what they are given (`*`, `**`, `~`, `ljust`, `replace`, `join`,
  widths in formats, …) compute its size first.
- Values that a template makes are measured, as a tree: a list that holds one list twice counts it twice, since
  printing it does. So no value is larger than `MAX_VALUE`, and no render makes more than `MAX_WORK` in all.
- Turns of loops are counted, and the CPU time of the thread is looked at now and then.

The counts depend on the template and the row only. The clock is the last resort, and counts no time in which the
process is stopped or waits for a core. A template over a limit is an error of its author, never a dropped row.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError
from jinja2.utils import Namespace, _PassArg
from jinja2.visitor import NodeTransformer

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
_SMALL = 4_096  # characters of a text that is not counted: only lists and loops can gather many, which are

_SHORT = 16  # items: loops of so few are not counted where no loop is around them

_LOOP, _OUTER_LOOP, _CONCAT, _MEASURE, _ITEM, _RANGE, _JOIN, _METHOD = (
    "loop turns", "outer loop turns", "joined text", "measured value", "item at", "range of", "text that joins",
    "text method ",
)  # fmt: skip
_NUMBERS = re.compile(r"\d+")
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
        if size > _SHORT:
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


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        _too_large(size)


def _check_width(width: Any) -> None:
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _parts(value: Any) -> Iterable[Any]:
    return itertools.chain.from_iterable(value.items()) if isinstance(value, dict) else value


def _leaf(value: Any) -> int:
    return 1 + value.bit_length() // 4 if isinstance(value, int) else 4


class _Namespace(Namespace):
    """A namespace that prints without its attributes, so that none can be printed twice through it."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    """`str.format` with limits on widths and on the whole text."""

    _size = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        for number in _NUMBERS.findall(format_spec):
            _check_width(int(number[:20]))
        _check_size(weigh(value))
        text = super().format_field(value, format_spec)
        self._size += len(text)
        _check_size(self._size)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        _check_size(weigh(value))
        return super().convert_field(value, conversion)


def _check_percent(form: Any, values: Any) -> None:
    """Of `form % values`, where `form` is text."""
    if len(form) > MAX_WIDTH:
        raise OverLimit(f"expected a format of at most {MAX_WIDTH:,} characters, got {len(form):,}")
    found = _PERCENT.findall(str(form))
    for number in itertools.chain.from_iterable(found):
        if "*" in number:
            raise OverLimit("a width of '*' is not supported; expected a number")
        _check_width(int(number[:20] or 0))
    parts = values if isinstance(values, tuple) else (values,)
    often = len(found) if isinstance(values, dict) else 1
    _check_size(sum(map(weigh, parts)) * often + len(found) * 4 + len(form))


def _check_multiply(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
            _check_size(weigh(value) * max(times, 0))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise OverLimit(f"it makes a whole number of {bits:,} bits")


def _check_add(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes | list | tuple):
        _check_size(weigh(left) + weigh(right))


def _check_percent_operator(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes):
        _check_percent(left if isinstance(left, str) else left.decode("latin-1"), right)


_OPERATORS: Mapping[str, Callable[[Any, Any], None]] = {
    "*": _check_multiply,
    "**": _check_power,
    "+": _check_add,
    "%": _check_percent_operator,
}


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    old, new = str(old), str(new)
    _check_size(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _check_join(separator: Any, items: Any = (), *_: Any) -> None:
    if type(items) is list:
        size = sum(map(len, items)) if all(map(_is_text, items)) else weigh(items)
        _check_size(size + len(items) * len(separator))
    elif isinstance(items, tuple | dict | str):
        _check_size(weigh(items) + len(items) * len(separator))


def _check_translate(text: Any, table: Any = None, *_: Any) -> None:
    if isinstance(table, dict):
        _check_size(len(text) * max((weigh(value) for value in table.values()), default=1))


def _check_needle(text: Any, needle: Any = None, *_: Any) -> None:
    if isinstance(needle, str | bytes) and len(needle) > _NEEDLE and len(text) > _NEEDLE:
        raise OverLimit(f"expected at most {_NEEDLE:,} characters to look for, got {len(needle):,}")


def _check_first_width(text: Any, width: Any = 0, *_: Any) -> None:
    _check_width(width)


def _check_tabs(text: Any, width: Any = 8, *_: Any) -> None:
    _check_width(width)
    _check_size(len(text) + text.count("\t" if isinstance(text, str) else b"\t") * int(width))


def _check_text(text: Any, *_: Any) -> None:
    _check_slow(text)


# Methods of text and numbers whose result may be much larger than the value, or take more than linear time.
_METHODS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill", "to_bytes"), _check_first_width),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit"), _check_needle),
    **dict.fromkeys(("striptags", "unescape"), _check_text),
    "rpartition": _check_needle,
    "expandtabs": _check_tabs,
    "replace": _check_replace,
    "join": _check_join,
    "translate": _check_translate,
}


_CHECKED = (str, bytes, int)
_NO_ITERATORS = (str, list, int, float, dict, tuple)
# Methods whose result is at most a few times as large as the text.
_LINEAR_METHODS = (
    "capitalize", "endswith", "lower", "split", "splitlines", "startswith", "title", "upper",
)  # fmt: skip


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of all templates; see the module. Render with a `Meter` under the name `METER`."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self) -> None:
        super().__init__()
        self.globals.update(range=_range, zip=_zip, namespace=_Namespace)
        for name, check in _FILTERS.items():
            self.filters[name] = _bounded(self.filters[name], check)
        self.filters["e"] = self.filters["escape"]
        self.filters["join"] = _join_of(self.filters["join"])
        self.filters.update(
            {_LOOP: _loop, _OUTER_LOOP: _outer_loop, _CONCAT: _concatenate, _MEASURE: _measure}
        )
        self.filters.update({_ITEM: _item_at, _RANGE: _range_of, _JOIN: _text_that_joins})
        self.filters.update({_METHOD + name: _text_method(name) for name in _LINEAR_METHODS})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _OPERATORS[operator](left, right)
        value = self.binop_table[operator](left, right)
        return value if isinstance(value, int | float) else _made(context, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _CHECKED):
            check = _METHODS.get(__obj.__name__)
            if check is not None:
                check(owner, *args, *kwargs.values())
            if type(__obj) is BuiltinMethodType and type(owner) is str:
                kwargs.pop("_loop_vars", None)  # Jinja's own, which its `Context.call` takes out
                kwargs.pop("_block_vars", None)
                value = __obj(*args, **kwargs)  # as Jinja would, which looks at it longer
                # `text.lower()` and `text.split()` make no more than a few times of what is there.
                small = check is None and len(owner) < _SMALL
                return value if small else _made(__context, value)
        return _made(__context, super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As Jinja's, with the limits of `_Formatter`."""
        if not isinstance(value, MethodType | BuiltinMethodType):
            return None
        form = value.__self__
        if value.__name__ not in ("format", "format_map") or not isinstance(form, str):
            return None
        by_map = value.__name__ == "format_map"

        def wrapper(*args: Any, **kwargs: Any) -> str:
            if by_map:
                (kwargs,), args = args, ()
            return str(_Formatter(self).vformat(str(form), args, kwargs))

        return update_wrapper(wrapper, value)


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > MAX_TURNS:
        raise OverLimit(f"expected a range of at most {MAX_TURNS:,} numbers, got {len(found):,}")
    return found


def _zip(*sequences: Iterable[Any]) -> list[tuple[Any, ...]]:
    """`zip` as a list, which can be measured."""
    return list(itertools.islice(zip(*sequences, strict=False), MAX_VALUE))


def _made(context: Context, value: Any) -> Any:
    if isinstance(value, str) and len(value) < _SMALL:
        return value
    if isinstance(value, str | bytes | list | tuple | dict):
        return context.parent[METER].made(value)
    return value


@pass_context
def _loop(context: Context, items: Any) -> Iterable[Any]:
    return context.parent[METER].turns(items)


@pass_context
def _outer_loop(context: Context, items: Any) -> Iterable[Any]:
    """`_loop` without a loop around it: `MAX_SOURCE` bounds how many of those a template has."""
    kind = type(items)
    if (kind is list or kind is range) and len(items) <= _SHORT:
        return items
    return context.parent[METER].turns(items)


@pass_context
def _range_of(context: Context, function: Any, *args: Any) -> Any:
    """`range(…)`, where a template has not given the name to something else."""
    return _range(*args) if function is _range else context.environment.call(context, function, *args)  # type: ignore[attr-defined]


def _join_small(separator: Any, items: Any) -> str | None:
    """A short list of texts, joined; None where there is more to look at."""
    if type(items) is not list or type(separator) is not str:
        return None
    try:
        size = sum(map(len, items)) + len(items) * len(separator)
        return separator.join(items) if size < _SMALL else None
    except TypeError:  # an item is no text
        return None


@pass_context
def _text_that_joins(context: Context, separator: Any, items: Any) -> Any:
    """`separator.join(items)`."""
    joined = _join_small(separator, items)
    return _call_method(context, separator, "join", items) if joined is None else joined


def _join_of(join: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def short_or_not(context: Context, items: Any, *args: Any, **kwargs: Any) -> Any:
        """Jinja's filter `join`."""
        if len(args) < 2 and not kwargs:
            joined = _join_small(args[0] if args else "", items)
            if joined is not None:
                return joined
        return join(context, items, *args, **kwargs)

    return short_or_not


def _text_method(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    @pass_context
    def call(context: Context, text: Any, *args: Any) -> Any:
        """`text.name(…)`, without looking the method up in the sandbox where `text` is one."""
        if type(text) is str and len(text) < _SMALL:
            return method(text, *args)
        return _call_method(context, text, name, *args)

    return call


def _call_method(context: Context, owner: Any, name: str, *args: Any) -> Any:
    environment: Any = context.environment
    return environment.call(context, environment.getattr(owner, name), *args)


@pass_context
def _measure(context: Context, value: Any) -> Any:
    if type(value) is list and all(map(_is_text, value)) and sum(map(len, value)) < _SMALL:
        return value  # no list in a list, and little text
    return context.parent[METER].made(value)


@pass_context
def _concatenate(context: Context, parts: tuple[Any, ...]) -> str:
    _check_size(sum(map(weigh, parts)))
    return context.parent[METER].made("".join(map(str, parts)))


@pass_context
def _item_at(context: Context, value: Any, place: Any) -> Any:
    """`value[place]` for a place that is computed: one below 0 is outside, and does not count from the end.

    A label of −1 means that there is none; Python's rule would silently make it the last choice.
    """
    if type(place) is int and type(value) is list and 0 <= place < len(value):
        return value[place]
    if isinstance(place, int) and place < 0 and isinstance(value, list | tuple | str):
        if context.parent[METER].from_end:
            return context.environment.getitem(value, place)
        return context.environment.undefined(obj=value, name=place)  # type: ignore[arg-type]
    return context.environment.getitem(value, place)


def _bounded(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter that checks its arguments first, and whose result is measured."""
    wanted = _PassArg.from_obj(function)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, _NO_ITERATORS) and isinstance(value, Iterator):
            value = list(itertools.islice(value, MAX_VALUE))
            _check_size(weigh(value))
        check(value, *args, *kwargs.values())
        if wanted is _PassArg.context:
            head: tuple[Any, ...] = (context,)
        elif wanted is _PassArg.eval_context:
            head = (context.eval_ctx,)
        else:
            head = (context.environment,) if wanted is _PassArg.environment else ()
        return _made(context, function(*head, value, *args, **kwargs))

    return bounded


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
    _check_width(width)
    _check_size(
        len(text) + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width))
    )


def _filter_json(value: Any, indent: Any = None, *_: Any) -> None:
    _check_width(indent)
    _check_size(weigh(value) * (1 + (indent or 0)))


def _filter_sum(items: Any, *args: Any) -> None:
    if any(isinstance(value, list | tuple) for value in args):
        _check_slow(items)


def _filter_widths(value: Any, *args: Any) -> None:
    for width in args:
        _check_width(width)


def _filter_trim(text: Any, chars: Any = None, *_: Any) -> None:
    _check_needle(str(text), chars)


_FILTERS: Mapping[str, Callable[..., None]] = {
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


class _Instrument(NodeTransformer):
    """Puts the limits where the environment has no hook: loops, `~`, lists and dicts, computed indices."""

    _depth = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        node.iter = _filter(node.iter, _LOOP if self._depth else _OUTER_LOOP)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        plain = not (node.kwargs or node.dyn_args or node.dyn_kwargs)
        if plain and isinstance(node.node, nodes.Name) and node.node.name == "range":
            self.generic_visit(node)
            return _filter(node.node, _RANGE, node.args)
        if plain and isinstance(node.node, nodes.Getattr):
            name = node.node.attr
            if name == "join" and len(node.args) == 1:
                if isinstance(node.args[0], nodes.List):  # the text is measured
                    self.generic_visit(node.args[0])
                    self.visit(node.node)
                else:
                    self.generic_visit(node)
                return _filter(node.node.node, _JOIN, node.args)
            if name in _LINEAR_METHODS:
                self.generic_visit(node)
                return _filter(node.node.node, _METHOD + name, node.args)
        self.generic_visit(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load", lineno=node.lineno), _CONCAT)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node, node.items if node.ctx == "load" else ())

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def _literal(self, node: nodes.Expr, parts: Iterable[nodes.Node]) -> nodes.Node:
        constant = all(isinstance(part, nodes.Const) for part in parts)
        self.generic_visit(node)
        return node if constant else _filter(node, _MEASURE)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        place = node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg
        if isinstance(place, nodes.Const | nodes.Slice):
            return node
        return _filter(node.node, _ITEM, [node.arg])


def _filter(node: nodes.Expr, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


def instrument(tree: nodes.Template) -> nodes.Template:
    """The tree with the limits in it; what it renders stays the same."""
    return _Instrument().visit(tree)
