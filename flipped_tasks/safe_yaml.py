"""The one YAML reader: safe tags only, each key once, and no more depth or size than people write by hand.

PyYAML's C loader recurses without a limit, and an alias may stand for an alias for an alias. So a document is first
read as events, which neither recurse nor expand, and built only where it is small.
"""

from __future__ import annotations

from typing import Any

import yaml

from flipped_core.errors import UserError

MAX_CHARACTERS = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 200_000  # those of an alias counted again wherever it stands


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader; a mapping has each key once, and promptsource's two tags are plain mappings."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name in seen and name != ("tag:yaml.org,2002:merge", "<<"):
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"expected each key once, got {key.value!r} twice",
                        key.start_mark,
                    )
                if name is not None:
                    seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(text: str, where: str) -> Any:
    """The value of one YAML document.

    Args:
      text: at most `MAX_CHARACTERS`.
      where: names the document in errors.

    Raises:
      UserError: it is not YAML, asks for another tag than YAML's safe ones and promptsource's two (such as
        `!!python/object`), has a key twice, or is too deep or large.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{where}: expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
        )
    try:
        _check_size(text, where)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not safe YAML: {' '.join(str(error).split())}") from error
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        # Such as the date 2001-99-99, a number of 5,000 digits, `!!int x` or `<<: [a]`.
        raise UserError(f"{where}: not safe YAML: {error}") from error


def _check_size(text: str, where: str) -> None:
    """Counts what the document would make: nodes, and depth."""
    sizes: dict[str, int] = {}
    # Of each open list or mapping, below them the document: its anchor, and the nodes in it.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise UserError(f"{where}: expected YAML at most {MAX_DEPTH} deep, got more")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UserError(
                    f"{where}: expected an alias of something above it, got *{event.anchor}"
                )
            anchor, size = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1 + len(event.value) // 64
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, before = open_nodes[-1]
        open_nodes[-1] = (outer, before + size)
        if before + size > MAX_NODES:
            raise UserError(f"{where}: expected YAML of at most {MAX_NODES:,} values, got more")
