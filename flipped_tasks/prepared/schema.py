"""The types of a dataset's rows, and a row as the `tf.train.Example` that TFDS stores.

TFDS knows no null. A row that has some lists their paths in the feature `_null` (`title`, `metadata/author`,
`answers/3`) and holds an empty value in their place, so that every row comes back exactly as it was. `_row` is the
row's 0-based number in the split that it comes from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from flipped_core.errors import UserError
from flipped_tasks.datasets import DatasetSpec

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

NULLS = "_null"
NUMBER = "_row"
_TYPES: Mapping[str, type] = {"string": str, "int": int}
_EMPTY: Mapping[str, Any] = {"string": "", "int": 0}
_FIELDS = {"string": "bytes_list", "int": "int64_list"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A column that holds values: its path in the row, the type of its values, and whether it is a list of them."""

    path: tuple[str, ...]
    kind: str
    is_list: bool

    @functools.cached_property
    def key(self) -> str:
        """Its name in the `tf.train.Example`, as TFDS flattens nested features."""
        return "/".join(self.path)


class Schema:
    """Converts the rows of one dataset.

    Attributes:
      leaves: the columns that hold values, in the order of the row.
      columns: the dataset's columns, as `DatasetSpec.columns`.
    """

    def __init__(self, spec: DatasetSpec):
        """Raises `UserError` for a column of a type that cannot be stored."""
        self.columns = spec.columns
        self._where = f"dataset {spec.name!r}"
        self._spec = spec
        self.leaves = tuple(self._find_leaves(spec.columns, ()))
        self._groups = tuple(_groups(spec.columns, ()))

    def _find_leaves(self, columns: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[Leaf]:
        for name, kind in columns.items():
            path = (*prefix, name)
            if "/" in name or name in (NULLS, NUMBER):
                raise UserError(f"{self._where}: a column cannot be called {name!r} here")
            if isinstance(kind, Mapping):
                yield from self._find_leaves(kind, path)
                continue
            is_list = isinstance(kind, list | tuple) and len(kind) == 1
            kind = kind[0] if is_list else kind
            if not isinstance(kind, str) or kind not in _TYPES:
                raise UserError(
                    f"{self._where}: column {'.'.join(path)!r}: expected the type string or int, a list of one of "
                    f"them, or a dict of these, got {kind!r}"
                )
            yield Leaf(path, kind, is_list)

    def features(self) -> tfds.features.FeaturesDict:
        """The features of TFDS: text, int64, class label, sequences and nested dicts of these."""
        import tensorflow_datasets as tfds

        label = _label_feature(self._spec)

        def build(columns: Mapping[str, Any], top: bool) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, kind in columns.items():
                if isinstance(kind, Mapping):
                    found[name] = build(kind, False)
                elif top and name == self._spec.label_column and label is not None:
                    found[name] = label
                elif isinstance(kind, str):
                    found[name] = _scalar(kind)
                else:
                    found[name] = tfds.features.Sequence(_scalar(kind[0]))
            return found

        own = {NUMBER: _scalar("int"), NULLS: tfds.features.Sequence(_scalar("string"))}
        return tfds.features.FeaturesDict(build(self.columns, True) | own)

    def encode(self, row: Mapping[str, Any], number: int) -> bytes:
        """A row as a serialized `tf.train.Example`; columns that the schema does not name are left out.

        Args:
          row: column → value.
          number: its 0-based number, also for the message.

        Raises:
          UserError: a value is not of its column's type; names row and column.
        """
        example = _example_type()()
        features = example.features.feature
        nulls: list[str] = []
        for path in self._groups:
            if _at(row, path) is None and _at(row, path[:-1]) is not None:
                nulls.append("/".join(path))
        for leaf in self.leaves:
            inside = _at(row, leaf.path[:-1])
            value = None if inside is None else inside[leaf.path[-1]]
            if value is None and inside is not None:
                nulls.append(leaf.key)
            values = self._values(leaf, value, nulls, number)
            getattr(features[leaf.key], _FIELDS[leaf.kind]).value.extend(values)
        features[NUMBER].int64_list.value.append(number)
        features[NULLS].bytes_list.value.extend(path.encode() for path in nulls)
        return example.SerializeToString(deterministic=True)

    def _values(self, leaf: Leaf, value: Any, nulls: list[str], number: int) -> list[Any]:
        if not leaf.is_list:
            return [self._value(leaf, _EMPTY[leaf.kind] if value is None else value, number)]
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise self._wrong(leaf, f"a list of {leaf.kind}", value, number)
        found = []
        for place, item in enumerate(value):
            if item is None:
                nulls.append(f"{leaf.key}/{place}")
                item = _EMPTY[leaf.kind]
            found.append(self._value(leaf, item, number))
        return found

    def _value(self, leaf: Leaf, value: Any, number: int) -> int | bytes:
        if type(value) is not _TYPES[leaf.kind]:
            raise self._wrong(leaf, leaf.kind, value, number)
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 63:
                raise self._wrong(leaf, "an int of 64 bits", value, number)
            return value
        try:
            return str(value).encode()
        except UnicodeEncodeError:
            raise self._wrong(leaf, "text that UTF-8 can hold", value, number) from None

    def _wrong(self, leaf: Leaf, expected: str, value: Any, number: int) -> UserError:
        return UserError(
            f"{self._where}, row {number + 1}: column {'.'.join(leaf.path)!r}: expected {expected}, "
            f"got {type(value).__name__} {ascii(value)[:60]}"
        )

    def decode(self, example: bytes) -> dict[str, Any]:
        """The row of a serialized `tf.train.Example`, as it was encoded."""
        features = _example_type().FromString(example).features.feature
        row: dict[str, Any] = {}
        for column, read in self._readers:
            row[column] = read(features)
        for null in features[NULLS].bytes_list.value:
            _set_null(row, null.decode().split("/"))
        return row

    def decode_json(self, example: bytes) -> bytes:
        """As `decode`, as JSON."""
        return orjson.dumps(self.decode(example))

    @functools.cached_property
    def _readers(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [(name, _reader(kind, name)) for name, kind in self.columns.items()]


@functools.cache
def _example_type() -> Any:
    """`tf.train.Example`, when a row is first stored or read: TensorFlow takes seconds to load."""
    import tensorflow as tf

    return tf.train.Example


def _reader(kind: Any, key: str) -> Callable[[Any], Any]:
    if isinstance(kind, Mapping):
        inner = [(name, _reader(one, f"{key}/{name}")) for name, one in kind.items()]
        return lambda features: {name: read(features) for name, read in inner}
    if isinstance(kind, str):
        if kind == "string":
            return lambda features: features[key].bytes_list.value[0].decode()
        return lambda features: features[key].int64_list.value[0]
    if kind[0] == "string":
        return lambda features: [item.decode() for item in features[key].bytes_list.value]
    return lambda features: list(features[key].int64_list.value)


def _label_feature(spec: DatasetSpec) -> Any:
    """A class label where the labels are 0, 1, …; None for others, which stay plain values."""
    values = spec.label_values
    if spec.label_column is None or spec.columns.get(spec.label_column) != "int" or not values:
        return None
    if tuple(values) != tuple(range(len(values))):
        return None
    import tensorflow_datasets as tfds

    if spec.label_names:
        return tfds.features.ClassLabel(names=list(spec.label_names))
    return tfds.features.ClassLabel(num_classes=len(values))


def _scalar(kind: str) -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if kind == "string":
        return tfds.features.Text()
    return tfds.features.Scalar(tf.int64)


def _groups(columns: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths of the nested columns, outer ones first."""
    for name, kind in columns.items():
        if isinstance(kind, Mapping):
            yield (*prefix, name)
            yield from _groups(kind, (*prefix, name))


def _at(row: Any, path: tuple[str, ...]) -> Any:
    """The value at a path; None where it, or what it lies in, is null."""
    for name in path:
        if row is None:
            return None
        row = row[name]
    return row


def _set_null(row: dict[str, Any], path: list[str]) -> None:
    inside: Any = row
    for name in path[:-1]:
        inside = inside[name]
    inside[int(path[-1]) if isinstance(inside, list) else path[-1]] = None
