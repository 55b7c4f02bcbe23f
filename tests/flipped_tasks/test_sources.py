"""Reading rows from files and as a SeqIO source."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from flipped_core.errors import UserError
from flipped_tasks import sources
from flipped_tasks.row_source import RowSource
from mixtures import catalog  # noqa: F401


def review(number, label=1):
    return {"text": f"review {number}", "label": label}


def write(folder, rows, dataset="imdb", split="train", suffix=".jsonl"):
    place = folder / dataset.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (place / f"{split}{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return str(folder)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_are_read_as_they_are(tmp_path, suffix):
    rows = [{"text": "a ||| b {{ c }}\n", "label": 0, "more": {"x": [None, 1]}}, review(1)]
    assert sources.load_rows("imdb", "train", write(tmp_path, rows, suffix=suffix)) == rows


def test_parquet_keeps_nesting_and_null(tmp_path):
    rows = [
        {"id": None, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
        {"id": "2", "choices": {"text": ["c"], "label": ["A"]}, "answerKey": ""},
    ]
    (tmp_path / "openbookqa__main").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "openbookqa__main" / "test.parquet")
    assert sources.load_rows("openbookqa/main", "test", str(tmp_path)) == rows


def test_a_bad_line_is_named(tmp_path):
    data = write(tmp_path, [review(0)])
    with (tmp_path / "imdb" / "train.jsonl").open("a") as file:
        file.write('\n{"text": \n')
    with pytest.raises(UserError, match=r"train\.jsonl, line 3: not JSON"):
        sources.load_rows("imdb", "train", data)


def test_a_line_that_is_no_object_is_named(tmp_path):
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "train.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: expected an object, got list"):
        sources.load_rows("imdb", "train", str(tmp_path))


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.parquet"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / name).write_bytes(b"not what it says")
    with pytest.raises(UserError, match=f"cannot read .*{name}"):
        sources.load_rows("imdb", "train", str(tmp_path))


def test_missing_folders_and_splits_tell_what_is_near(tmp_path):
    data = write(tmp_path, [review(0)], split="train")
    with pytest.raises(UserError, match="unknown split .*'trian'.*nearest: 'train'"):
        sources.load_rows("imdb", "trian", data)
    with pytest.raises(UserError, match="glue__mrpc"):
        sources.load_rows("glue/mrpc", "train", data)
    with pytest.raises(UserError, match="does not exist"):
        sources.load_rows("imdb", "train", str(tmp_path / "nowhere"))


def test_the_embedded_world_is_read_without_a_folder():
    rows = sources.load_rows("super_glue/rte", "validation")
    assert rows and {"premise", "hypothesis", "label"} <= set(rows[0])
    with pytest.raises(UserError, match="'validation'"):
        sources.load_rows("super_glue/rte", "validaton")


def test_unlabelled_rows_are_dropped_and_counted_with_their_numbers_kept(tmp_path):
    data = write(tmp_path, [review(0), review(1, -1), review(2, None), review(3, 0)])
    found = sources.labelled_payloads("imdb", "train", data)
    assert found.dropped == {"unlabelled": 2}
    assert found.numbers.tolist() == [0, 3]
    assert [json.loads(row)["label"] for row in found.rows] == [1, 0]


def test_a_wrong_label_names_its_row(tmp_path):
    data = write(tmp_path, [review(0), review(1, 2)])
    with pytest.raises(
        UserError, match=r"dataset 'imdb', row 2: column 'label': expected one of 0, 1, got 2"
    ):
        sources.labelled_payloads("imdb", "train", data)


def test_no_labelled_row_is_an_error(tmp_path):
    data = write(tmp_path, [review(0, -1)])
    with pytest.raises(UserError, match="no example is left .1 unlabelled"):
        sources.labelled_payloads("imdb", "train", data)


def test_a_large_split_is_sampled_down_once_in_its_own_order(tmp_path):
    data = write(tmp_path, [review(number) for number in range(50)])
    found = sources.labelled_payloads("imdb", "train", data, 10)
    again = sources._labelled_payloads.__wrapped__("imdb", "train", data, 10, None)
    assert len(found) == 10 and found.rows == again.rows
    assert np.all(np.diff(found.numbers) > 0) and found.numbers[-1] >= 10
    assert [json.loads(row)["text"] for row in found.rows] == [f"review {n}" for n in found.numbers]


def numbers(source, **how):
    return [int(row["number"]) for row in source.get_dataset("train", **how).as_numpy_iterator()]


def test_the_source_permutes_the_whole_split_by_seed(tmp_path):
    data = write(tmp_path, [review(number) for number in range(600)])
    source = RowSource(
        "imdb",
        lambda split: sources.labelled_payloads("imdb", split, data),
        lambda: sources.split_names("imdb", data),
    )
    assert numbers(source, shuffle=False) == list(range(600))
    first = numbers(source, shuffle=True, seed=1)
    assert sorted(first) == list(range(600)) and first != sorted(first)
    assert first == numbers(source, shuffle=True, seed=1) != numbers(source, shuffle=True, seed=2)
    assert source.splits == ("train",) and source.num_input_examples("train") == 600
