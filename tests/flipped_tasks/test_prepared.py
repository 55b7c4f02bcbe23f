"""Prepared datasets: rows come back exactly, files are written whole, runs go on, damage is found."""

from __future__ import annotations

import csv
import gzip
import json
import pathlib
import random
import shutil
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import seqio
import tensorflow_datasets as tfds

from flipped_core.errors import UserError
from flipped_tasks import batches, promptsource, sources
from flipped_tasks.datasets import DatasetSpec, dataset_names, get_dataset, usable_templates
from flipped_tasks.prepared import hub, origins, reading, writing
from flipped_tasks.prepared.schema import Schema
from flipped_tasks.rendering import Dropped, Rendered, compile_template, template_rng
from flipped_tasks.seqio_tasks import register_task
from mixtures import catalog

QA = DatasetSpec(
    name="test/qa",
    hub_id="someone/qa",
    columns={
        "id": "string",
        "tags": ["string"],
        "choices": {"text": ["string"], "label": ["string"]},
        "meta": {"author": "string", "inner": {"n": "int", "ns": ["int"]}},
        "label": "int",
    },
    splits={"train": 3},
    label_column="label",
    label_values=(0, 1, 2),
    label_names=("no", "yes", "perhaps"),
    unlabelled=(-1,),
)
ROWS: list[dict[str, Any]] = [
    {
        "id": "a ||| {{b}} <extra_id_0> é \x97 \u0000 end", "tags": ["", "x\n"],
        "choices": {"text": ["A", "B"], "label": ["1", "2\n"]},
        "meta": {"author": None, "inner": {"n": -(1 << 63), "ns": [0, None, 2]}}, "label": 0,
    },
    {"id": None, "tags": None, "choices": None, "meta": {"author": "", "inner": None}, "label": 1},
    {
        "id": "", "tags": [None, None], "choices": {"text": [], "label": None},
        "meta": None, "label": 2,
    },
]  # fmt: skip


def write(folder: pathlib.Path, dataset: str, rows: list[Any], split: str = "train") -> str:
    place = folder / dataset.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def reviews(count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"review {n} " + "x" * (n % 7), "label": -1 if n % 5 == 4 else n % 2}
        for n in range(count)
    ]


def prepare(dataset: str, source: str, data_dir: Any, **how: Any) -> tuple[Any, bool]:
    spec = get_dataset(dataset)
    origin = origins.open_origin(spec, source)
    return writing.prepare(spec, origin, str(data_dir), **how)


def stored(dataset: str, data_dir: Any) -> reading.Prepared:
    found = reading.find(dataset, str(data_dir))
    assert found is not None
    return found


def test_every_kind_of_value_comes_back_null_and_nesting_included() -> None:
    schema = Schema(QA)
    for number, row in enumerate(ROWS):
        example = schema.encode(row | {"not in the catalog": 1}, number)
        assert schema.decode(example) == row
        assert json.loads(schema.decode_json(example)) == row


def test_tfds_reads_the_same_typed_features() -> None:
    features = Schema(QA).features()
    assert features["label"].names == ["no", "yes", "perhaps"]
    for number, row in enumerate(ROWS):
        found = features.deserialize_example_np(Schema(QA).encode(row, number))
        assert found["label"] == row["label"] and found["_row"] == number
        assert found["id"].decode() == (row["id"] or "")
        assert list(found["meta"]["inner"]["ns"]) == ([0, 0, 2] if number == 0 else [])


def test_ours_is_the_example_that_tfds_itself_writes() -> None:
    schema = Schema(QA)
    plain = ROWS[0] | {"meta": {"author": "x", "inner": {"n": 1, "ns": [1, 2]}}}
    theirs = schema.features().serialize_example(
        schema.features().encode_example(plain | {"_row": 7, "_null": []})
    )
    assert schema.decode(theirs) == plain
    assert set(json.loads(json.dumps(schema.decode(theirs)))) == set(plain)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [("id", 3, "expected string, got int 3"), ("label", "1", "expected int, got str '1'"),
     ("label", True, "expected int, got bool"), ("label", 1 << 63, "64 bits"),
     ("tags", "a", "expected a list of string"), ("id", "\ud800", "UTF-8")],
)  # fmt: skip
def test_a_value_of_another_type_names_row_and_column(column, value, expected) -> None:
    with pytest.raises(UserError, match=rf"row 5: column '{column}': .*{expected}"):
        Schema(QA).encode(ROWS[0] | {column: value}, 4)


