"""What a row may hold, from every source: the same value, or the same refusal."""

import datetime
import decimal
import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from flipped_core.errors import UserError
from flipped_tasks import sources
from flipped_tasks.datasets import DatasetSpec
from flipped_tasks.files import read_csv, read_file, split_files
from flipped_tasks.own_rows import OwnRows
from flipped_tasks.row_values import clean_row, read_line
from mixtures import catalog  # noqa: F401

LABELLED = {"text": "string", "label": "int"}


def lines_of(path, columns=LABELLED):
    return [json.loads(line) for line in read_file(path, columns)]


def from_json(folder, row, columns=LABELLED):
    path = folder / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return lines_of(path, columns)[0]


def from_parquet(folder, row, columns=LABELLED):
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    return lines_of(path, columns)[0]


def from_program(folder, row, columns=LABELLED):
    return json.loads(OwnRows("mine", {"train": [row]}, columns).payloads("train")[0])


def from_csv(folder, row, columns=LABELLED):
    path = folder / "train.csv"
    cells = ["" if cell is None else str(cell) for cell in row.values()]
    path.write_text(",".join(row) + "\n" + ",".join(cells) + "\n")
    return next(read_csv(path, columns))


ALL = (from_json, from_parquet, from_program, from_csv)


@pytest.mark.parametrize("read", ALL)
@pytest.mark.parametrize("kind", ["int", "any"])
@pytest.mark.parametrize(
    "given, label", [(0.0, 0), (1.0, 1), (-1.0, -1), (None, None), (1, 1), (True, True)]
)
def test_labels_as_pandas_writes_them(tmp_path, read, kind, given, label):
    row = read(tmp_path, {"text": "a", "label": given}, {"text": "string", "label": kind})
    assert row == {"text": "a", "label": label}
    assert not isinstance(row["label"], float)


@pytest.mark.parametrize("read", [from_json, from_parquet, from_program])
def test_nan_is_null_and_infinity_is_refused(tmp_path, read):
    assert read(tmp_path, {"text": "a", "label": float("nan")})["label"] is None
    with pytest.raises(UserError, match="row? 1: column 'label': expected a finite number|line 1"):
        read(tmp_path, {"text": "a", "label": float("inf")})


@pytest.mark.parametrize("read", ALL)
@pytest.mark.parametrize("label", [0.5, "yes"])
def test_a_value_of_another_type_is_refused_with_its_column(tmp_path, read, label):
    with pytest.raises(UserError, match=r"(line|row) [12]: column 'label': expected"):
        read(tmp_path, {"text": "a", "label": label})


