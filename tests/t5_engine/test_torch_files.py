"""`pytorch_model.bin`: what torch writes is read to the bit; hostile and damaged files are one line and run nothing."""

from __future__ import annotations

import collections
import io
import os
import pathlib
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flipped_core.errors import UserError
from t5_engine import torch_pickle
from t5_engine.torch_files import TorchFile

torch = pytest.importorskip("torch", reason="PyTorch is not installed (a test dependency only)")

PREFIX = "archive"
NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}


class Saved:
    """A storage as torch's pickles name it."""

    def __init__(self, key: str, numel: Any, kind: Any = torch.FloatStorage) -> None:
        self.persistent_id = ("storage", kind, key, "cpu", numel)


class View:
    """A tensor as torch's pickles describe it."""

    def __init__(self, saved: Any, *place: Any, hooks: Any = None, extra: tuple = ()) -> None:
        hooks = collections.OrderedDict() if hooks is None else hooks
        self.arguments = (saved, *place, False, hooks, *extra)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickled(state: Any, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return getattr(value, "persistent_id", None)

    out = io.BytesIO()
    Pickler(out, protocol).dump(state)
    return out.getvalue()


def write(
    path: pathlib.Path,
    state: Any,
    storages: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    **entries: bytes,
) -> pathlib.Path:
    """A file by hand; `state` may be the pickle's bytes."""
    if storages is None:
        storages = {"0": np.arange(6, dtype=np.float32).tobytes()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        content = state if isinstance(state, bytes) else pickled(state)
        archive.writestr(f"{PREFIX}/data.pkl", content)
        for key, data in storages.items():
            archive.writestr(f"{PREFIX}/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(f"{PREFIX}/{name}", data)
    return path


def whole(key: str = "0") -> View:
    return View(Saved(key, 6), 0, (2, 3), (3, 1))


def refused(path: pathlib.Path, message: str) -> None:
    """It is refused in one line, when it is opened or when its tensors are read."""
    with pytest.raises(UserError, match=message) as error:
        file = TorchFile(path)
        for name in file:
            file[name]
    assert "\n" not in str(error.value)


def assert_equal(file: TorchFile, state: Mapping[str, Any]) -> None:
    assert list(file) == list(state)
    for name, tensor in state.items():
        tensor = tensor.detach()
        assert file.shape(name) == tuple(tensor.shape)
        assert file[name].dtype == NUMPY[tensor.dtype]
        bits = tensor.reshape(-1).contiguous().view(torch.uint8).numpy()
        assert np.ascontiguousarray(file[name]).tobytes() == bits.tobytes(), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", NUMPY)
def test_what_torch_writes_is_read_to_the_bit(tmp_path: pathlib.Path, dtype: Any, protocol: int):
    table = torch.randn(5, 7).to(dtype)
    state = {
        "shared.weight": table,
        "encoder.embed_tokens.weight": table,  # the same storage, as in published T5 files
        "transposed": torch.randn(4, 3).to(dtype).t(),
        "rows": torch.randn(6, 3).to(dtype)[2:4],
        "column": torch.randn(6, 3).to(dtype)[:, 1],
        "number": torch.tensor(3.5).to(dtype),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, 2).to(dtype)),
        "special": torch.tensor([0.0, -0.0, torch.inf, torch.nan]).to(dtype),
    }
    torch.save(state, tmp_path / "w.bin", pickle_protocol=protocol)
    assert_equal(TorchFile(tmp_path / "w.bin"), state)


def test_views_that_share_a_storage_are_read(tmp_path: pathlib.Path):
    numbers = torch.arange(24.0)
    state = {
        "half": numbers[:12],
        "over it": numbers[6:18].view(3, 4),
        "other way": numbers.view(2, 3, 4).permute(2, 0, 1),
        "every third": numbers[::3],
        "one row": numbers.view(1, 24),
        "no rows": numbers[:0],
    }
    torch.save(state, tmp_path / "w.bin")
    assert_equal(TorchFile(tmp_path / "w.bin"), state)


@pytest.mark.parametrize(
    "place, expected",
    [
        ((0, (1, 6), (2**62, 1)), [[0, 1, 2, 3, 4, 5]]),  # of one element: any stride
        ((2, (1, 1), (0, 2**62)), [[2]]),
        ((0, (3, 2), (1, 3)), [[0, 3], [1, 4], [2, 5]]),
        ((5, (), ()), 5),
        ((2**62, (0, 7), (7, 1)), np.empty((0, 7))),
    ],
)
def test_odd_strides_are_read(tmp_path: pathlib.Path, place: tuple, expected: Any):
    file = TorchFile(write(tmp_path / "w.bin", {"a": View(Saved("0", 6), *place)}))
    np.testing.assert_array_equal(file["a"], expected)


@pytest.mark.parametrize("name", ["float64", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_other_types_are_read_as_they_are(tmp_path: pathlib.Path, name: str):
    """Parameters of them are refused later, by name, or made float32."""
    torch.save({"a": torch.tensor([0, 1, 1]).to(getattr(torch, name))}, tmp_path / "w.bin")
    found = TorchFile(tmp_path / "w.bin")["a"]
    assert found.dtype == np.dtype(name) and found.tolist() == [0, 1, 1]


def test_a_modules_state_dict_is_read(tmp_path: pathlib.Path):
    """An OrderedDict with the versions of the modules as an attribute."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "w.bin")
    assert_equal(TorchFile(tmp_path / "w.bin"), module.state_dict())


def test_a_file_without_checksums_is_read(tmp_path: pathlib.Path):
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(3)}, tmp_path / "w.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(TorchFile(tmp_path / "w.bin"), {"a": torch.ones(3)})


def test_what_is_written_by_hand_is_read(tmp_path: pathlib.Path):
    """The hand-made files below differ from this one in one thing each."""
    file = TorchFile(write(tmp_path / "w.bin", {"a": whole()}, byteorder=b"little"))
    np.testing.assert_array_equal(file["a"], np.arange(6).reshape(2, 3))


def test_one_tensor_at_a_time_is_in_memory(tmp_path: pathlib.Path):
    """Python's own allocations; what is mapped is the file's."""
    state = {str(i): torch.full((1000, 1000), float(i)) for i in range(8)}
    torch.save(state, tmp_path / "w.bin")
    tracemalloc.start()
    file = TorchFile(tmp_path / "w.bin")
    total = sum(float(np.array(file[name]).sum()) for name in file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 28e6
    assert peak < 6e6  # one copy of 4 MB
    open_maps = pathlib.Path("/proc/self/maps").read_text().count(str(tmp_path))
    assert open_maps == 0


class Runs:
    """What a pickle can make its reader do."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(
    tmp_path: pathlib.Path, protocol: int
):
    trace = tmp_path / "trace"
    content = pickled({"a": whole(), "b": Runs(os.system, f"touch {trace}")}, protocol)
    path = write(tmp_path / "w.bin", content)
    refused(path, r"the pickle names 'posix\.system', which no plain state dict needs: refused")
    assert not trace.exists()


def doubled(times: int) -> bytes:
    """A tuple of two of a tuple of two …: 2**times values if somebody walks through it, and few bytes."""
    twice = (b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(times))
    return b"()q\x00" + b"".join(twice) + b"t"


def persistent(identity: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + identity + b"Qs."


HOSTILE: dict[str, tuple[Any, str]] = {
    "doubled": (
        b"\x80\x02}X\x01\x00\x00\x00a" + doubled(200) + b"s.",
        "'a': expected a tensor, got tuple",
    ),
    "doubled key": (b"\x80\x02}" + doubled(200) + b"Ns.", "keys of a state dict, got tuple"),
    "doubled id": (persistent(doubled(200)), "a storage, got another persistent id"),
    "doubled arguments": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + doubled(200) + b"R.",
        "the usual arguments of torch._utils._rebuild_tensor_v2",
    ),
    "id of a number": (persistent(b"K\x01"), "a storage, got another persistent id"),
    "id of a dictionary": (persistent(b"}"), "a storage, got another persistent id"),
    "id of a class": (
        persistent(b"ccollections\nOrderedDict\n"),
        "a storage, got another persistent id",
    ),
    "id of six": (
        persistent(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nNNK\x06Nt"),
        "a storage, got another persistent id",
    ),
    "id without a name": (
        persistent(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nNNK\x06t"),
        "a storage's name and number of elements",
    ),
    "id of a truth": (
        persistent(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N\x88t"),
        "a storage's name and number of elements",
    ),
    "memo of a mark": (b"\x80\x02(q\x00h\x00}.", "damaged"),
    "dictionary in itself": (
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "'a': expected a tensor, got dict",
    ),
    "deep": (b"\x80\x02" + b")" + b"\x85" * 10**5 + b".", "a state dict, got tuple"),
    "protocol 0": (pickled({"a": 1}, 0), "the pickle opcode DICT"),
    "protocol 1": (
        pickled({"a": 1}, 1),
        "the pickle opcode SETITEM|'a': expected a tensor, got int",
    ),
    "surrogate": (b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.", "expected a tensor, got int"),
    "line break": ({"a\nb": 1}, r"'a\\nb': expected a tensor"),
    "negative offset": ({"a": View(Saved("0", 6), -1, (6,), (1,))}, "the usual arguments"),
    "negative stride": ({"a": View(Saved("0", 6), 5, (6,), (-1,))}, "the usual arguments"),
    "overlapping rows": ({"a": View(Saved("0", 6), 0, (3, 3), (1, 1))}, "does not fit into the 6"),
    "truth as a size": ({"a": View(Saved("0", 6), 0, (True, 6), (6, 1))}, "the usual arguments"),
    "no rows of 2**62": ({"a": View(Saved("0", 6), 0, (0, 2**62), (1, 1))}, "does not fit into"),
    "step of a key": ({"a": whole("0/../0")}, r"its storage '0/\.\./0' is not in the file"),
    "complex": (
        {"a": View(Saved("0", 3, torch.ComplexFloatStorage), 0, (3,), (1,))},
        "'torch.ComplexFloatStorage'",
    ),
    "eval": ({"a": Runs(eval, "1/0")}, r"'(__builtin__|builtins)\.eval'"),
    "getattr": ({"a": Runs(getattr, "", "x")}, r"'(__builtin__|builtins)\.getattr'"),
    "another torch name": ({"a": Runs(torch.load, "x")}, r"'torch\.serialization\.load'"),
    "INST": (b"\x80\x02}(X\x01\x00\x00\x00aS'true'\nios\nsystem\ns.", "opcode STRING|opcode INST"),
    "INST alone": (b"\x80\x02(ios\nsystem\n.", "opcode INST of 'os system'"),
    "OBJ": (b"\x80\x02(ccollections\nOrderedDict\no.", "opcode OBJ"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "EXT1": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "PERSID": (b"\x80\x02Pstorage\n.", "opcode PERSID of 'storage'"),
    "attributes": (b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "an object with attributes"),
    "memo index": (b"\x80\x02}r\xff\xff\xff\xff0.", "opcode POP"),
    "memo empty": (b"\x80\x02h\x05.", "damaged: nothing was stored under 5"),
    "stack empty": (b"\x80\x02R.", "damaged: too few values"),
    "no STOP": (b"\x80\x02}", "damaged"),
    "text length": (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
    "no dictionary": ([], "opcode EMPTY_LIST"),
    "a tensor": (whole(), "expected a state dict, got Tensor"),
    "a number": ({"a": whole(), "step": 3}, "'step': expected a tensor, got int"),
    "nested": ({"state_dict": {"a": whole()}}, "'state_dict': expected a tensor, got dict"),
    "number as a key": ({3: whole()}, "expected names as the keys of a state dict, got int"),
    "tuples as keys": (b"\x80\x02})" + b"\x86".join([b"2"] * 3), "opcode DUP"),
    "twice": (
        pickled({"a": whole(), "b": whole()}).replace(b"\x01\x00\x00\x00b", b"\x01\x00\x00\x00a"),
        "'a' is there twice",
    ),
    "too long": (b"\x80\x02" + b"N" * torch_pickle.MAX_BYTES, "a pickle of at most 2097152 bytes"),
    "negated": (
        {"a": View(Saved("0", 6), 0, (2, 3), (3, 1), extra=({"neg": True},))},
        "the usual arguments of torch._utils._rebuild_tensor_v2",
    ),
    "storage class": ({"a": View(Saved("0", 6, torch.device), 0, (6,), (1,))}, "'torch.device'"),
    "negative size": ({"a": View(Saved("0", 6), 0, (-2, 3), (3, 1))}, "the usual arguments"),
    "fraction": ({"a": View(Saved("0", 6), 0.5, (2, 3), (3, 1))}, "the usual arguments"),
    "many dimensions": ({"a": View(Saved("0", 6), 0, (1,) * 99, (1,) * 99)}, "the usual arguments"),
    "no storage": ({"a": whole("7")}, "'a': its storage '7' is not in the file"),
    "outside": ({"a": whole("../data.pkl")}, r"its storage '\.\./data.pkl' is not in the file"),
    "short": ({"a": View(Saved("0", 7), 0, (2, 3), (3, 1))}, "expected 28 bytes, got 24"),
    "long": (
        {"a": View(Saved("0", 2**62), 0, (2, 3), (3, 1))},
        "expected 18446744073709551616 bytes",
    ),
    "offset": ({"a": View(Saved("0", 6), 1, (2, 3), (3, 1))}, "does not fit into the 6 elements"),
    "stride": ({"a": View(Saved("0", 6), 0, (2, 3), (2**40, 1))}, "does not fit into the 6"),
    "expanded": ({"a": View(Saved("0", 6), 0, (2**40,), (0,))}, "does not fit into the 6"),
    "two types": (
        {"a": whole(), "b": View(Saved("0", 12, torch.HalfStorage), 0, (12,), (1,))},
        "storage '0' has two types or lengths",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path: pathlib.Path, case: str):
    state, message = HOSTILE[case]
    refused(write(tmp_path / "w.bin", state), message)


def change(path: pathlib.Path, before: bytes, after: bytes, which: int = 0) -> None:
    """Replaces one occurrence of some bytes (the first, or -1 the last)."""
    data = path.read_bytes()
    place = data.rfind(before) if which else data.find(before)
    assert place >= 0
    path.write_bytes(data[:place] + after + data[place + len(before) :])


def test_damaged_and_hostile_archives_are_refused(tmp_path: pathlib.Path):
    path = tmp_path / "w.bin"
    state = {"a": whole()}
    write(path, state, compression=zipfile.ZIP_DEFLATED)
    refused(path, "expected it uncompressed, got compressed")
    write(path, state, {"0": bytes(24), "1": bytes(2**24)}, zipfile.ZIP_DEFLATED)  # a zip bomb
    refused(path, "expected it uncompressed, got compressed")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{PREFIX}/data.pkl", pickled(state))
        archive.writestr(f"{PREFIX}/data.pkl", pickled(state))
    refused(path, "entry 'archive/data.pkl' is there twice")
    for name in ("other/data/1", "/etc/passwd", f"{PREFIX}/../../x"):
        write(path, state)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"")
        refused(path, f"expected all entries in 'archive/', got '{name}'")
    write(path, state)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("deeper/data.pkl", b"")
    refused(path, "expected one data.pkl in it, got 2")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    refused(path, "expected one data.pkl in it, got 0")
    write(path, state, byteorder=b"big")
    refused(path, "byteorder: expected 'little', got another")
    write(path, state, **{"constants.pkl": b""})
    refused(path, "a TorchScript program")


def patched(path: pathlib.Path, local: int, central: int, value: bytes) -> None:
    """Changes a field of every entry, in its own header and in the directory."""
    data = bytearray(path.read_bytes())
    for record, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        place = -1
        while (place := data.find(record, place + 1)) >= 0:
            data[place + offset : place + offset + len(value)] = value
    path.write_bytes(data)


def test_entries_of_other_kinds_are_refused(tmp_path: pathlib.Path):
    path, state = tmp_path / "w.bin", {"a": whole()}
    patched(write(path, state), 6, 8, b"\1\0")
    refused(path, "entry 'archive/data.pkl' is encrypted")
    for method in (8, 9, 12, 14, 93, 99):  # deflate, deflate64, bzip2, LZMA, zstd, AES
        patched(write(path, state), 8, 10, struct.pack("<H", method))
        refused(path, "entry 'archive/data.pkl': expected it uncompressed, got compressed")
    for size in (2**31, 2**32 - 1):
        patched(write(path, state), 18, 20, struct.pack("<2L", size, size))
        refused(path, "overlap|are not in the file|not a whole zip file")
    for name in ("./archive/data/1", "archive\\data\\1", "C:/x", "archive/data/.."):
        write(path, state)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"")
        refused(path, "expected all entries in 'archive/', got")
    write(path, state)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a comment"
    refused(path, "not a whole zip file")
    path.write_bytes(write(path, state).read_bytes() + bytes(100))
    refused(path, "not a whole zip file")
    path.write_bytes(b"#!/bin/sh\n" + write(path, state).read_bytes())
    refused(path, "expected a file of torch.save")


def test_long_entries_are_read(tmp_path: pathlib.Path):
    """Those with 64-bit sizes, as torch writes them above 4 GiB."""
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr(f"{PREFIX}/data.pkl", pickled({"a": whole()}))
        with archive.open(f"{PREFIX}/data/0", "w", force_zip64=True) as entry:
            entry.write(np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(TorchFile(tmp_path / "w.bin")["a"], [[0, 1, 2], [3, 4, 5]])


def test_bytes_that_changed_are_found(tmp_path: pathlib.Path):
    path = write(tmp_path / "w.bin", {"a": whole()})
    change(path, np.float32(4).tobytes(), np.float32(5).tobytes())
    refused(path, "archive/data/0 is damaged: expected the CRC-32 [0-9a-f]{8}, got")
    write(path, {"name": whole()})
    change(path, b"name", b"nome")
    refused(path, "archive/data.pkl is damaged: expected the CRC-32")
    content = path.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path, "not a whole zip file")


def test_entries_that_share_bytes_are_refused(tmp_path: pathlib.Path):
    """The directory's record of one entry is pointed at the header of another, and lengthened over the next."""
    path = tmp_path / "w.bin"
    two = {"0": np.arange(6, dtype=np.float32).tobytes(), "1": bytes(24)}
    write(path, {"a": whole(), "b": whole("1")}, two)
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"{PREFIX}/data/{key}") for key in "01")
    place = struct.pack("<L", second.header_offset)
    change(
        path,
        place + b"archive/data/1",
        struct.pack("<L", first.header_offset) + b"archive/data/1",
        -1,
    )
    refused(path, "another header at entry 'archive/data/1'")
    write(path, {"a": whole(), "b": whole("1")}, two)
    data = bytearray(path.read_bytes())
    record = data.rfind(b"archive/data/0") - 46
    data[record + 20 : record + 28] = struct.pack("<2L", 60, 60)
    path.write_bytes(data)
    refused(path, "entries 'archive/data/0' and 'archive/data/1' overlap")
    data[record + 20 : record + 28] = struct.pack("<2L", 2**31, 2**31)
    path.write_bytes(data)
    refused(path, "overlap|are not in the file")


def test_a_directory_longer_than_any_is_refused_before_it_is_read(tmp_path: pathlib.Path):
    path = write(tmp_path / "w.bin", {"a": whole()})
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<L", 2**31)
    path.write_bytes(data)
    refused(path, "expected a zip directory of at most 4194304 bytes, got 2147483648")


def test_other_formats_are_named(tmp_path: pathlib.Path):
    path = tmp_path / "w.bin"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refused(path, "the format of torch before 1.6, expected the zip format: load it with torch 1.6")
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    refused(path, "the format of torch before 1.6")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    refused(path, "a pointer of Git LFS, expected the file itself")
    path.write_bytes(b"")
    refused(path, "expected a file of torch.save, got another or a damaged one")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(path, "a TorchScript program")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, r"the pickle names 'torch\.nn\.modules\.linear\.Linear'")
    torch.save({"a": torch.ones(2).to_sparse()}, path)
    refused(path, "the pickle names 'torch._utils._rebuild_sparse_tensor'")


def test_damage_at_random_is_never_more_than_a_line(tmp_path: pathlib.Path):
    """Flipped bits, cuts and bytes that are there twice: the same numbers or one line."""
    state = {"a": torch.arange(40.0).reshape(5, 8), "b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "w.bin")
    content = (tmp_path / "w.bin").read_bytes()
    damaged = tmp_path / "d.bin"
    for seed in range(300):
        rng = random.Random(seed)
        data = bytearray(content)
        place = rng.randrange(len(data))
        if seed % 3 == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif seed % 3 == 1:
            del data[place:]
        else:
            data[place:place] = data[place : place + rng.randrange(1, 99)]
        damaged.write_bytes(data)
        try:
            assert_equal(TorchFile(damaged), state)
        except UserError as error:
            assert "\n" not in str(error), seed
        except AssertionError:
            raise AssertionError(f"seed {seed}: other numbers were read") from None