def test_a_type_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(UserError, match="column 'score': expected the type string or int.*float"):
        Schema(DatasetSpec(name="x", hub_id="", columns={"score": "float"}, splits={}))


def test_real_rows_render_as_from_their_files(real_rows_dir: str, tmp_path: pathlib.Path) -> None:
    """All datasets with real rows: the rows are the same, and so is what templates make of some of them."""
    compared = 0
    for name in (*catalog.TRAINING, *catalog.EVALUATION, *catalog.ALTERNATIVES.values()):
        if name == "story_cloze/2016":  # handed out against a form only
            continue
        prepare(name, f"files:{real_rows_dir}", tmp_path)
        for split in sources.split_names(name, real_rows_dir):
            rows = sources.load_numbered(name, split, real_rows_dir)
            kept = [one for one in rows if get_dataset(name).check_row(one[1]) is None]
            again = sources.load_numbered(name, split, str(tmp_path))
            assert again == kept, (name, split)
        for template in usable_templates(name):
            made = compile_template(promptsource.load_template(name, template))
            for (number, row), (_, other) in list(zip(kept, again, strict=True))[:4]:
                rng = [template_rng(0, template, number) for _ in range(2)]
                assert made.render(row, rng[0]) == made.render(other, rng[1])
                compared += 1
    assert compared > 900


def test_stream_and_counts_are_those_of_the_files(tmp_path, small_vocab_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(600))
    prepare("imdb", f"files:{data}", tmp_path / "stored", shard_bytes=4_000)
    found = []
    for folder in (data, str(tmp_path / "stored")):
        task = register_task("imdb", "flipped", None, folder, small_vocab_path)
        stream = batches.batches(
            task.name, {"inputs": 64, "targets": 64}, batch_size=16, seed=3, start_step=40
        )
        found.append([next(stream)["example_ids"].tolist() for _ in range(8)])
        assert task.rows.payloads("train").dropped == {"unlabelled": 120}
    assert found[0] == found[1]
    assert isinstance(task.source, seqio.TfdsDataSource)
    assert task.source.tfds_dataset.info.splits["train"].num_examples == 480
    sampled = [
        sources.labelled_payloads("imdb", "train", folder, 100).numbers.tolist()
        for folder in (data, str(tmp_path / "stored"))
    ]
    assert sampled[0] == sampled[1] and 70 < len(sampled[0]) < 90


def test_seqio_and_tfds_read_it_as_it_is(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(50))
    prepare("imdb", f"files:{data}", tmp_path / "stored", shard_bytes=500)
    one = stored("imdb", tmp_path / "stored")
    assert len(one.split("train")["shards"]) > 3
    rows = sorted(
        (int(row["_row"]), row["text"].decode(), int(row["label"]))
        for row in reading.tfds_source(one).get_dataset("train", shuffle=False).as_numpy_iterator()
    )
    want = [(n, r["text"], r["label"]) for n, r in enumerate(reviews(50)) if r["label"] != -1]
    assert rows == want
    assert tfds.builder_from_directory(one.folder).info.features["label"].num_classes == 2


