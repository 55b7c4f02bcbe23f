"""How a command ends: on signals, with streams that are closed or full, and when the machine refuses something."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A command whose work is the text in its first word.
PROGRAM = """
from flipped_cli import errors
errors.begin(lasting={lasting})
import sys
def main(words):
    print("begun", flush=True)
{work}
if __name__ == "__main__":
    errors.leave(errors.run(main, sys.argv[1:]))
"""


def command(work: str, lasting: bool = True) -> list[str]:
    indented = "".join(f"    {line}\n" for line in work.splitlines())
    return [sys.executable, "-c", PROGRAM.format(work=indented, lasting=lasting)]


def run(work: str, lasting: bool = True) -> tuple[int, str, str]:
    done = subprocess.run(command(work, lasting), cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def shell(text: str) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def interrupted(
    work: str, *signals: signal.Signals, pause: float = 0.2, ready: str = "begun"
) -> tuple[int, str, float]:
    """Sends signals after the line `ready`; (code, stderr, seconds until the end)."""
    process = subprocess.Popen(
        command(work), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and f"{ready}\n" in iter(process.stdout.readline, "")
    time.sleep(0.3)
    for number, one in enumerate(signals):
        if number:
            time.sleep(pause)
        process.send_signal(one)
    asked = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.monotonic() - asked


@pytest.mark.parametrize(
    "name, word, code",
    [("SIGINT", "Ctrl-C", 130), ("SIGTERM", "SIGTERM", 143), ("SIGHUP", "SIGHUP", 129)],
)
def test_a_signal_ends_in_one_line_also_in_native_code(name, word, code) -> None:
    native = "import hashlib\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    for work in ("import time\ntime.sleep(60)", native, "while True: pass"):
        found, stderr, seconds = interrupted(work, signal.Signals[name])
        assert (found, stderr) == (code, f"interrupted ({word})\n") and seconds < 5, work


def test_a_block_says_what_is_kept_and_cleans_up(tmp_path) -> None:
    work = f"""
from flipped_core import interrupts, locks
import time
with locks.hold({str(tmp_path / "run")!r}, "run"), interrupts.at_once(lambda: "the scores are kept"):
    print("inside", flush=True)
    time.sleep(60)
"""
    code, stderr, _ = interrupted(work, signal.SIGTERM, ready="inside")
    assert (code, stderr) == (143, "interrupted (SIGTERM): the scores are kept\n")
    assert list(tmp_path.iterdir()) == []


def test_impatience_does_no_harm() -> None:
    code, stderr, _ = interrupted("import time\ntime.sleep(60)", *[signal.SIGINT] * 5, pause=0)
    assert (code, stderr) == (130, "interrupted (Ctrl-C)\n")


def test_a_signal_amid_the_ending_does_not_stop_it() -> None:
    """The main thread, which ends the process, is interrupted by another signal before it has left."""
    work = """
from flipped_core import interrupts
import os, signal, time
def kept():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    return "all is kept"
with interrupts.at_once(kept):
    signal.set_wakeup_fd(-1)  # so that the main thread is the one to end
    signal.raise_signal(signal.SIGINT)
"""
    assert run(work) == (130, "begun\n", "interrupted (Ctrl-C): all is kept\n")


def test_signals_that_were_ignored_stay_so() -> None:
    """As by nohup, or by a shell for what it runs in the background."""
    work = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('done')"
    program = command(work)
    done = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "begun\ndone\n")


def test_a_child_that_forks_off_has_signals_of_its_own() -> None:
    work = """
