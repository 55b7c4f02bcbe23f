"""SeqIO's offline cache: what is cached, and that one cache serves every method."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf

from flipped_tasks import caching
from flipped_tasks.seqio_tasks import RowTask, register_task
from flipped_tasks.stream import Stream
from mixtures import catalog  # noqa: F401

METHODS = ("direct", "channel", "flipped")
LENGTHS = {"inputs": 64, "targets": 64, "wrong_inputs": 64}


@pytest.fixture
def data(tmp_path: pathlib.Path) -> str:
    place = tmp_path / "files" / "glue__mrpc"
    place.mkdir(parents=True)
    for split, labels in (("train", (0, 1, -1)), ("test", (-1,))):
        rows = [
            {"sentence1": f"the {n} cats", "sentence2": f"{n} dogs", "label": labels[n % len(labels)], "idx": n}
            for n in range(60)
        ]  # fmt: skip
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place.parent)


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(folder)])
    return folder


def write_cache(
    task: seqio.Task, folder: pathlib.Path, shards: int = 2, splits: list[str] | None = None
) -> None:
    """What `seqio_cache_tasks` writes of a task, without Apache Beam; `beam_utils` has the pieces."""
    place = folder / seqio.get_task_dir_from_name(task.name)
    place.mkdir(parents=True)
    for split in splits or task.splits:
        examples: list[dict[str, Any]] = []
        parts = task.source.list_shards(split)
        for index in range(len(parts)):
            part = task.source.get_dataset(
                split=split, shuffle=False, seed=1, shard_info=seqio.ShardInfo(index, len(parts))
            )
            examples += task.preprocess_precache(part, seed=1).as_numpy_iterator()
        prefix = seqio.get_cached_tfrecord_prefix(str(place), split)
        for number in range(shards):
            with tf.io.TFRecordWriter(f"{prefix}-{number:05d}-of-{shards:05d}") as file:
                for example in examples[number::shards]:
                    file.write(seqio.dict_to_tfexample(example).SerializeToString())
        features = {
            name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
            for name, spec in task.source.get_dataset(split).element_spec.items()
        }
        info = {"num_shards": shards, "features": features, "seqio_version": seqio.__version__}
        pathlib.Path(seqio.get_cached_info_path(str(place), split)).write_text(json.dumps(info))
        stats = {"examples": len(examples)}
        pathlib.Path(seqio.get_cached_stats_path(str(place), split)).write_text(json.dumps(stats))
    (place / "COMPLETED").write_text("")


def by_id(task: seqio.Task, **how: Any) -> dict[bytes, tuple[list[int], ...]]:
    settings: dict[str, Any] = {"split": "train", "shuffle": False, "seed": 5} | how
    found = {}
    for example in task.get_dataset(LENGTHS, **settings).as_numpy_iterator():
        found[example["example_id"]] = tuple(
            example[name].tolist() for name in sorted(LENGTHS) if name in example
        )
    return found


@pytest.mark.parametrize("template", [None, "equivalent"])
def test_one_cache_serves_all_methods(data, cache, small_vocab_path, template) -> None:
    rows = caching.register_rows_task("glue/mrpc", data)
    assert rows.name == "rows.glue_mrpc" and list(rows.splits) == ["train"]
    write_cache(rows, cache)
    for method in METHODS:
        task = register_task("glue/mrpc", method, template, data, small_vocab_path)
        assert task.supports_caching and task.cache_dir == str(cache / "rows.glue_mrpc")
        fresh, cached = by_id(task), by_id(task, use_cached=True)
        assert len(fresh) == 40 and cached == fresh
        shuffled = [list(by_id(task, use_cached=True, shuffle=True)) for _ in range(2)]
        assert shuffled[0] == shuffled[1] != list(fresh)


def test_a_tasks_own_cache_comes_first(data, cache, small_vocab_path) -> None:
    task = register_task("glue/mrpc", "direct", None, data, small_vocab_path)
    assert task.cache_dir is None
    with pytest.raises(AssertionError, match="cache"):
        by_id(task, use_cached=True)
    write_cache(task, cache, splits=["train"])
    write_cache(caching.register_rows_task("glue/mrpc", data), cache)
    assert task.cache_dir == str(cache / "direct.glue_mrpc")
    assert by_id(task, use_cached=True) == by_id(task)


def test_what_is_cached_are_the_rows_and_their_numbers(data) -> None:
    task = caching.register_rows_task("glue/mrpc", data)
    first = next(iter(task.source.get_dataset("train", shuffle=False).as_numpy_iterator()))
    assert set(first) == {"row", "number"} and json.loads(first["row"])["sentence1"] == "the 0 cats"


def test_shards_are_the_whole_split(data, monkeypatch) -> None:
    monkeypatch.setattr(caching, "ROWS_PER_SHARD", 7)
    source = caching.register_rows_task("glue/mrpc", data).source
    names = source.list_shards("train")
    assert len(names) == 6
    found = [
        int(row["number"])
        for index in range(len(names))
        for row in source.get_dataset(
            "train", shuffle=False, shard_info=seqio.ShardInfo(index, len(names))
        ).as_numpy_iterator()
    ]
    assert found == [number for number in range(60) if number % 3 != 2]


def test_a_mixture_is_read_from_the_cache(data, cache, small_vocab_path) -> None:
    from mixtures.registration import register

    (name,) = register(data, small_vocab_path, ["flipped"], datasets=["glue/mrpc"])
    write_cache(caching.register_rows_task("glue/mrpc", data), cache)
    mixture = seqio.get_mixture_or_task(name)
    dataset = mixture.get_dataset(LENGTHS, split="train", use_cached=True, seed=0, num_epochs=1)
    assert len(list(dataset.take(40).as_numpy_iterator())) == 40


def test_the_stream_reads_the_cached_rows_as_it_reads_the_dataset(
    data, cache, small_vocab_path
) -> None:
    task = register_task("glue/mrpc", "flipped", None, data, small_vocab_path)
    write_cache(caching.register_rows_task("glue/mrpc", data), cache)
    fresh, cached = (
        Stream(task.name, LENGTHS, seed=5, rows=rows).examples(np.arange(30, 110))
        for rows in (None, RowTask.cached_rows)
    )
    assert cached == fresh and len({example.id for example in fresh}) > 30


def test_the_module_for_apache_beam_registers_what_is_there(data, monkeypatch) -> None:
    from flipped_core.errors import UserError
    from mixtures import cache_tasks

    assert cache_tasks.register_all(data) == ["rows.glue_mrpc"]
    with pytest.raises(UserError, match="no training dataset"):
        cache_tasks.register_all(str(pathlib.Path(data) / "glue__mrpc"))