def test_manifest_says_where_rows_come_from_and_what_was_dropped(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(10) + [{"text": "", "label": 1, "more": 2}])
    write(tmp_path / "files", "imdb", [{"text": "t", "label": -1}], "unsupervised")
    manifest, written = prepare("imdb", f"files:{data}", tmp_path / "stored")
    assert written and manifest["version"] == "1.0.0"
    train = manifest["splits"]["train"]
    assert train["rows"] == 11 and train["examples"] == 9 and train["published"] == 25_000
    assert train["dropped"] == manifest["splits"]["train"]["dropped"] == {"unlabelled": 2}
    assert set(manifest["source"]["sha256"]) == {"train.jsonl", "unsupervised.jsonl"}
    with pytest.raises(UserError, match="no example is left .1 unlabelled"):
        sources.labelled_payloads("imdb", "unsupervised", str(tmp_path / "stored"))
    with pytest.raises(UserError, match="nearest: 'train'"):
        sources.labelled_payloads("imdb", "trian", str(tmp_path / "stored"))


def test_the_same_source_gives_the_same_bytes_and_is_not_written_twice(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(40))
    _, first = prepare("imdb", f"files:{data}", tmp_path / "a", shard_bytes=600)
    _, again = prepare("imdb", f"files:{data}", tmp_path / "a", shard_bytes=600)
    prepare("imdb", f"files:{data}", tmp_path / "b", shard_bytes=600)
    assert first and not again
    a, b = (
        {p.name: p.read_bytes() for p in (tmp_path / x).rglob("*.*") if p.is_file()} for x in "ab"
    )
    assert a == b and not any(name.startswith(".") for name in a)


