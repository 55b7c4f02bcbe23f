"""Processes that fail together: with which exit code each ends, played by one process."""

from __future__ import annotations

import errno
import json
import signal

import pytest

from flipped_core.errors import TemporaryError, UserError
from t5_engine import processes


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plays process 1 of 2; the list is what both say when they gather, and gets what this one says."""
    said: list[str] = []

    def gather(text: str) -> list[str]:
        said.append(text)
        return [said[0] if said[0] != text else "", text]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "_name", lambda: "process 1 of 2 on here")
    monkeypatch.setattr(processes, "_gather", gather)
    return said


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("a mistake"), 2),
        (TemporaryError("not there"), 75),
        (processes.OtherFailed("a bug elsewhere", 1), 1),
        (ValueError("a bug"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/run"), 2),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
        (SystemExit(143), 143),
    ],
)
def test_the_exit_code_of_an_error(error: BaseException, code: int) -> None:
    assert processes.exit_code_of(error) == code


@pytest.mark.parametrize("error, code", [(UserError("x"), 2), (ValueError("x"), 1)])
def test_an_error_reaches_the_others_with_its_code(
    second_of_two: list[str], error: Exception, code: int
) -> None:
    second_of_two.append("")
    with pytest.raises(type(error)), processes.one_for_all(), processes.one_for_all():
        raise error
    assert second_of_two[1:] == [json.dumps([code, "process 1 of 2 on here: x"])]


@pytest.mark.parametrize("code", [2, 1, 75])
def test_the_error_of_another_process_has_its_code(second_of_two: list[str], code: int) -> None:
    second_of_two.append(json.dumps([code, "process 0 of 2 on there: x"]))
    with pytest.raises(processes.OtherFailed, match="^process 0 of 2 on there: x$") as raised:
        processes.agree()
    assert raised.value.exit_code == processes.exit_code_of(raised.value) == code


def test_all_processes_hold_a_folder_alike(second_of_two: list[str]) -> None:
    """Whoever is given a hold must not ask for it again: the others would wait for an answer that never comes."""
    second_of_two.append("")
    with processes.hold("nowhere", "MODEL_DIR") as held:
        assert held is not None and held.lock is None
        held.check()
    assert len(second_of_two) == 2  # they agreed once
