"""What a row may hold, whatever file or program it comes from: one gate for all sources.

A row is JSON: text, whole numbers of 64 bits, finite floats, true, false, null, lists, and dicts with text as keys.
Other values of Python and Parquet become the nearest of these, or are refused with the column's name: no value is
changed silently. docs/data.md has the table.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import orjson

from flipped_core.errors import UserError

Row = dict[str, Any]

MAX_ROW_BYTES = 8 << 20
MAX_DEPTH = 64  # of lists and dicts in each other
KINDS = ("string", "int", "any")
_BOM = b"\xef\xbb\xbf"
_KEY = re.compile(rb'"[ \t\r]*:')
_EXACT = 1 << 63  # orjson reads a larger whole number as a float


class _Unlike(Exception):
    """A row that the fast parser may have read in another way than it is written."""


def check_columns(columns: Mapping[str, Any], where: str) -> None:
    """Refuses types other than `KINDS`, a list of one of them, and dicts of these."""
    for name, kind in columns.items():
        inner = kind[0] if isinstance(kind, list | tuple) and len(kind) == 1 else kind
        if isinstance(kind, Mapping):
            check_columns(kind, f"{where}, column {name!r}")
        elif not isinstance(inner, str) or inner not in KINDS:
            raise UserError(
                f"{where}: column {name!r}: expected one of {', '.join(KINDS)}, a list of one of them, or a dict, "
                f"got {kind!r}"
            )


def read_line(line: bytes, columns: Mapping[str, Any], where: str, row_where: str = "") -> bytes:
    """A line of JSON Lines as the JSON bytes of its row; the very bytes, where nothing in them has to change.

    Args:
      line: in UTF-8, with or without a byte order mark.
      columns: column → type, see `fit_columns`.
      where: names the line in errors; `row_where` the row, where the line is good and a value is not its column's.

    Raises:
      UserError: it is no JSON object, holds what a row may not, or a value is not of its column's type.
    """
    line = line.removeprefix(_BOM).strip()
    row, same = _parse(line, where)
    same &= not fit_columns(row, columns, row_where or where)
    return line if same else orjson.dumps(row)


def parse_cell(text: str, where: str) -> Any:
    """A list or dict that a cell of CSV holds as JSON, read as strictly as a line; `clean_row` looks at its values."""
    return _parse_exactly(text.encode(), where)


def parse_row(line: bytes, where: str) -> Row:
    """A row from JSON in UTF-8, with or without a byte order mark; see `read_line`."""
    return _parse(line.removeprefix(_BOM).strip(), where, "a JSON object")[0]


def _parse(line: bytes, where: str, what: str = "an object") -> tuple[Row, bool]:
    """The row, and whether its bytes say the same to any parser."""
    if len(line) > MAX_ROW_BYTES:
        raise UserError(
            f"{where}: expected a row of at most {MAX_ROW_BYTES >> 20} MiB, got {len(line) >> 20} MiB"
        )
    try:
        row = orjson.loads(line)
        if isinstance(row, dict) and _keys(row, 1) == len(_KEY.findall(line)):
            return row, True
    except (orjson.JSONDecodeError, _Unlike):
        pass
    return clean_row(_parse_exactly(line, where), where, what), False


def _keys(value: Any, depth: int) -> int:
    """The number of all keys. Raises `_Unlike` for what needs the exact parser."""
    if depth > MAX_DEPTH:
        raise _Unlike
    is_dict = isinstance(value, dict)
    count = len(value) if is_dict else 0
    for item in value.values() if is_dict else value:
        kind = type(item)
        if kind is dict or kind is list:
            count += _keys(item, depth + 1)
        elif (kind is int or kind is float) and not -_EXACT <= item < _EXACT:
            raise _Unlike
    return count


def _parse_exactly(line: bytes, where: str) -> Any:
    """JSON with every key, digit and nesting checked, and with what Python's parser adds to JSON."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or line[:4].count(0) >= 2:
        raise UserError(f"{where}: expected UTF-8, got UTF-16 or UTF-32; save the file as UTF-8")
    if line.startswith(b"\x1f\x8b"):
        raise UserError(f"{where}: expected JSON, got gzip; its name must end with .gz")
    try:
        row = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, where),
            parse_constant=float,
            parse_int=_parse_int,
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected UTF-8, got another byte at {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: expected lists at most {MAX_DEPTH} deep, got more") from None
    return row


def _parse_int(digits: str) -> int:
    return int(digits[:20]) if len(digits) <= 20 else _EXACT  # out of range, whatever follows


def _unique(pairs: list[tuple[str, Any]], where: str) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: expected each key once, got {ascii(twice)[:80]} twice")
    return row


def clean_row(row: Any, where: str, what: str = "a dict of columns") -> Row:
    """A row of a program, of Parquet or of a parser as plain values, which JSON can hold exactly.

    Args:
      row: column → value. NaN is null, as pandas means it; dates become ISO 8601 text; tuples and arrays lists;
        NumPy's numbers Python's; whole `Decimal`s whole numbers; bytes the text that they are in UTF-8.
      where: names the row in errors; `what` says what was expected.

    Raises:
      UserError: it is no dict, or a value has no such form; names the column.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected {what}, got {type(row).__name__}")
    found = _clean(row, where, (), 1)
    if _size(found) > MAX_ROW_BYTES:
        raise UserError(f"{where}: expected a row of at most {MAX_ROW_BYTES >> 20} MiB, got more")
    return found


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values())) + 4 * len(value)
    return sum(map(_size, value)) + 2 * len(value) if isinstance(value, list) else 8


def _clean(value: Any, where: str, path: tuple[Any, ...], depth: int) -> Any:
    kind = type(value)
    if kind is str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = ascii(value[error.start])
                _refuse(where, path, "text that UTF-8 can hold", f"{half}, half of a character")
        return value
    if value is None or kind is bool:
        return value
    if kind is int:
        if not -_EXACT <= value < _EXACT:
            _refuse(where, path, "a whole number of 64 bits", "a larger one")
        return value
    if kind is float:
        if math.isinf(value):
            _refuse(where, path, "a finite number", str(value))
        return None if math.isnan(value) else value
    if depth > MAX_DEPTH:
        _refuse(where, path, f"lists at most {MAX_DEPTH} deep", "deeper ones")
    if isinstance(value, list | tuple):
        return [_clean(item, where, (*path, place), depth + 1) for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            _name(key, where, path): _clean(item, where, (*path, key), depth + 1)
            for key, item in value.items()
        }
    return _convert(value, where, path, depth)


def _name(key: Any, where: str, path: tuple[Any, ...]) -> str:
    if not isinstance(key, str):
        _refuse(where, path, "text as keys", f"{type(key).__name__} {ascii(key)[:60]}")
    return _clean(str(key), where, (*path, key), 1)


def _convert(value: Any, where: str, path: tuple[Any, ...], depth: int) -> Any:
    """What is neither JSON's nor refused."""
    kind = type(value)
    if hasattr(value, "tolist") and kind.__module__.partition(".")[0] in ("numpy", "jaxlib"):
        plain = value.tolist()
        if type(plain) is not kind:
            return _clean(plain, where, path, depth)
    if isinstance(value, str):
        return _clean(str.__str__(value), where, path, depth)
    for plain_type in (int, float):
        if isinstance(value, plain_type):
            return _clean(plain_type(value), where, path, depth)
    if kind.__name__ in ("NAType", "NaTType"):  # pandas' missing values
        return None
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal):
        if value.is_nan():
            return None
        if not value.is_finite() or value != value.to_integral_value():
            return _clean(float(value), where, path, depth)
        # 1E+999999 would be a whole number of a million digits.
        return _clean(int(value) if value.adjusted() < 20 else _EXACT, where, path, depth)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            _refuse(where, path, "text", f"{len(value)} bytes that are not UTF-8")
    raise UserError(
        f"{where}: expected text, numbers, lists and dicts, got {kind.__name__} in column {_column(path)}"
    )