def test_another_source_is_refused_until_forced(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(10))
    prepare("imdb", f"files:{data}", tmp_path / "stored")
    write(tmp_path / "files", "imdb", reviews(20))
    with pytest.raises(UserError, match="was prepared from files .*--force"):
        prepare("imdb", f"files:{data}", tmp_path / "stored")
    manifest, written = prepare("imdb", f"files:{data}", tmp_path / "stored", force=True)
    assert written and manifest["splits"]["train"]["rows"] == 20
    assert [path.name for path in (tmp_path / "stored" / "imdb").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("stop_at", [2, 90, 399])
def test_a_stopped_run_leaves_nothing_to_read_and_goes_on(tmp_path, monkeypatch, stop_at) -> None:
    data = write(tmp_path / "files", "imdb", reviews(200))
    write(tmp_path / "files", "imdb", reviews(200), "test")
    prepare("imdb", f"files:{data}", tmp_path / "whole", shard_bytes=2_000)
    encode, calls = Schema.encode, []

    def dying(self: Schema, row: Any, number: int) -> bytes:
        calls.append(number)
        if len(calls) == stop_at * 4 // 5:
            raise KeyboardInterrupt
        return encode(self, row, number)

    monkeypatch.setattr(Schema, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare("imdb", f"files:{data}", tmp_path / "stopped", shard_bytes=2_000)
    assert reading.find("imdb", str(tmp_path / "stopped")) is None
    done, calls[:] = len(calls), [-1] * 10_000
    prepare("imdb", f"files:{data}", tmp_path / "stopped", shard_bytes=2_000)
    assert len(calls) - 10_000 <= 320 - done + 45  # at most one shard is written again
    whole, other = (
        {p.name: p.read_bytes() for p in (tmp_path / x / "imdb" / "1.0.0").iterdir()}
        for x in ("whole", "stopped")
    )
    assert whole == other


def test_progress_hears_of_every_row_once(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(2_345))
    write(tmp_path / "files", "imdb", reviews(7), "test")
    heard: dict[str, int] = {}

    def progress(split: str, rows: int) -> None:
        heard[split] = heard.get(split, 0) + rows

    prepare("imdb", f"files:{data}", tmp_path / "stored", progress=progress, shard_bytes=20_000)
    assert heard == {"train": 2_345, "test": 7}
    heard.clear()
    assert reading.verify(stored("imdb", tmp_path / "stored"), progress) == []
    assert heard == {"train": 1_876, "test": 6}


def test_damage_is_found(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(30))
    prepare("imdb", f"files:{data}", tmp_path / "stored")
    one = stored("imdb", tmp_path / "stored")
    assert reading.verify(one) == []
    shard = pathlib.Path(one.folder) / one.split("train")["shards"][0]
    good = shard.read_bytes()
    shard.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    assert "sha256" in reading.verify(one)[0]
    shard.write_bytes(good[:-20])
    assert "bytes" in reading.verify(one)[0]
    with pytest.raises(UserError, match="flipped data verify"):
        list(sources.load_rows("imdb", "train", str(tmp_path / "stored")))
    shard.unlink()
    assert "missing" in reading.verify(one)[0]
    (pathlib.Path(one.folder) / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="format 1, got None"):
        reading.find("imdb", str(tmp_path / "stored"))


def test_what_is_read_is_what_was_stored(tmp_path) -> None:
    data = write(tmp_path / "files", "imdb", reviews(30))
    prepare("imdb", f"files:{data}", tmp_path / "stored")
    folder = pathlib.Path(stored("imdb", tmp_path / "stored").folder)

    def read() -> list[Any]:
        return list(sources.load_rows("imdb", "train", str(tmp_path / "stored")))

    rows = read()
    shard = stored("imdb", tmp_path / "stored").split("train")["shards"][0]
    for name, old, new in (
        (shard, b"review 7 ", b"review 6 "),
        ("index-train.npy", b"\0\0", b"\1\0"),
        ("manifest.json", b'"rows": 30', b'"rows": 31'),
        ("manifest.json", b'"unlabelled": 6', b'"unlabelled": 7'),
    ):
        good = (folder / name).read_bytes()
        assert old in good
        (folder / name).write_bytes(good.replace(old, new, 1))
        with pytest.raises(UserError, match=f"{name}: (not what was written|its sha256)"):
            read()
        (folder / name).write_bytes(good)
    assert read() == rows
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json"):
        prepare("imdb", f"files:{data}", tmp_path / "stored")
    prepare("imdb", f"files:{data}", tmp_path / "stored", force=True)
    assert read() == rows


@pytest.mark.parametrize(
    "name", ["train.progress.json", "train.part-00000", "train.part-00000.npy"]
)
def test_a_stopped_run_whose_files_are_damaged_starts_over(
    tmp_path, monkeypatch, capsys, name
) -> None:
    data = write(tmp_path / "files", "imdb", reviews(60))
    prepare("imdb", f"files:{data}", tmp_path / "whole", shard_bytes=2_000)
    with monkeypatch.context() as patch:
        patch.setattr(writing._Writer, "_finish_split", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("imdb", f"files:{data}", tmp_path / "stored", shard_bytes=2_000)
    [file] = (tmp_path / "stored").rglob(name)
    damaged = bytearray(file.read_bytes())
    damaged[-20] ^= 1
    file.write_bytes(damaged)
    prepare("imdb", f"files:{data}", tmp_path / "stored", shard_bytes=2_000)
    assert name in capsys.readouterr().err
    one, other = (
        {p.name: p.read_bytes() for p in (tmp_path / x / "imdb" / "1.0.0").iterdir()}
        for x in ("whole", "stored")
    )
    assert one == other


def test_the_embedded_world_can_be_stored(tmp_path) -> None:
    prepare("super_glue/cb", "embedded", tmp_path)
    for split in sources.split_names("super_glue/cb", None):
        assert sources.load_rows("super_glue/cb", split, str(tmp_path)) == sources.load_rows(
            "super_glue/cb", split
        )


def test_parquet_json_lines_and_csv_give_the_same_rows(tmp_path) -> None:
    rows = [{"text": 'a "quoted",\nline', "label": 0}, {"text": "b", "label": 1}]
    for kind in ("jsonl", "gz", "parquet", "csv"):
        place = tmp_path / kind / "imdb"
        place.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if kind == "jsonl":
            (place / "train.jsonl").write_bytes(lines)
        elif kind == "gz":
            (place / "train.jsonl.gz").write_bytes(gzip.compress(lines))
        elif kind == "parquet":
            for number in range(2):
                table = pyarrow.Table.from_pylist(rows[number : number + 1])
                name = f"train-{number:05d}-of-00002.parquet"
                pyarrow.parquet.write_table(table, place / name)
        else:
            with (place / "train.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label"])
                writer.writeheader()
                writer.writerows(rows)
        # The folder of the datasets, and the dataset's own folder, will both do.
        for number, source in enumerate((place.parent, place)):
            out = tmp_path / f"stored-{kind}-{number}"
            prepare("imdb", f"files:{source}", out)
            assert sources.load_rows("imdb", "train", str(out)) == rows


def test_story_cloze_is_read_as_it_is_handed_out(tmp_path) -> None:
    header = ("InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
              "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n")  # fmt: skip
    for name in ("val__spring2016 - cloze_test_ALL_val", "test__spring2016 - cloze_test_ALL_test"):
        text = header + f'{name[:4]},One.,"Two, then.",Three.,Four.,Good.,Bad.,1\n'
        (tmp_path / f"cloze_test_{name}.csv").write_text(text)
    prepare("story_cloze/2016", f"files:{tmp_path}", tmp_path / "stored")
    (row,) = sources.load_rows("story_cloze/2016", "validation", str(tmp_path / "stored"))
    assert row["story_id"] == "val_" and row["input_sentence_2"] == "Two, then."
    assert row["answer_right_ending"] == 1
    spec = promptsource.load_template("story_cloze/2016", usable_templates("story_cloze/2016")[0])
    rendered = compile_template(spec).render(row, random.Random(0))
    assert isinstance(rendered, Rendered) and rendered.target == "Good."
    assert sources.split_names("story_cloze/2016", str(tmp_path / "stored")) == (
        "test", "validation",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [("train.csv", "text,label\na,one\n", "line 2: column 'label': expected a whole number, got 'one'"),
     ("train.csv", "text,label\na\n", "line 2: expected 2 cells"),
     ("train.jsonl", '{"text": "a", "label": 0}\n{"text": 1, "label": 0}\n', "row 2: column 'text': expected string"),
     ("train.jsonl", '{"text": "a"}\n', "row 1: missing column 'label'"),
     ("train.jsonl", '{"text": "a", "label": -1}\n', "no example is left .1 unlabelled"),
     ("train.jsonl", "", "no example is left .no rows"),
     ("notes.txt", "", "no .jsonl, .jsonl.gz, .parquet, .csv file")],
)  # fmt: skip
def test_bad_files_are_named(tmp_path, name, text, expected) -> None:
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / name).write_text(text)
    with pytest.raises(UserError, match=expected):
        prepare("imdb", f"files:{tmp_path}", tmp_path / "stored")
    assert reading.find("imdb", str(tmp_path / "stored")) is None


def test_two_files_for_a_split_are_refused(tmp_path) -> None:
    data = write(tmp_path, "imdb", reviews(3))
    shutil.copy(tmp_path / "imdb" / "train.jsonl", tmp_path / "imdb" / "train.jsonl.gz")
    with pytest.raises(UserError, match="one file for split 'train'"):
        prepare("imdb", f"files:{data}", tmp_path / "stored")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hup", "nearest: 'hub'"),
        ("/tmp", "expected files:/tmp for a folder"),
        ("files:", "unknown source"),
        ("files:/nowhere", "none at /nowhere"),
    ],
)
def test_an_unknown_source_is_named(source, expected) -> None:
    with pytest.raises(UserError, match=expected):
        origins.open_origin(get_dataset("imdb"), source)


