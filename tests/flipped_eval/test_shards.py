"""Shards: a part that is damaged, missing, foreign or old is named and scored again, and never becomes a number."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import zlib

import numpy as np
import pytest

from flipped_core.errors import UserError
from flipped_eval import results, shards

from .conftest import HashScorer

NEW_FIELDS = (
    "sources",
    "provenance",
    "format",
    "crc32",
    "predictions_crc32",
)  # in the files of format 3
MADE = (results.RESULTS, results.PREDICTIONS, results.EXAMPLES)
JOB = {
    "suites": ["super_glue/rte:MNLI crowdsource", "super_glue/cb:can we infer"],
    "max_examples": 40, "pairs_together": 60, "resamples": 20,
}  # fmt: skip


def made(folder: pathlib.Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in MADE]


@pytest.fixture
def done(tmp_path, whole) -> pathlib.Path:
    """A copy of a finished evaluation with several chunks."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "done"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_vocab_path) -> pathlib.Path:
    from .conftest import evaluate

    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder, small_vocab_path, **JOB)
    return folder


def shard_of(folder: pathlib.Path) -> pathlib.Path:
    [shard] = (folder / "scores").iterdir()
    return shard


def chunks_of(shard: pathlib.Path) -> list[bytes]:
    """The chunks as bytes, footers included."""
    return re.findall(rb'(?s).*?\{"chunk":[^\n]*\n', shard.read_bytes())


def flip_unit(data: bytes) -> bytes:
    """One bit of the name of a unit, in the second chunk's first line."""
    place = data.index(b'{"chunk":') + 1
    place = data.index(b"\n", place) + 12
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def edit_score(data: bytes) -> bytes:
    """A digit of the first score, so that all lengths stay."""
    return re.sub(
        rb'"logprob":-(\d)', lambda found: b'"logprob":-%d' % (9 - int(found[1])), data, count=1
    )


def nothing(data: bytes) -> bytes:
    return b""


def without_chunk(data: bytes) -> bytes:
    chunks = re.findall(rb'(?s).*?\{"chunk":[^\n]*\n', data)
    return b"".join(chunks[:1] + chunks[2:])


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def cut_at_a_chunk(data: bytes) -> bytes:
    return b"".join(re.findall(rb'(?s).*?\{"chunk":[^\n]*\n', data)[:-1])


def footer_flipped(data: bytes) -> bytes:
    place = data.index(b'{"chunk":') + 4
    return data[:place] + b"\xff" + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_unit, edit_score, without_chunk, truncated, cut_at_a_chunk, footer_flipped, nothing],
)
def test_damaged_scores_are_refused_by_name_and_scored_again(done, run_job, whole, damage):
    shard = shard_of(done)
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=r"scores.*; scores of 'direct' on .* are missing") as told:
        results.finish(done, 20)
    assert "\n" not in str(told.value)
    assert made(done) == made(whole), "nothing is written then"
    stored = shards.done(done)
    assert len(stored.ended) < 2
    lines: list[str] = []
    again = HashScorer()
    run_job(done, scorer=again, announce=lines.append, **JOB)
    assert made(done) == made(whole)
    assert any(line.startswith("warning: ") and "/scores" in line for line in lines)
    everything = sum(map(len, again.calls))
    assert 0 < everything
    if damage in (flip_unit, edit_score):
        assert len(again.calls) == 1, "only the damaged chunk"
    rest = HashScorer()
    run_job(done, scorer=rest, **JOB)
    assert rest.pairs == 0, "once is enough"


def test_a_damaged_part_is_named_by_its_line(done):
    shard = shard_of(done)
    first = chunks_of(shard)[0]
    shard.write_bytes(flip_unit(shard.read_bytes()))
    line = first.count(b"\n") + 1
    with pytest.raises(
        UserError, match=f"scores-00000.jsonl, line {line}: not what was written there"
    ):
        results.finish(done, 20)


def test_a_unit_is_complete_only_with_every_example_and_choice(done):
    """Records that are missing are missed even where each chunk is as it was written."""
    shard = shard_of(done)
    ended = shards.done(done).ended
    lines = [json.loads(line) for line in shard.read_text().splitlines()]
    kept = [line for line in lines if "chunk" not in line]
    last = next(line for line in reversed(kept) if line.get("choice") == 1)
    kept = [
        line
        for line in kept
        if "choice" not in line
        or (line["unit"], line["example"]) != (last["unit"], last["example"])
    ]
    shard.write_bytes(shards._chunk_text(kept, 0))
    assert ended - shards.done(done).ended == {last["unit"]}
    assert not shards.done(done).has(last["unit"], last["example"])


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "-3", None, True, 10**400], ids=lambda v: str(v)[:5]
)
def test_a_score_that_is_no_number_is_no_score(done, value):
    shard = shard_of(done)
    body = re.sub(
        rb'"logprob":-[\d.]+', f'"logprob":{json.dumps(value)}'.encode(), chunks_of(shard)[0], count=1
    )  # fmt: skip
    shard.write_bytes(with_footer(body) + b"".join(chunks_of(shard)[1:]))
    with pytest.raises(UserError, match="line 1: not what was written there"):
        results.finish(done, 20)


