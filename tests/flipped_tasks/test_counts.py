"""What is dropped and cut is counted by reason, shown, warned of above 5%."""

import itertools
import json
import logging

import pytest

from flipped_core.errors import UserError
from flipped_tasks import seqio_tasks
from flipped_tasks.batches import batches
from flipped_tasks.counts import line
from flipped_tasks.seqio_tasks import mixture_counts, register_task
from mixtures import catalog  # noqa: F401


def test_a_line_names_reasons_and_warns_above_5_percent():
    assert line("t", {}, 10, {}, 10) == []
    assert line("t", {"empty_target": 1}, 19, {}, 20) == [
        "t: dropped 5.0% (1 empty_target; 19 given)"
    ]
    (told,) = line("t", {"empty_target": 2}, 18, {"unlabelled": 1}, 40)
    assert (
        told
        == "warning: t: 1 unlabelled of 40 rows (2.5%); dropped 10.0% (2 empty_target; 18 given)"
    )
    (told,) = line("t", {}, 9, {"unlabelled": 3}, 12)
    assert told.startswith("warning: t: 3 unlabelled of 12 rows (25.0%)")


def test_what_is_cut_is_no_drop():
    (told,) = line("t", {"inputs_cut": 9, "one_choice": 1}, 10, {}, 10)
    assert told == "t: of 10 given: 9 inputs_cut, 1 one_choice"


@pytest.fixture
def task(tmp_path, small_vocab_path):
    rows = [{"text": "a long film " * 30, "label": n % 2 if n else -1} for n in range(20)]
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return register_task("imdb", "flipped", None, str(tmp_path), small_vocab_path)


def test_a_task_tells_what_it_cut_and_dropped(task):
    next(batches(task.name, {"inputs": 32, "targets": 32}, 8, 0))
    (counts,) = mixture_counts(task.name)
    assert (counts.rows, counts.unlabelled) == (20, {"unlabelled": 1})
    assert counts.cut["inputs_cut"] and not counts.dropped and not counts.is_warned


def test_a_task_that_drops_too_much_says_so_while_it_runs(task, caplog, monkeypatch):
    monkeypatch.setattr(seqio_tasks, "_EARLY", 16)
    encode, calls = task.write, itertools.count()
    task.write = lambda *how: seqio_tasks.Dropped("odd") if next(calls) % 3 == 0 else encode(*how)
    with caplog.at_level(logging.WARNING):
        next(batches(task.name, {"inputs": 64, "targets": 32}, 32, 0))
    (told,) = [record.message for record in caplog.records if "odd" in record.message]
    assert told.startswith("flipped.imdb: dropped")
    assert mixture_counts(task.name)[0].is_warned


def test_all_dropped_is_an_error(task):
    task.write = lambda *_: seqio_tasks.Dropped("odd")
    with pytest.raises(
        UserError, match="'flipped.imdb', split 'train': no example can be used .* odd"
    ):
        next(batches(task.name, {"inputs": 64, "targets": 32}, 8, 0))
