"""The pickle of a torch state dict, interpreted without running anything.

A pickle is a program for a stack machine, and `pickle.Unpickler` calls what the program names. A subclass whose
`find_class` returns stand-ins would still run the rest of that machine: `BUILD` sets attributes, `NEWOBJ` makes
objects, `INST` and `EXT` have paths of their own, and a memo index of 2**31 allocates that much. So this module
has its own machine of the opcodes that torch writes (protocols 2 to 5). It makes only dictionaries with text keys,
tuples, texts, numbers, `Storage` and `Tensor`; every other opcode, and every name but the few below, is refused.
`pickletools.genops` splits the bytes into opcodes and never runs them. Memory and time are linear in the bytes,
whose number is bounded.
"""

from __future__ import annotations

import dataclasses
import pickletools
from typing import Any

from flipped_core.errors import UserError

# T5 XXL's takes some 0.2 MB; one of this size is read in a few seconds.
MAX_BYTES = 2**21
_MOST = 2**63  # sizes are 64-bit numbers
_MOST_DIMENSIONS = 8

# Storage classes and the numpy names (ml_dtypes for bfloat16) of their elements.
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
NAMES = frozenset({_DICT, _TENSOR, _PARAMETER, *STORAGES})

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements that tensors are views of.

    Attributes:
      key: the name of the file's entry that holds it.
      dtype: a value of `STORAGES`.
      numel: the number of elements.
    """

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage. Its offset and strides count elements; they are not compared with the storage here."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, by name.

    Args:
      data: the bytes of `data.pkl`.
      where: the file, for messages.

    Raises:
      UserError: the pickle is too long, damaged, holds anything but tensors, or names anything that a plain state
        dict does not need; nothing that it names is imported or run.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{where}: expected a pickle of at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        state = _Machine().run(data)
    except _Refused as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, IndexError) as error:  # of genops, or of a stack that is too short
        raise UserError(f"{where}: the pickle is damaged: {error}") from None
    if type(state) is not dict:
        raise UserError(f"{where}: expected a state dict, got {_kind(state)}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{where}: {name[:200]!r}: expected a tensor, got {_kind(value)}")
    return state


class _Refused(Exception):
    """What the pickle holds that a plain state dict does not."""


@dataclasses.dataclass(frozen=True)
class _Name:
    name: str


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """The stack, the memo and one method for each group of opcodes."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (result,) = self._stack  # ValueError where it is not the only one
                return result
            self._step(opcode.name, argument)
        raise ValueError("no STOP")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self._stack.append(tuple(self._pop_last(_TUPLES[opcode])))
        elif opcode in ("PROTO", "FRAME"):
            pass
        elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"nothing was stored under {argument}")
            self._stack.append(self._memo[argument])
        elif opcode == "GLOBAL":
            self._stack.append(_allowed(argument.replace(" ", ".")))
        elif opcode == "STACK_GLOBAL":
            module, name = self._pop_last(2)
            if type(module) is not str or type(name) is not str:
                raise ValueError("a name that is no text")
            self._stack.append(_allowed(f"{module}.{name}"))
        else:
            self._build(opcode, argument)

    def _build(self, opcode: str, argument: Any) -> None:
        """The opcodes that put values together."""
        if opcode == "MARK":
            self._stack.append(_MARK)
        elif opcode == "EMPTY_DICT":
            self._stack.append({})
        elif opcode == "TUPLE":
            self._stack.append(tuple(self._pop_to_mark()))
        elif opcode == "SETITEM":
            self._set_items(self._pop_last(2))
        elif opcode == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif opcode == "BINPERSID":
            self._stack.append(_storage(self._stack.pop()))
        elif opcode == "REDUCE":
            name, arguments = self._pop_last(2)
            self._stack.append(_reduce(name, arguments))
        elif opcode == "BUILD":
            target, state = self._pop_last(2)
            # What `Module.state_dict` notes of the modules' versions.
            if type(target) is not dict or type(state) is not dict or set(state) != {"_metadata"}:
                raise _Refused("expected a plain state dict, got an object with attributes")
            self._stack.append(target)
        else:
            raise _Refused(
                f"expected a plain state dict, got the pickle opcode {opcode}{_of(argument)}"
            )

    def _pop_last(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) < count or _MARK in values:
            raise ValueError("too few values on the stack")
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _Refused("expected the items of a dictionary, got others")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _Refused(f"expected names as the keys of a state dict, got {_kind(key)}")
            if key in target:
                raise _Refused(f"{key[:200]!r} is there twice")
            target[key] = value


def _allowed(name: str) -> _Name:
    if name not in NAMES:
        raise _Refused(
            f"the pickle names {name[:200]!r}, which no plain state dict needs: refused, nothing of it was run"
        )
    return _Name(name)


def _storage(saved: Any) -> Storage:
    """The storage that a persistent id describes: ("storage", class, key, device, number of elements)."""
    if type(saved) is not tuple or len(saved) != 5 or saved[0] != "storage":
        raise _Refused("expected a storage, got another persistent id")
    _, kind, key, _, numel = saved
    if not isinstance(kind, _Name) or kind.name not in STORAGES:
        raise _Refused(f"expected a storage class, got {_kind(kind)}")
    if type(key) is not str or not _is_size(numel):
        raise _Refused("expected a storage's name and number of elements, got others")
    return Storage(key, STORAGES[kind.name], numel)


def _reduce(name: Any, arguments: Any) -> Any:
    """The value of a call: an empty dictionary or a tensor."""
    if not isinstance(name, _Name) or type(arguments) is not tuple:
        raise _Refused(f"expected a call of one of the known names, got one of {_kind(name)}")
    if name.name == _DICT and not arguments:
        return {}
    if name.name == _TENSOR and len(arguments) in (6, 7):
        storage, offset, shape, strides, _, hooks, *metadata = arguments
        if (
            isinstance(storage, Storage)
            and _is_size(offset)
            and _are_sizes(shape)
            and _are_sizes(strides)
            and len(shape) == len(strides)
            and not any(_is_filled(value) for value in (hooks, *metadata))
        ):
            return Tensor(storage, offset, shape, strides)
    if name.name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], Tensor):
        if not _is_filled(arguments[2]):
            return arguments[0]
    raise _Refused(f"expected the usual arguments of {name.name}, got others")


def _of(argument: Any) -> str:
    """The argument of an opcode that is refused, where it is a name."""
    return f" of {argument[:200]!r}" if type(argument) is str else ""


def _is_filled(value: Any) -> bool:
    """Whether there are hooks or metadata, such as that a tensor is negated or conjugated lazily."""
    return value is not None and value != {}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and len(values) <= _MOST_DIMENSIONS and all(map(_is_size, values))


def _kind(value: Any) -> str:
    """A value for messages; a whole one might be long."""
    return value.name if isinstance(value, _Name) else type(value).__name__
