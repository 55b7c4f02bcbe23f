"""YAML from outside, with bounds: what it says is known to be small before any of it is built.

PyYAML's C loader recurses, so that 30,000 brackets end the process, and aliases of aliases grow without limit while
they are looked at. The events of a text come without recursion, and are counted first.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_BYTES = 4 * 2**20
MOST_DEPTH = 50
MOST_NODES = 200_000  # with what aliases stand for

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What PyYAML's constructors raise for a value that is not of its tag, such as `!!timestamp x` or `!!bool x`.
_NO_VALUE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def load(data: bytes, loader: Any = Loader) -> Any:
    """The value of one YAML document.

    Args:
      data: UTF-8, with or without a byte order mark.
      loader: a safe loader of PyYAML's.

    Raises:
      ValueError: it is not YAML, asks for a type that the loader does not know, says a name twice in one mapping, or is
        too large, too deep or grows too much; in one line.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes, got more")
    try:
        text = data.decode("utf-8-sig")
        _check(text, loader)
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except _NO_VALUE as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _Mapping:
    """The names that a mapping has had so far, and whether the next node is one."""

    def __init__(self) -> None:
        self.names: set[tuple[Any, ...]] = set()
        self.name_is_next = True


def _check(text: str, loader: Any) -> None:
    """Counts depth and nodes, and looks for a name that a mapping has twice; `ValueError` beyond the bounds."""
    sizes: dict[str, int] = {}  # anchor -> nodes
    open_nodes: list[tuple[str | None, int, _Mapping | None]] = []  # anchor, nodes before it
    total = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.NodeEvent):
            if open_nodes and (mapping := open_nodes[-1][2]) is not None:
                _next_in(mapping, event)
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise ValueError(
                        f"the alias *{event.anchor} stands for no value that is complete before it"
                    )
                total += sizes[event.anchor]
            else:
                total += 1
            if total > MOST_NODES:
                raise ValueError(
                    f"expected at most {MOST_NODES:,} values, aliases included, got more"
                )
            if isinstance(event, yaml.CollectionStartEvent):
                mapping = _Mapping() if isinstance(event, yaml.MappingStartEvent) else None
                open_nodes.append((event.anchor, total - 1, mapping))
                if len(open_nodes) > MOST_DEPTH:
                    raise ValueError(f"nested more than {MOST_DEPTH} deep")
            elif isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, _ = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before


def _next_in(mapping: _Mapping, event: yaml.NodeEvent) -> None:
    """Notes a node of a mapping, which are names and values by turns."""
    if mapping.name_is_next and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        name = (event.tag, event.value)
        if name in mapping.names:
            line = event.start_mark.line + 1
            raise ValueError(f"line {line}: {event.value[:60]!r} occurs twice in one mapping")
        mapping.names.add(name)
    mapping.name_is_next = not mapping.name_is_next