def with_footer(chunk: bytes, version: int = 3) -> bytes:
    """A chunk with its footer made again, as someone who edits and knows the format would do."""
    body = chunk[: chunk.index(b'{"chunk":')]
    head = b'{"chunk":%d,"number":0,"bytes":%d,"format":%d' % (
        body.count(b"\n"), len(body), version,
    )  # fmt: skip
    return body + head + b',"crc32":"%08x"}\n' % zlib.crc32(body + head)


def test_the_same_records_twice_count_once_and_others_are_refused(done, whole):
    shard = shard_of(done)
    chunks = chunks_of(shard)
    (done / "scores" / "scores-00001.jsonl").write_bytes(chunks[0])
    results.finish(done, 20)
    assert made(done) == made(whole)
    (done / "scores" / "scores-00001.jsonl").write_bytes(with_footer(edit_score(chunks[0])))
    with pytest.raises(
        UserError, match=r"scores-00001.jsonl: example '\d+' of unit \w+ was written twice"
    ):
        results.finish(done, 20)


def test_shards_of_another_evaluation_change_nothing(tmp_path, done, run_job, whole):
    """They are of other units, whose keys hold the weights' hash."""
    run_job(tmp_path / "other", weights=1, **JOB)
    mine, other = shard_of(done), shard_of(tmp_path / "other")
    shutil.copy(other, done / "scores" / "scores-00001.jsonl")
    results.finish(done, 20)
    assert made(done) == made(whole)
    shutil.copy(other, mine)
    with pytest.raises(UserError, match="are missing"):
        results.finish(done, 20)


def test_shards_without_checksums_are_scored_again_with_a_line(done, run_job, whole):
    """The format before this one; its run.json, plan.json and results.json had none either."""
    shard = shard_of(done)
    old = re.sub(rb'(\{"chunk":\d+),[^\n]*\}', rb"\1}", shard.read_bytes())
    shard.write_bytes(old)
    for name in ("run.json", "plan.json", "results.json"):
        value = json.loads((done / name).read_text())
        value = {field: value[field] for field in value if field not in NEW_FIELDS}
        (done / name).write_text(
            json.dumps(value | ({"format": 2} if name == "results.json" else {}))
        )
    lines: list[str] = []
    again = HashScorer()
    run_job(done, scorer=again, announce=lines.append, **JOB)
    assert made(done)[:2] == made(whole)[:2] and again.pairs > 100
    assert any("written by an older version, without checksums" in line for line in lines)


def test_shards_of_a_newer_version_are_refused(done):
    shard = shard_of(done)
    shard.write_bytes(with_footer(chunks_of(shard)[0], version=4))
    with pytest.raises(UserError, match="expected scores of format 3, got 4"):
        shards.done(done)


def test_scores_of_one_label_that_are_lost_do_not_vanish_from_another_job_s_results(done, run_job):
    """The second job does not score the first one's units again, so it must not write results without them."""
    shard = shard_of(done)
    shard.unlink()
    before = made(done)
    with pytest.raises(UserError, match="scores of 'direct' on chosen .* are missing: run that"):
        run_job(done, **JOB, label="other", method="flipped")
    assert made(done) == before
    run_job(done, **JOB)
    assert {run["label"] for run in results.results_of(done)["runs"]} == {"direct", "other"}


@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_a_damaged_or_missing_request_or_plan_is_named(done, run_job, whole, name):
    path = done / name
    data = path.read_bytes()
    for damaged in (
        b"",
        b"[]",
        data[:-9],
        data + b"x",
        data.replace(b"direct", b"dirext"),
        b"\xff",
        b"[" * 10**5,
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}: ") as told:
            run_job(done, **JOB)
        assert "\n" not in str(told.value)
    path.unlink()
    again = HashScorer()
    if name == "run.json":
        run_job(done, scorer=again, **JOB)
    else:
        with pytest.raises(UserError, match=r"plan.json: it lacks the units of 'direct'"):
            results.finish(done, 20)
        run_job(done, scorer=again, **JOB)
    assert again.pairs == 0 and made(done) == made(whole)


def test_the_same_question_of_two_runs_is_scored_once(tmp_path, small_vocab_path):
    """The key says nothing of the label, nor of how scores are ranked."""
    from flipped_eval import jobs
    from flipped_eval.planning import Request

    scorer = HashScorer()
    run = {"method": "direct", "vocab_path": small_vocab_path, "params": {"w": np.zeros((2, 2))}}
    runs = [jobs.Run(**run, label="sum"), jobs.Run(**run, label="mean", length_normalize=True)]
    request = Request(("super_glue/rte:MNLI crowdsource",), max_examples=4)
    jobs.evaluate(runs, request, str(tmp_path), scorer=lambda *_: scorer, resamples=10)
    assert scorer.pairs == 8