import os, signal, time
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
time.sleep(0.2)
print("parent lives")
"""
    assert run(work) == (0, "begun\nparent lives\n", "")


CODES = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG]


@pytest.mark.parametrize("number", CODES)
def test_what_the_machine_refuses_is_one_line(number) -> None:
    words = os.strerror(number)
    for work in (
        f"raise OSError({number}, {words!r}, '/runs/a')",
        # gin's copy of an error has no errno
        f"import gin\n@gin.configurable\ndef f():\n    raise OSError({number}, {words!r}, '/runs/a')\nf()",
    ):
        code, _, stderr = run(work)
        assert code == 2 and stderr.count("\n") == 1, stderr
        assert stderr.startswith(f"error: cannot read or write /runs/a: {words}"), stderr


@pytest.mark.parametrize(
    "error",
    [
        'ValueError(\'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "/runs/a/": '
        "Failed to write 8 bytes to file 19: No space left on device [os_error_code=28]')",
        "RuntimeError('/runs/a/; Input/output error')",
    ],
)
def test_wrapped_errors_of_disks_too(error) -> None:
    code, _, stderr = run(f"raise {error}")
    assert code == 2 and stderr.count("\n") == 1
    assert stderr.startswith("error: cannot read or write /runs/a/: "), stderr


@pytest.mark.parametrize(
    "error", ["ValueError('x')", "OSError(22, 'Invalid argument')", "KeyError('No')"]
)
def test_a_bug_keeps_its_traceback(error) -> None:
    code, _, stderr = run(f"raise {error}")
    assert code == 1 and "Traceback" in stderr


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    "work, code", [("", 0), ("raise errors.UserError('x')", 2), ("sys.exit(3)", 3)]
)
def test_closed_streams_do_not_change_the_exit_code(closed, work, code, tmp_path) -> None:
    program = tmp_path / "program.py"
    extra = f"with open({str(tmp_path / 'result')!r}, 'w') as file:\n    file.write('whole')\nprint('x')\n{work}"
    program.write_text(command(extra)[2])
    found, stdout, stderr = shell(f"PYTHONPATH={ROOT} {sys.executable} {program} {closed}")
    assert found == code and "Traceback" not in stderr
    # What is printed must not end in a file that has got the number of a closed stream.
    assert (tmp_path / "result").read_text() == "whole"
    assert stdout == ("" if ">&-" in closed.replace("2>&-", "") else "begun\nx\n")


@pytest.mark.parametrize(
    "closed", [">&-", "<&-", "2>&-", "| true", "2>&1 | true", ">/dev/null 2>/dev/full"]
)
def test_commands_with_closed_streams(closed) -> None:
    flipped = f"set -o pipefail; {sys.executable} -m flipped_cli"
    code, _, stderr = shell(f"{flipped} tasks list {closed}")
    assert (code, stderr) == (0, "")


def test_stdin_that_is_closed_cannot_be_read() -> None:
    code, _, stderr = shell(
        f"{sys.executable} -m flipped_cli tasks render --dataset imdb --all --rows - <&-"
    )
    assert (code, stderr) == (2, "error: stdin: cannot be read: Bad file descriptor\n")


def test_the_work_goes_on_without_a_reader_and_the_exit_code_is_its_own(tmp_path) -> None:
    work = (
        f"for i in range(10000): print(i)\nopen({str(tmp_path / 'done')!r}, 'w').close()\n"
        "print('late', file=sys.stderr)\nraise errors.UserError('x')"
    )
    program = tmp_path / "program.py"
    program.write_text(command(work)[2])
    code, _, _ = shell(
        f"set -o pipefail; PYTHONPATH={ROOT} {sys.executable} {program} 2>&1 | head -1"
    )
    assert code == 2 and (tmp_path / "done").exists()


def test_a_command_that_only_prints_stops_without_a_reader(tmp_path) -> None:
    work = f"for i in range(10**5): print(i)\nopen({str(tmp_path / 'done')!r}, 'w').close()"
    program = tmp_path / "program.py"
    program.write_text(command(work, lasting=False)[2])
    code, stdout, stderr = shell(
        f"set -o pipefail; PYTHONPATH={ROOT} {sys.executable} {program} | head -1"
    )
    assert (code, stdout, stderr) == (0, "begun\n", "") and not (tmp_path / "done").exists()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_the_work_goes_on_with_a_full_disk_behind_its_output_which_is_said_at_the_end(
    tmp_path,
) -> None:
    work = f"for i in range(10000): print(i)\nopen({str(tmp_path / 'done')!r}, 'w').close()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(work), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and (tmp_path / "done").exists()
    assert done.stderr == "error: cannot write what is printed: No space left on device\n"


@pytest.mark.parametrize("platform", ["cuda", "cudaa", "tpu,cpu", "rocm", "gpu"])
def test_devices_that_are_not_there_are_one_line(platform) -> None:
    work = "import jax\njax.jit(lambda x: x + 1)(1)"
    done = subprocess.run(
        command(work), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(lines) == 1
    expected = f"error: JAX_PLATFORMS: expected devices that this machine has, such as cpu, got {platform!r}"
    assert lines[0].startswith(expected)
    if (
        "tpu" not in platform
    ):  # whose library prints lines of its own where it is not asked in advance
        assert done.stderr.count("\n") == 1
