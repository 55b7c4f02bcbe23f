"""Files with a checksum: what was written comes back, anything else is refused by name."""

from __future__ import annotations

import json

import pytest

from flipped_core import sealed
from flipped_core.errors import UserError

OLDER = {"format", "a"}
VALUE = {"format": 3, "text": "é \u2028", "number": 0.1, "list": [1, None, True, -0.0, 10**30]}


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / "x.json"
    written = sealed.write_sealed(path, VALUE)
    assert sealed.read_sealed(path, 3, OLDER) == VALUE
    assert json.loads(path.read_text()) == written and set(written) - set(VALUE) == {"crc32"}


def test_every_bit_is_covered(tmp_path):
    """Each of its flips is refused, but for those of white space, which say the same."""
    path = tmp_path / "x.json"
    sealed.write_sealed(path, {"format": 3, "b": [0.5, "x"]})
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                assert sealed.read_sealed(path, 3, OLDER) == {"format": 3, "b": [0.5, "x"]}
                assert data[place] in b" \n"
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "value, refused",
    [
        ({"format": 2, "a": 1}, False),
        ({"format": 3, "a": 1}, True),
        ({"format": 4, "a": 1}, True),
        ({"format": "2", "a": 1}, True),
        ({"format": True, "a": 1}, True),
        ({"format": None, "a": 1}, True),
        ({"a": 1}, True),
        ({"format": 2, "a": 1, "crc3": "x"}, True),
        ({"format": 2, "a": 1, "crc32": "x"}, True),
    ],
)
def test_only_older_files_may_have_no_checksum(tmp_path, value, refused):
    """Not so one whose damage has hit the very names of format and checksum."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    if refused:
        with pytest.raises(UserError, match="not what was written there: .* checksum"):
            sealed.read_sealed(path, 3, OLDER)
    else:
        assert sealed.read_sealed(path, 3, OLDER)["a"] == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"{", b"[" * 100_000, b'{"a":NaN}', b'{"a":1e999}', b'{"a":1,"a":1}', b'{"a":"\\ud800"}', b"{} x",
     b'{"a":' + b"9" * 5000 + b"}", b"[]", b"null"],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="x.json: "):
        sealed.read_sealed(path, 3, OLDER)
