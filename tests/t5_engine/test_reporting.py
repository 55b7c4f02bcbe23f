"""metrics.jsonl after damage: what is left are whole rows, each step once, and a line says what was dropped."""

from __future__ import annotations

import json

import pytest

from flipped_core.errors import UserError
from t5_engine.reporting import METRICS_FILE, Reporter

ROWS = [json.dumps({"step": step, "loss": 1 / step}).encode() for step in (1, 2, 3, 4)]


def opened(folder, content, done):
    """The file's lines after a run resumes from step `done`."""
    (folder / METRICS_FILE).write_bytes(content)
    Reporter(folder, first_step=done, steps=9, period=1, label="test").close()
    return (folder / METRICS_FILE).read_bytes().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        ROWS[3][:-4],
        b"\0" * 30,
        b"\0" * 30 + ROWS[3],
        b'{"step": 4, "loss": "\xff\xfe"}',
        b"[4]",
        b"4",
        b"null",
        b'{"loss": 1}',
        b'{"step": "4"}',
        b'{"step": true}',
        b'{"step": 4.5}',
        b"[" * 100_000,
        b"\r",
    ],
)
def test_a_line_that_is_no_row_is_dropped_with_a_warning(tmp_path, capfd, line):
    for at, name in ((4, "line 4"), (2, "line 2")):
        lines = [*ROWS[: at - 1], line, *ROWS[at - 1 : 3]]
        for end in (b"", b"\n"):
            assert opened(tmp_path, b"\n".join(lines) + end, 4) == ROWS[:3]
            [told] = capfd.readouterr().err.splitlines()
            assert f"{tmp_path / METRICS_FILE}: {name} is damaged" in told


def test_rows_after_the_step_and_rows_that_stand_twice_are_dropped(tmp_path, capfd):
    content = b"\n".join([ROWS[0], ROWS[1], ROWS[0], ROWS[1], ROWS[2], ROWS[3]])
    assert opened(tmp_path, content, 3) == ROWS[:3]
    assert capfd.readouterr().err == ""


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(UserError, match="cannot read .*metrics.jsonl"):
        Reporter(tmp_path, first_step=0, steps=9, period=1, label="test")
