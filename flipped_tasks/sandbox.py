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
from collections.abc import Callable, Iterable, Iterator
from functools import update_wrapper
from types import BuiltinMethodType, MethodType
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, _PassArg
from jinja2.visitor import NodeTransformer

from flipped_tasks.render_limits import (
    FILTERS,
    MAX_TURNS,
    MAX_VALUE,
    METER,
    METHODS,
    NUMBERS,
    OPERATORS,
    SHORT_LOOP,
    SMALL,
    OverLimit,
    check_size,
    check_width,
    is_text,
    weigh,
)

_LOOP, _OUTER_LOOP, _CONCAT, _MEASURE, _ITEM, _RANGE, _JOIN, _METHOD = (
    "loop turns", "outer loop turns", "joined text", "measured value", "item at", "range of", "text that joins",
    "text method ",
)  # fmt: skip


class _Namespace(Namespace):
    """A namespace that prints without its attributes, so that none can be printed twice through it."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    """`str.format` with limits on widths and on the whole text."""

    _size = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        for number in NUMBERS.findall(format_spec):
            check_width(int(number[:20]))
        check_size(weigh(value))
        text = super().format_field(value, format_spec)
        self._size += len(text)
        check_size(self._size)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        check_size(weigh(value))
        return super().convert_field(value, conversion)


_CHECKED = (str, bytes, int)
_NO_ITERATORS = (str, list, int, float, dict, tuple)
# Methods whose result is at most a few times as large as the text.
_LINEAR_METHODS = (
    "capitalize", "endswith", "lower", "split", "splitlines", "startswith", "title", "upper",
)  # fmt: skip


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of all templates; see the module. Render with a `Meter` under the name `METER`."""

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self) -> None:
        super().__init__()
        self.globals.update(range=_range, zip=_zip, namespace=_Namespace)
        for name, check in FILTERS.items():
            self.filters[name] = _bounded(self.filters[name], check)
        self.filters["e"] = self.filters["escape"]
        self.filters["join"] = _join_of(self.filters["join"])
        self.filters.update(
            {_LOOP: _loop, _OUTER_LOOP: _outer_loop, _CONCAT: _concatenate, _MEASURE: _measure}
        )
        self.filters.update({_ITEM: _item_at, _RANGE: _range_of, _JOIN: _text_that_joins})
        self.filters.update({_METHOD + name: _text_method(name) for name in _LINEAR_METHODS})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        OPERATORS[operator](left, right)
        value = self.binop_table[operator](left, right)
        return value if isinstance(value, int | float) else _made(context, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _CHECKED):
            check = METHODS.get(__obj.__name__)
            if check is not None:
                check(owner, *args, *kwargs.values())
            if type(__obj) is BuiltinMethodType and type(owner) is str:
                kwargs.pop("_loop_vars", None)  # Jinja's own, which its `Context.call` takes out
                kwargs.pop("_block_vars", None)
                value = __obj(*args, **kwargs)  # as Jinja would, which looks at it longer
                # `text.lower()` and `text.split()` make no more than a few times of what is there.
                small = check is None and len(owner) < SMALL
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
    if isinstance(value, str) and len(value) < SMALL:
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
    if (kind is list or kind is range) and len(items) <= SHORT_LOOP:
        return items
    return context.parent[METER].turns(items)


@pass_context
def _range_of(context: Context, function: Any, *args: Any) -> Any:
    """`range(…)`, where a template has not given the name to something else."""
    if function is _range:
        return _range(*args)
    return context.environment.call(context, function, *args)  # type: ignore[attr-defined]


def _join_small(separator: Any, items: Any) -> str | None:
    """A short list of texts, joined; None where there is more to look at."""
    if type(items) is not list or type(separator) is not str:
        return None
    try:
        size = sum(map(len, items)) + len(items) * len(separator)
        return separator.join(items) if size < SMALL else None
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
        if type(text) is str and len(text) < SMALL:
            return method(text, *args)
        return _call_method(context, text, name, *args)

    return call


def _call_method(context: Context, owner: Any, name: str, *args: Any) -> Any:
    environment: Any = context.environment
    return environment.call(context, environment.getattr(owner, name), *args)


@pass_context
def _measure(context: Context, value: Any) -> Any:
    if type(value) is list and all(map(is_text, value)) and sum(map(len, value)) < SMALL:
        return value  # no list in a list, and little text
    return context.parent[METER].made(value)


@pass_context
def _concatenate(context: Context, parts: tuple[Any, ...]) -> str:
    check_size(sum(map(weigh, parts)))
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
            check_size(weigh(value))
        check(value, *args, *kwargs.values())
        if wanted is _PassArg.context:
            head: tuple[Any, ...] = (context,)
        elif wanted is _PassArg.eval_context:
            head = (context.eval_ctx,)
        else:
            head = (context.environment,) if wanted is _PassArg.environment else ()
        return _made(context, function(*head, value, *args, **kwargs))

    return bounded


class _Instrument(NodeTransformer):
    """Puts the limits where the environment has no hook: loops, `~`, lists and dicts, computed indices."""

    _depth = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        loop = _LOOP if self._depth else _OUTER_LOOP
        node.iter = _filter(cast(nodes.Expr, node.iter), loop)
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
