"""Which expressions of a template are instance text and which are instruction text.

A static analysis of the template's Jinja tree: an expression is *instance* when it depends on a
column of the example, otherwise *instruction*. Output expressions that are instance get wrapped in
a filter which yields their text as `Instance`, a subclass of `str`. The mark is a type and not a
character, so no text of an example can be mistaken for it.

The rules: names bound by `set` and `for` are what they are bound to; `range()` and `loop` are
clean; `zip()` is looked at element by element; all other expressions are instance as soon as one of
their parts is. Literal text is instruction wherever it stands, also below an `if` or a `for` that
tests a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import nodes

from flipped_core.errors import UserError

MARK_FILTER = "instance text"  # has a space: no template can name it
_LOOP_ITEM = "loop item"  # likewise
_LOOP_NEIGHBOURS = ("previtem", "nextitem")

Kind = Literal["instruction", "instance"]


class Instance(str):
    """Rendered text that comes from the example."""

    __slots__ = ()

    def __str__(self) -> str:
        # Compiled templates pass every output through str(), which keeps what __str__ returns.
        return self


@dataclass(frozen=True)
class Segment:
    """A maximal run of one kind, unstripped."""

    text: str
    kind: Kind


class _Zipped(tuple):
    """Taints, one per argument, of a `zip()`: a sequence of items."""


class _Item(tuple):
    """Taints of the parts of one such item."""


Shape = bool | _Zipped | _Item
Scope = dict[str, Shape]


def _flat(shape: Shape) -> bool:
    return any(shape) if isinstance(shape, tuple) else shape


class TaintAnalysis:
    """Finds the columns that a template reads, and marks its instance outputs.

    Args:
      template: the parsed template; `mark` changes it in place.
      global_names: names that the environment provides, such as `range` and `zip`.
      choices_are_instance: whether `answer_choices` depends on the example.
      where: how to call the template in an error.

    Attributes:
      columns: names that the template reads and does not bind itself.
      bound: names that the template binds.
    """

    def __init__(
        self,
        template: nodes.Template,
        global_names: Iterable[str],
        choices_are_instance: bool,
        where: str,
    ) -> None:
        self._template = template
        self._globals = frozenset(global_names)
        self._choices_are_instance = choices_are_instance
        self._where = where
        self._marking = False
        self._attributes: set[tuple[str, str]] = set()  # of namespaces, ever bound to instance text
        self.columns: set[str] = set()
        self.bound: set[str] = set()
        # An attribute of a namespace outlives the loop that sets it, so a later statement can taint
        # an earlier one: repeat until nothing is added.
        known = -1
        while known < len(self._attributes):
            known = len(self._attributes)
            self._body(template.body, {})

    def mark(self) -> nodes.Template:
        """Wraps each instance output of the template in the filter `MARK_FILTER`."""
        self._marking = True
        self._body(self._template.body, {})
        self._marking = False
        return self._template

    def _body(self, statements: Sequence[nodes.Node], scope: Scope) -> None:
        for node in statements:
            if isinstance(node, nodes.Output):
                self._output(node, scope)
            elif isinstance(node, nodes.If):
                self._branches(node, scope)
            elif isinstance(node, nodes.For):
                self._loop(node, scope)
            elif isinstance(node, nodes.Assign):
                self._bind(node.target, self._assigned(node, scope), scope)
            else:
                raise UserError(
                    f"{self._where}, line {node.lineno}: statement {type(node).__name__!r} has no "
                    "rule for instruction and instance; expected only output, if, for and set"
                )

    def _output(self, node: nodes.Output, scope: Scope) -> None:
        for place, child in enumerate(node.nodes):
            if self._taint(child, scope) and self._marking:
                node.nodes[place] = nodes.Filter(
                    child, MARK_FILTER, [], [], None, None, lineno=child.lineno
                )

    def _branches(self, node: nodes.If, scope: Scope) -> None:
        ends = []
        for branch in (node, *node.elif_):
            self._taint(branch.test, scope)
            ends.append(self._branch(branch.body, scope))
        ends.append(self._branch(node.else_, scope))
        for name in {name for end in ends for name in end}:
            shapes = [end[name] for end in ends if name in end]
            same = all(shape == shapes[0] for shape in shapes)
            scope[name] = shapes[0] if same else any(map(_flat, shapes))

    def _branch(self, statements: Sequence[nodes.Node], scope: Scope) -> Scope:
        inner = dict(scope)
        self._body(statements, inner)
        return inner

    def _loop(self, node: nodes.For, scope: Scope) -> None:
        if node.recursive:
            raise UserError(f"{self._where}, line {node.lineno}: recursive loops are not supported")
        inner = dict(scope)  # what a loop's body sets does not outlive the turn
        over = self._shape(node.iter, scope)
        item: Shape = _Item(over) if isinstance(over, _Zipped) else _flat(over)
        inner["loop"], inner[_LOOP_ITEM] = False, _flat(item)
        self._bind(node.target, item, inner)
        if node.test is not None:
            self._taint(node.test, inner)
        self._body(node.body, inner)
        self._body(node.else_, dict(scope))

    def _assigned(self, node: nodes.Assign, scope: Scope) -> Shape:
        if isinstance(node.node, nodes.Tuple):
            return _Item(self._taint(part, scope) for part in node.node.items)
        return self._shape(node.node, scope)

    def _bind(self, target: nodes.Node, shape: Shape, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope[target.name] = shape
            self.bound.add(target.name)
        elif isinstance(target, nodes.NSRef):
            if _flat(shape):
                self._attributes.add((target.name, target.attr))
        elif isinstance(target, nodes.Tuple):
            parts: Sequence[bool] = [_flat(shape)] * len(target.items)
            if isinstance(shape, _Item) and len(shape) == len(target.items):
                parts = shape
            for part, taint in zip(target.items, parts, strict=True):
                self._bind(part, taint, scope)

    def _taint(self, node: nodes.Node, scope: Scope) -> bool:
        return _flat(self._shape(node, scope))

    def _shape(self, node: nodes.Node, scope: Scope) -> Shape:
        if isinstance(node, nodes.Name):
            return self._name(node.name, scope)
        children = [self._shape(child, scope) for child in node.iter_child_nodes()]
        mixed = any(map(_flat, children))
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            called = node.node.name if node.node.name not in scope else None
            if called == "range":
                return False
            if called == "zip" and node.dyn_args is None:
                return _Zipped(self._taint(argument, scope) for argument in node.args)
        if isinstance(node, nodes.Filter) and node.name == "list":
            return children[0]
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            base, place = children[0], node.arg.value
            if isinstance(base, _Item) and type(place) is int and -len(base) <= place < len(base):
                return base[place]
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
            owner = node.node.name
            if owner == "loop" and node.attr in _LOOP_NEIGHBOURS:
                return mixed or _flat(scope.get(_LOOP_ITEM, False))
            return mixed or (owner, node.attr) in self._attributes
        return mixed

    def _name(self, name: str, scope: Scope) -> Shape:
        if name in scope:
            return scope[name]
        if name == "answer_choices":
            return self._choices_are_instance
        if name in self._globals:
            return False
        self.columns.add(name)
        return True


def runs(pieces: Iterable[str], start: int, stop: int) -> Iterator[tuple[str, Kind]]:
    """The pieces between two character offsets of their concatenation, with their kinds."""
    position = 0
    for piece in pieces:
        begin, position = position, position + len(piece)
        if position <= start:
            continue
        if begin >= stop:
            return
        kind: Kind = "instance" if type(piece) is Instance else "instruction"
        if begin >= start and position <= stop:
            yield piece, kind
        else:
            yield piece[max(start - begin, 0) : stop - begin], kind


def merge(parts: Iterable[tuple[str, Kind]]) -> tuple[Segment, ...]:
    """Joins neighbours of one kind; empty parts vanish."""
    merged: list[Segment] = []
    texts: list[str] = []
    current: Kind | None = None
    for text, kind in parts:
        if not text:
            continue
        if kind != current:
            if current is not None:
                merged.append(Segment("".join(texts), current))
            current, texts = kind, []
        texts.append(text)
    if current is not None:
        merged.append(Segment("".join(texts), current))
    return tuple(merged)


def spans(segments: Iterable[Segment], kind: Kind) -> list[str]:
    """The texts of one kind: instruction stripped and without empty ones, instance as it stands."""
    if kind == "instance":
        return [segment.text for segment in segments if segment.kind == kind]
    stripped = (segment.text.strip() for segment in segments if segment.kind == kind)
    return [text for text in stripped if text]
