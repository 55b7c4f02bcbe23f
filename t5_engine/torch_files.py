"""`pytorch_model.bin` as torch 1.6 and later write it, without torch: a zip of a pickle and of the storages.

The pickle is interpreted by `t5_engine.torch_pickle`, which runs nothing. Storages stand uncompressed in the file and
are mapped into memory one at a time, so that a tensor takes no memory but what is made of it.
"""

from __future__ import annotations

import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import ml_dtypes
import numpy as np

from flipped_core.errors import UserError
from t5_engine import torch_pickle
from t5_engine.torch_pickle import Storage, Tensor

_END = struct.Struct("<4s4H2LH")  # zip: end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_LFS = b"version https://git-lfs"
_MAX_DIRECTORY = 2**22  # bytes; T5 XXL's takes some 60 kB
_UTF8, _ENCRYPTED = 0x800, 0x1
_RESAVE = "load it with torch 1.6 or later where you trust it, and torch.save the state dict anew"


class TorchFile(Mapping[str, np.ndarray]):
    """The tensors of one file by name, each a read-only view of the file.

    A storage's CRC-32 is checked when a tensor of it is first read.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the names and shapes, no tensors.

        Raises:
          UserError: no such file, another format, a pickle with anything but tensors, or places that are not in
            the file; one line, and nothing of the file is run.
        """
        self._path = path
        _refuse_other_formats(path)
        self._entries = _entries(path)
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: expected one data.pkl in it, got {len(pickles)}")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._refuse_other_entries()
        self._has_checksums = any(entry.CRC for entry, _ in self._entries.values())
        self._read: set[str] = set()
        entry, _ = self._entries[pickles[0]]
        if entry.file_size > torch_pickle.MAX_BYTES:
            raise UserError(
                f"{path}: expected a pickle of at most {torch_pickle.MAX_BYTES} bytes, got {entry.file_size}"
            )
        data = self._checked(pickles[0]).tobytes()
        self._tensors = torch_pickle.read_state_dict(data, str(path))
        storages: dict[str, Storage] = {}
        for name, tensor in self._tensors.items():
            self._check(name, tensor)
            if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
                raise UserError(
                    f"{path}: storage {tensor.storage.key!r} has two types or lengths, one for {name[:200]!r}"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        dtype = _dtype(tensor.storage)
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        return np.ndarray(
            tensor.shape,
            dtype,
            buffer=self._checked(self._entry_name(tensor.storage)),
            offset=tensor.offset * dtype.itemsize,
            # The stride of a dimension of one element means nothing and may be any number.
            strides=[
                stride * dtype.itemsize if size > 1 else 0
                for stride, size in zip(tensor.strides, tensor.shape, strict=True)
            ],
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def _entry_name(self, storage: Storage) -> str:
        return f"{self._prefix}data/{storage.key}"

    def _refuse_other_entries(self) -> None:
        for name in self._entries:
            if not name.startswith(self._prefix) or ".." in name.split("/"):
                raise UserError(
                    f"{self._path}: expected all entries in {self._prefix!r}, got {name!r}"
                )
        order = f"{self._prefix}byteorder"
        if order in self._entries and self._mapped(order)[:16].tobytes() != b"little":
            raise UserError(f"{self._path}: byteorder: expected 'little', got another")

    def _check(self, name: str, tensor: Tensor) -> None:
        """Refuses a tensor that is not wholly in its storage, and a storage that is not wholly in the file."""
        storage = tensor.storage
        where = f"{self._path}: {name[:200]!r}"
        if self._entry_name(storage) not in self._entries:
            raise UserError(f"{where}: its storage {storage.key!r} is not in the file")
        got = self._entries[self._entry_name(storage)][0].file_size
        expected = storage.numel * _dtype(storage).itemsize
        if got != expected:
            raise UserError(
                f"{where}: storage {storage.key!r}: expected {expected} bytes, got {got}"
            )
        if not _fits(tensor):
            raise UserError(
                f"{where}: shape {list(tensor.shape)} with strides {list(tensor.strides)} from "
                f"{tensor.offset} does not fit into the {storage.numel} elements of storage {storage.key!r}"
            )

    def _checked(self, entry_name: str) -> np.ndarray:
        """The bytes of an entry, mapped; the first time they are compared with its checksum."""
        data = self._mapped(entry_name)
        if self._has_checksums and entry_name not in self._read:
            expected = self._entries[entry_name][0].CRC
            if (got := zlib.crc32(data.data)) != expected:
                raise UserError(
                    f"{self._path}: {entry_name} is damaged: expected the CRC-32 {expected:08x}, got {got:08x}"
                )
        self._read.add(entry_name)
        return data

    def _mapped(self, entry_name: str) -> np.ndarray:
        entry, start = self._entries[entry_name]
        if not entry.file_size:
            return np.empty(0, np.uint8)
        try:
            return np.memmap(self._path, np.uint8, "r", start, (entry.file_size,))
        except (OSError, ValueError) as error:  # it has been cut or deleted since
            raise UserError(f"{self._path}: cannot be read: {error}") from None


def _dtype(storage: Storage) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _fits(tensor: Tensor) -> bool:
    """Whether all elements are in the storage and no element is there twice, as a stride of 0 would make it."""
    if 0 in tensor.shape:
        return math.prod(filter(None, tensor.shape)) < 2**40  # numpy refuses what overflows
    last = tensor.offset
    reach = 1  # the elements from the first to the last of the dimensions so far, from the smallest stride on
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride < reach:
            return False
        last += (size - 1) * stride
        reach += (size - 1) * stride
    return last < tensor.storage.numel


def _refuse_other_formats(path: pathlib.Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head.startswith(_ZIP):
        return
    if head.startswith(_LEGACY) or head[257:262] == b"ustar":
        raise UserError(
            f"{path}: the format of torch before 1.6, expected the zip format: {_RESAVE}"
        )
    if head.startswith(_LFS):
        raise UserError(f"{path}: a pointer of Git LFS, expected the file itself: git lfs pull")
    raise UserError(f"{path}: expected a file of torch.save, got another or a damaged one")


def _entries(path: pathlib.Path) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Name → entry, and where its bytes start in the file.

    Raises:
      UserError: the directory is damaged or too long, an entry is compressed, encrypted or there twice, or two
        share bytes.
    """
    with open(path, "rb") as file:
        _refuse_long_directory(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                listed, end = archive.infolist(), archive.start_dir
            found = [(entry, *_place(file, entry)) for entry in listed]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as e:
            raise UserError(f"{path}: not a whole zip file: {e}") from None
    if any(entry.filename.endswith("/constants.pkl") for entry in listed):
        raise UserError(f"{path}: expected a state dict, got a TorchScript program")
    entries: dict[str, tuple[zipfile.ZipInfo, int]] = {}
    before, before_name = 0, ""
    for entry, header, start in sorted(found, key=lambda one: one[1]):
        name = entry.orig_filename
        if name in entries:
            raise UserError(f"{path}: entry {name!r} is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise UserError(f"{path}: entry {name!r}: expected it uncompressed, got compressed")
        if entry.flag_bits & _ENCRYPTED:
            raise UserError(f"{path}: entry {name!r} is encrypted")
        if header < before:
            raise UserError(f"{path}: entries {before_name!r} and {name!r} overlap")
        before, before_name = start + entry.file_size, name
        if before > end:
            raise UserError(f"{path}: entry {name!r}: {entry.file_size} bytes are not in the file")
        entries[name] = entry, start
    return entries


def _place(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where an entry's own header and its bytes start; `BadZipFile` where that header is of another entry."""
    header = _read_at(file, entry.header_offset, _LOCAL)
    if header[0] != _ZIP:
        raise zipfile.BadZipFile(f"no header of entry {entry.orig_filename!r}")
    name_length, extra_length = header[9:]
    name = os.pread(file.fileno(), name_length, entry.header_offset + _LOCAL.size)
    same = name.decode("utf-8" if header[2] & _UTF8 else "cp437") == entry.orig_filename
    if not same or entry.filename != entry.orig_filename or header[3] != entry.compress_type:
        raise zipfile.BadZipFile(f"another header at entry {entry.orig_filename!r}")
    start = entry.header_offset + _LOCAL.size + name_length + extra_length
    return entry.header_offset, start


def _refuse_long_directory(path: pathlib.Path, file: BinaryIO) -> None:
    """Looks at the very records that `zipfile` will use, before it reads as much as they say."""
    size = os.fstat(file.fileno()).st_size
    try:
        end = _read_at(file, size - _END.size, _END)
        if end[0] != b"PK\x05\x06" or end[-1]:
            raise zipfile.BadZipFile("its end is missing")
        length = end[5]
        place = size - _END.size - _LOCATOR64.size
        if place < 0:
            return  # a zip file without entries
        locator = _read_at(file, place, _LOCATOR64)
        if locator[0] == b"PK\x06\x07":
            place -= _END64.size
            end64 = _read_at(file, place, _END64)
            if locator[2] != place or end64[0] != b"PK\x06\x06":
                raise zipfile.BadZipFile("its end is damaged")
            length = end64[8]
    except (zipfile.BadZipFile, OSError, struct.error) as error:
        raise UserError(f"{path}: not a whole zip file: {error}") from None
    if length > _MAX_DIRECTORY:
        raise UserError(
            f"{path}: expected a zip directory of at most {_MAX_DIRECTORY} bytes, got {length}"
        )


def _read_at(file: BinaryIO, place: int, record: struct.Struct) -> Sequence:
    return record.unpack(os.pread(file.fileno(), record.size, place))