def _refuse(where: str, path: tuple[Any, ...], expected: str, got: str) -> NoReturn:
    at = f": column {_column(path)}" if path else ""
    raise UserError(f"{where}{at}: expected {expected}, got {got}")


def _column(path: tuple[Any, ...]) -> str:
    """Such as 'choices.text[2]'."""
    column = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return ascii(column.removeprefix("."))[:80]


def fit_columns(row: Row, columns: Mapping[str, Any], where: str) -> bool:
    """Gives a row's values the types of their columns, in place; True where one changed.

    'int' takes whole floats (pandas writes 1.0 where another row has no label), true and false; 'any' makes whole
    floats whole numbers and takes any single value; a nested column may come as a list of dicts. Null is of any type.

    Raises:
      UserError: a value is of another type; names the column.
    """
    changed = False
    for name, kind in columns.items():
        value = row.get(name)
        if value is None:
            continue
        if isinstance(kind, Mapping):
            if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
                value = row[name] = {key: [item.get(key) for item in value] for key in kind}
                changed = True
            if not isinstance(value, dict):
                raise UserError(
                    f"{where}: column {name!r}: expected a dict of {', '.join(kind)}, got {type(value).__name__}"
                )
            inner = {key: one for key, one in kind.items() if key in value}
            changed |= fit_columns(value, inner, f"{where}: in {name!r}")
            continue
        if isinstance(kind, str):
            fitted = _FITTERS[kind](value)
        elif isinstance(value, list):
            fitted = [None if item is None else _FITTERS[kind[0]](item) for item in value]
            fitted = _Unfit if _Unfit in fitted else fitted
        else:
            fitted = _Unfit
        if fitted is _Unfit:
            wanted = kind if isinstance(kind, str) else f"a list of {kind[0]}"
            wanted = "a single value" if kind == "any" else wanted
            raise UserError(
                f"{where}: column {name!r}: expected {wanted}, got {type(value).__name__} {ascii(value)[:60]}"
            )
        if fitted is not value:
            row[name] = fitted
            changed |= isinstance(kind, str) or any(
                a is not b for a, b in zip(fitted, value, strict=True)
            )
    return changed


class _Unfit:
    """Stands for a value that is not of its column's type."""


def _fit_string(value: Any) -> Any:
    return value if isinstance(value, str) else _Unfit


def _fit_int(value: Any) -> Any:
    if type(value) is int:
        return value
    whole = isinstance(value, bool) or (
        isinstance(value, float) and value.is_integer() and -_EXACT <= value < _EXACT
    )
    return int(value) if whole else _Unfit


def _fit_any(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and -_EXACT <= value < _EXACT:
        return int(value)
    return _Unfit if isinstance(value, list | dict) else value


_FITTERS: Mapping[str, Callable[[Any], Any]] = {
    "string": _fit_string,
    "int": _fit_int,
    "any": _fit_any,
}