def test_no_name_leads_out_of_the_folder(tmp_path) -> None:
    for name in ("..", "", "..\\x"):
        with pytest.raises(UserError, match="expected a name"):
            reading.dataset_folder(name, str(tmp_path))


class FakeHub:
    """The hub's list of files, and its files on this disk; `datasets` reads them as it reads the hub's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: pathlib.Path):
        self.root, self.asked = root, []
        monkeypatch.setattr(hub, "list_files", self.list_files)
        monkeypatch.setattr(hub, "file_url", lambda hub_id, commit, name: str(root / name))

    def list_files(self, hub_id: str, revision: str) -> tuple[str, list[str]]:
        self.asked.append((hub_id, revision))
        names = [path.relative_to(self.root).as_posix() for path in self.root.rglob("*.parquet")]
        return "c0ffee" * 6 + "c0ff", names

    def put(self, name: str, rows: list[Any]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_hub_is_read_from_its_parquet_files(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    fake = FakeHub(monkeypatch, tmp_path / "hub")
    rows = [
        {"id": str(n), "question_stem": f"q {n}", "choices": {"text": ["a", "b"], "label": ["A", "B"]},
         "answerKey": "B" if n else ""}
        for n in range(4)
    ]  # fmt: skip
    fake.put("main/train/0000.parquet", rows[:2])
    fake.put("main/train/0001.parquet", rows[2:])
    fake.put("additional/train/0000.parquet", rows[:1])
    manifest, _ = prepare("openbookqa/main", "hub", tmp_path / "stored")
    assert fake.asked == [("allenai/openbookqa", "refs/convert/parquet")]
    assert manifest["source"]["revision"].startswith("c0ffee")
    assert manifest["source"]["files"] == {"train": ["main/train/0000.parquet", "main/train/0001.parquet"]}  # fmt: skip
    assert manifest["splits"]["train"]["dropped"] == {"unlabelled": 1}
    assert sources.load_rows("openbookqa/main", "train", str(tmp_path / "stored")) == rows[1:]


def test_no_code_of_a_dataset_is_ever_run(tmp_path, monkeypatch) -> None:
    """Only the library's own Parquet reader is asked, and nothing that would trust remote code."""
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*names: Any, **how: Any) -> Any:
        asked.append((names, how))
        return datasets.Dataset.from_list([{"text": "a", "label": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fake = FakeHub(monkeypatch, tmp_path / "hub")
    fake.put("plain_text/train/0000.parquet", [{"text": "a", "label": 1}])
    prepare("imdb", "hub", tmp_path / "stored")
    ((names, how),) = asked
    assert names == ("parquet",) and set(how) == {"data_files", "split"}


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        (["rte/train/0000.parquet", "cb/train/0000.parquet"], "rte", {"train": ["rte/train/0000.parquet"]}),
        (["plain_text/test/0000.parquet"], None, {"test": ["plain_text/test/0000.parquet"]}),
        (["default/a/0000.parquet", "other/a/0000.parquet"], None, {"a": ["default/a/0000.parquet"]}),
        (["data/train-00000-of-00001-0ab1.parquet"], None, {"train": ["data/train-00000-of-00001-0ab1.parquet"]}),
        (["mrpc/test-00000-of-00001.parquet"], "mrpc", {"test": ["mrpc/test-00000-of-00001.parquet"]}),
    ],
)  # fmt: skip
def test_files_of_a_configuration(names, config, expected) -> None:
    assert hub.split_files(names, config, "x") == expected


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [([], None, "no Parquet files"), (["a/t/0000.parquet"], "b", "unknown configuration"),
     (["a/t/0000.parquet", "b/t/0000.parquet"], None, "expected one configuration, got a, b"),
     (["a/partial-train/0000.parquet"], None, "only a part of split 'train'")],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_named(names, config, expected) -> None:
    with pytest.raises(UserError, match=expected):
        hub.split_files(names, config, "x")


def test_a_list_of_structs_becomes_a_dict_of_lists() -> None:
    columns = {"choices": {"text": ["string"], "label": ["string"]}}
    row = {"choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}
    assert origins.fit(row, columns) == {"choices": {"text": ["a", "b"], "label": ["A", "B"]}}


def test_every_dataset_of_the_catalog_can_be_typed() -> None:
    for name in dataset_names():
        spec = get_dataset(name)
        if spec.rows is None:
            assert Schema(spec).features()
            assert spec.label_names is None or len(spec.label_names) == len(spec.label_values)
    assert not isinstance(np.array([Dropped("x")], object)[0], Rendered)