@pytest.mark.parametrize("read", [from_json, from_program])
def test_half_a_character_is_refused(tmp_path, read):
    row = {"text": "a", "more": {"list": ["cut \ud83d"]}, "label": 0}
    with pytest.raises(UserError, match=r"column 'more.list\[0\]': expected text that UTF-8"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    "text, told",
    [
        ('{"label": 99999999999999999999}', "column 'label': expected a whole number of 64 bits"),
        ('{"label": ' + "9" * 5000 + "}", "column 'label': expected a whole number of 64 bits"),
        ('{"label": 9223372036854775808}', "64 bits"),
        ('{"label": 0, "label": 1}', "expected each key once, got 'label' twice"),
        ('{"a": {"b": 1, "b": 2}}', "expected each key once, got 'b' twice"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "at most 64 deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "at most 64 deep"),
        ('{"a": 1e999}', "expected a finite number"),
        ('{"a": -Infinity}', "expected a finite number, got -inf"),
        ("[1]", "expected an object, got list"),
        ('{"a": 1} {"a": 2}', "not JSON: Extra data at column 10"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_a_line_that_holds_no_row(text, told):
    with pytest.raises(UserError, match=f"x, line 1: .*{told}"):
        read_line(text.encode(), {}, "x, line 1")


def test_encodings(tmp_path):
    row = {"text": "é", "label": 0}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("utf-8-sig") * 2)  # as `cat a b` joins two files
    assert lines_of(path) == [row, row]
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match="line 1: expected UTF-8, got UTF-16 or UTF-32"):
            lines_of(path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="line 1: expected UTF-8, got another byte at 10"):
        lines_of(path)
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match="got gzip; its name must end with .gz"):
        lines_of(path)
    table = tmp_path / "a.csv"
    table.write_bytes("text,label\né,0\n".encode("utf-8-sig"))
    assert list(read_csv(table, LABELLED)) == [row]
    table.write_bytes("text,label\né,0\n".encode("utf-16"))
    with pytest.raises(UserError, match="a.csv, line 1: expected UTF-8, got UTF-16"):
        list(read_csv(table, LABELLED))
    table.write_bytes("text,label\né,0\n".encode("latin-1"))
    with pytest.raises(UserError, match="a.csv, line 2: expected UTF-8, got another byte"):
        list(read_csv(table, LABELLED))


def test_only_a_line_feed_ends_a_line(tmp_path):
    row = {"text": "a\u2028b\u2029c\x85d\re\x0bf\x0cg\x1ch", "label": 0}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert lines_of(path) == [row]


def test_python_and_numpy_values(tmp_path):
    row = {
        "numbers": np.arange(2),
        "flag": np.bool_(True),
        "float": np.float32(0.5),
        "text": np.str_("t"),
        "day": datetime.date(2020, 1, 2),
        "time": datetime.datetime(2020, 1, 2, 3),
        "money": decimal.Decimal("2.50"),
        "whole": decimal.Decimal("2.00"),
        "bytes": "é".encode(),
        "pair": (1, None),
        "missing": float("nan"),
    }
    assert clean_row(row, "row 1") == {
        "numbers": [0, 1], "flag": True, "float": 0.5, "text": "t", "day": "2020-01-02",
        "time": "2020-01-02T03:00:00", "money": 2.5, "whole": 2, "bytes": "é", "pair": [1, None],
        "missing": None,
    }  # fmt: skip
    for value in (b"\xff", {1, 2}, object(), {1: 2}, 1 << 64, np.uint64(1 << 63), 1j):
        with pytest.raises(UserError, match="row 1: .*column|row 1: column"):
            clean_row({"x": value}, "row 1")
    loop = []
    loop.append(loop)
    with pytest.raises(UserError, match="at most 64 deep"):
        clean_row({"x": loop}, "row 1")


def test_parquet_types_and_columns_of_one_name(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a"], "label": pyarrow.array([1], pyarrow.decimal128(5, 0))})
    pyarrow.parquet.write_table(table, path)
    assert lines_of(path) == [{"text": "a", "label": 1}]
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["label", "label"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match="each column once, got 'label' twice"):
        lines_of(path)


@pytest.mark.parametrize(
    "text, told",
    [
        ("text,label,label\na,0,1\n", "each column once in the header, got 'label' twice"),
        ("text,label\na,1_0\n", "line 2: column 'label': expected a whole number, got '1_0'"),
        ("text,label\na," + "9" * 30, "line 2: column 'label': expected a whole number"),
        ('text,label\n"a,0\n', "line 2: not CSV: unexpected end of data"),
        ("text,label\ra,0\r", "line 1: not CSV"),
        ("text,label\na\n", "line 2: expected 2 cells as in the header, got 1"),
        ("text,label\na,0,1,2\n", "line 2: expected 2 cells as in the header, got 4"),
        ('more\n"{""a"": [1], ""a"": [2]}"\n', "line 2: column 'more': expected each key once"),
        ('more\n"{""a"": [99999999999999999999]}"\n', "a whole number of 64 bits"),
        ('more\n"[[1]"\n', "line 2: column 'more': not JSON"),
        ("text,label\n" + "a" * (9 << 20), "line 2: expected at most 8,388,608 bytes"),
    ],
)
def test_csv_mistakes(tmp_path, text, told):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        list(read_csv(path, LABELLED | {"more": {"a": ["any"]}}))


@pytest.mark.parametrize(
    "names, told",
    [
        (["train.csv", "train.jsonl"], "one file for split 'train', got train.csv, train.jsonl"),
        (["train.jsonl", "train.jsonl.gz"], "one file for split 'train'"),
        (["train.csv", "train-00000-of-00001.csv"], "one file for split 'train'"),
        (["train-00000-of-00002.csv"], "each of the 2 parts of split 'train' once"),
        (["train-00000-of-00002.csv", "train-00000-of-00002.jsonl"], "each of the 2 parts"),
    ],
)
def test_two_files_for_one_split_are_refused_by_every_source(tmp_path, names, told):
    folder = tmp_path / "imdb"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("text,label\na,0\n")
    with pytest.raises(UserError, match=told):
        split_files(folder)
    with pytest.raises(UserError, match=told):
        sources.load_rows("imdb", "train", str(tmp_path))
    with pytest.raises(UserError, match=told):
        OwnRows("mine", str(folder), LABELLED).payloads("train")


def test_the_parts_of_a_split_are_one(tmp_path):
    for number in (1, 0):
        name = f"train-{number:05d}-of-00002.csv"
        (tmp_path / name).write_text(f"text,label\nrow {number},{number}\n")
    (tmp_path / "._train.csv").write_text("what macOS leaves")
    rows = OwnRows("mine", tmp_path, LABELLED)
    assert rows.splits() == ("train",)
    assert [json.loads(row)["label"] for row in rows.payloads("train")] == [0, 1]


def test_a_bomb_is_refused_by_its_proportion(tmp_path):
    line = b'{"text": "a", "label": 0}\n'
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(line * 40_000)
    with pytest.raises(UserError, match="expected at most 100 times its .* bytes to come out"):
        for _ in read_file(path, LABELLED):
            pass
    path.write_bytes(gzip.compress(b"0" * (1 << 24)))
    with pytest.raises(UserError, match="line 1: expected at most 8,388,608 bytes"):
        lines_of(path)
    path.write_bytes(gzip.compress(line * 1000)[:-40])
    with pytest.raises(UserError, match="cannot read"):
        lines_of(path)
    column = pyarrow.array(["x" * 1_000_000] * 200)
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), table, compression="zstd")
    with pytest.raises(UserError, match="expected at most 100 times its .* bytes to come out"):
        for _ in read_file(table, LABELLED):
            pass


