"""Evaluation and report in a bucket: the same bytes as in a folder, stopped or not."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from flipped_cli.main import main
from flipped_core.errors import UserError
from flipped_eval import results, shards
from tests.gcs_emulator import Emulator

from .conftest import HashScorer

MADE = (results.RESULTS, results.PREDICTIONS, results.EXAMPLES)
JOB = {
    "suites": ["super_glue/rte", "super_glue/cb", "labels"],
    "exclude_datasets": ["imdb", "paws/labeled_final"],
    "pairs_together": 100,
    "resamples": 20,
}
OUT = "gs://bucket/out"


class Stopped(BaseException):
    """Stands for what ends a job."""


class Dying(HashScorer):
    """Dies in its fourth call."""

    def score(self, pairs, progress=None):
        if len(self.calls) == 3:
            raise Stopped
        return super().score(pairs, progress)


def test_a_stopped_job_ends_with_the_bytes_of_a_local_one_and_so_does_its_report(
    gcs: Emulator, tmp_path, monkeypatch: pytest.MonkeyPatch, run_job
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = HashScorer()
    run_job(tmp_path / "out", scorer=whole, **JOB)
    with pytest.raises(Stopped):
        run_job(OUT, scorer=Dying(), **JOB)
    assert "out/results.json" not in gcs.names() and "out/.lock" not in gcs.names()
    monkeypatch.setattr(shards, "BUCKET_SHARD_BYTES", 2000)  # several shards
    rest = HashScorer()
    run_job(OUT, scorer=rest, **JOB)
    assert rest.calls == whole.calls[3:]
    for name in MADE:
        assert gcs.read(f"out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert len([name for name in gcs.names() if name.startswith("out/scores/")]) > 1
    for source, target in ((OUT, "gs://bucket/report"), (OUT, "here"), ("out", "there")):
        said = CliRunner().invoke(main, ["report", source, "--output", target])
        assert said.exit_code == 0, said.output
    report = gcs.read("report/report.md")
    assert report == (tmp_path / "here" / "report.md").read_bytes()
    assert report == (tmp_path / "there" / "report.md").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out", "there"]


def test_a_shard_that_is_damaged_in_a_bucket_is_scored_again(gcs: Emulator, run_job) -> None:
    run_job(OUT, **JOB)
    before = gcs.read("out/results.json")
    [name] = [name for name in gcs.names() if name.startswith("out/scores/")]
    content = bytearray(gcs.read(name))
    content[len(content) // 2] ^= 1
    gcs.write(name, bytes(content))
    scorer = HashScorer()
    run_job(OUT, scorer=scorer, **JOB)
    assert 0 < len(scorer.calls) and gcs.read("out/results.json") == before


def test_rights_that_are_lost_on_the_way_are_one_line(gcs: Emulator, run_job) -> None:
    class Losing(HashScorer):
        def score(self, pairs, progress=None):
            gcs.faults.append(lambda method, path, number: 403 if method == "POST" else None)
            return super().score(pairs, progress)

    with pytest.raises(UserError, match="cannot write gs://bucket/out/scores/.*orbidden"):
        run_job(OUT, scorer=Losing(), **JOB)