SPEC = DatasetSpec("mine", "", {"label": "any"}, {}, label_column="label")


@pytest.mark.parametrize("label", [-1, -100, -1.0, "", " ", None, float("nan")])
def test_the_usual_signs_of_no_label(label):
    assert SPEC.check_row({"label": label}).reason == "unlabelled"


@pytest.mark.parametrize("label", [0, 1, True, "x", "-1", 0.5])
def test_labels(label):
    assert SPEC.check_row({"label": label}) is None


def test_a_label_below_0_that_is_allowed_is_one():
    spec = DatasetSpec(
        "mine", "", {"label": "any"}, {}, label_column="label", label_values=(-1, 0, 1)
    )
    assert spec.check_row({"label": -1}) is None
    with pytest.raises(UserError, match="row 2: column 'label': expected one of -1, 0, 1, got -2"):
        spec.check_row({"label": -2}, 2)
    with pytest.raises(UserError, match="expected a text or a number, got list"):
        SPEC.check_row({"label": [0]})


@pytest.mark.parametrize("row", [{"label": "a"}, {"label": "a", "c": [1]}, {"label": "a", "c": 3}])
def test_a_row_without_the_list_of_its_labels(row):
    spec = DatasetSpec("mine", "", {"label": "any"}, {}, label_column="label", label_in="c.d")
    with pytest.raises(UserError, match="column 'c.d': expected the list of the row's labels"):
        spec.check_row(row)


def test_rows_of_an_iterator_are_there_twice_and_a_failing_program_is_named():
    rows = OwnRows("mine", {"train": iter([{"text": "a", "label": 0}])}, LABELLED)
    assert rows.payloads("train") == rows.payloads("train") != []

    def broken():
        yield {"text": "a", "label": 0}
        raise KeyError("column")

    rows = OwnRows("mine", {"train": broken}, LABELLED)
    with pytest.raises(UserError, match="split 'train': source: after 1 rows: KeyError: 'column'"):
        rows.payloads("train")
    with pytest.raises(UserError, match="expected names of splits"):
        OwnRows("mine", {"a/b": []}, LABELLED)
