"""The files of launch/: their syntax, and when they start a run again, with stand-ins for srun and gcloud."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import pytest
import yaml

from t5_engine import clusters
from tests.launch_stand_ins import GCLOUD, PYTHON_OF_CODES, SRUN, stand_in

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_syntax(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name: str) -> None:
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed (extra: test)")
    found = subprocess.run([program, LAUNCH / name], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["slurm.sh", "tpu_pod.sh", "jobset.yaml", "Dockerfile"])
def test_what_to_set_comes_first(name: str) -> None:
    head = (LAUNCH / name).read_text(encoding="utf-8").split("\nset -u")[0].lower()
    assert "to set" in head or "set here" in head


def test_sbatch_reads_all_its_lines() -> None:
    """It stops reading at the first command."""
    lines = (LAUNCH / "slurm.sh").read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    marked = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(marked) > 5 and max(marked) < first


def test_the_job_set() -> None:
    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text(encoding="utf-8"))
    [replicated] = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    # Code 2 fails the job and with it the whole set; every other failure starts all pods again.
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    # The processes find each other by these variables.
    annotations = {
        "jobset.sigs.k8s.io/jobset-name": job_set["metadata"]["name"],
        "jobset.sigs.k8s.io/replicatedjob-name": replicated["name"],
        "jobset.sigs.k8s.io/job-index": "0",
    }
    environment = {"JOB_COMPLETION_INDEX": str(job["completions"] - 1)}
    for variable in container["env"]:
        path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        named = path.removeprefix("metadata.annotations['").removesuffix("']")
        environment[variable["name"]] = variable.get("value") or annotations[named]
    group = clusters.detected(environment)
    assert group is not None and group.count == job["parallelism"] == job["completions"]
    assert group.index == group.count - 1
    assert group.address == "flipped-xl-node-0-0.flipped-xl:8477"


@pytest.mark.parametrize(
    "code, becomes", [(0, 0), (2, 2), (1, 100), (3, 100), (134, 134), (137, 137)]
)
def test_codes_of_one_process(code: int, becomes: int) -> None:
    command = ["bash", LAUNCH / "run_once.sh", "bash", "-c", f"exit {code}"]
    assert subprocess.run(command).returncode == becomes


def test_a_mistake_has_the_highest_code_where_srun_asks_for_that() -> None:
    """srun ends with the highest code of all processes; 192 is the highest that a signal gives."""
    environment = {**os.environ, "MISTAKE_CODE": "200"}
    for code, becomes in ((2, 200), (1, 100), (0, 0)):
        command = ["bash", LAUNCH / "run_once.sh", "bash", "-c", f"exit {code}"]
        assert subprocess.run(command, env=environment).returncode == becomes
    text = (LAUNCH / "slurm.sh").read_text(encoding="utf-8")
    assert "export MISTAKE_CODE=200" in text


def test_a_failure_waits_and_a_mistake_does_not() -> None:
    """On Kubernetes the first pod that fails decides."""
    environment = {**os.environ, "FAILURE_DELAY": "1"}
    for code, waits in ((0, False), (2, False), (1, True)):
        began = time.monotonic()
        command = ["bash", LAUNCH / "run_once.sh", "bash", "-c", f"exit {code}"]
        subprocess.run(command, env=environment)
        assert (time.monotonic() - began >= 1) is waits


def test_a_process_that_was_stopped_is_not_done(tmp_path: pathlib.Path) -> None:
    """It saves and ends with 0, and there is more to do."""
    wait = "while :; do sleep 0.1; done"
    saving = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; {wait}"
    process = subprocess.Popen(["bash", LAUNCH / "run_once.sh", "bash", "-c", saving])
    while not (tmp_path / "up").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 143
    assert (tmp_path / "saved").exists()


def run(
    script: str, *words: str, tools: pathlib.Path, settings: Mapping[str, str], seconds: int = 120
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(LAUNCH / script), *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )


# Ends with the next of the codes in a file, and notes how it was called.
SRUN_OF_CODES = """#!/bin/bash
echo "$@" >>"$STATE/calls"
code=$(head -n 1 "$STATE/codes")
sed -i 1d "$STATE/codes"
exit "$code"
"""
PATHS = {
    "MODEL_DIR": "m",
    "VOCAB_PATH": "v",
    "INITIAL_CHECKPOINT_PATH": "None",
    "DATA_DIR": "None",
    "PAUSE": "0",
    "SLURM_JOB_ID": "7",
}


@pytest.mark.parametrize(
    "codes, code, calls, said",
    [
        ([0], 0, 1, "done"),
        ([137, 100, 0], 0, 3, "restart 2 of 3"),
        ([200], 2, 1, "not started again"),
        ([100, 200, 0], 2, 2, "not started again"),
        ([2, 0], 0, 2, "restart 1 of 3"),  # srun's own
        ([100] * 5, 100, 4, "given up after 3 restarts"),
    ],
)
def test_when_slurm_starts_again(
    tmp_path: pathlib.Path, codes: list[int], code: int, calls: int, said: str
) -> None:
    stand_in(tmp_path / "tools", "srun", SRUN_OF_CODES)
    (tmp_path / "codes").write_text("\n".join(map(str, codes)) + "\n")
    settings = {**PATHS, "STATE": str(tmp_path), "MAX_RESTARTS": "3"}
    done = run("slurm.sh", tools=tmp_path / "tools", settings=settings)
    assert done.returncode == code and said in done.stdout, done.stdout + done.stderr
    started = (tmp_path / "calls").read_text().splitlines()
    assert len(started) == calls
    assert "--gpu-bind=none --cpu-bind=cores" in started[0] and "--gin.MODEL_DIR=m" in started[0]


def test_a_time_limit_puts_the_job_back(tmp_path: pathlib.Path) -> None:
    """SLURM signals the script; srun hands it on, the run saves and ends with 0 or 143."""
    waits = "#!/bin/bash\ntrap 'exit 143' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.1; done\n"
    stand_in(tmp_path / "tools", "srun", waits.replace("$PPID", "$(<$STATE/script)"))
    stand_in(tmp_path / "tools", "scontrol", '#!/bin/bash\necho "$@" >"$STATE/scontrol"\n')
    wrapper = tmp_path / "job.sh"
    wrapper.write_text(f"echo $$ >{tmp_path}/script\nexec bash {LAUNCH}/slurm.sh\n")
    environment = {**os.environ, **PATHS, "STATE": str(tmp_path)}
    environment["PATH"] = f"{tmp_path / 'tools'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", wrapper], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "back into the queue" in done.stdout, done.stderr
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_missing_settings_are_named(tmp_path: pathlib.Path) -> None:
    missing = {**PATHS, "VOCAB_PATH": ""}
    done = run("slurm.sh", tools=tmp_path, settings=missing)
    assert done.returncode != 0 and "VOCAB_PATH: a SentencePiece model" in done.stderr
    done = run("tpu_pod.sh", "run", tools=tmp_path, settings={})
    assert done.returncode == 2 and "expected a bucket of yours" in done.stderr
    done = run("tpu_pod.sh", "begin", tools=tmp_path, settings={})
    assert done.returncode == 2 and "got 'begin'" in done.stderr


POD = {
    "MODEL_DIR": "gs://mine/run",
    "DATA_DIR": "gs://mine/data",
    "INSTALL": "true",
    "POLL": "1",
    "GRACE": "5",
    "MAX_RESTARTS": "2",
}


@pytest.mark.parametrize(
    "codes, code, attempts, said",
    [
        (("0", "0"), 0, 1, "done"),
        (("1 0", "137 0"), 0, 2, "restart 1 of 2"),
        (("1 0", "2 0"), 2, 1, "not started again"),
        (("2", "2"), 2, 1, "not started again"),
        (("1 1 1 1", "1 1 1 1"), 1, 3, "given up after 2 restarts"),
    ],
)
def test_when_a_tpu_pod_is_started_again(
    tmp_path: pathlib.Path, codes: tuple[str, str], code: int, attempts: int, said: str
) -> None:
    stand_in(tmp_path / "tools", "gcloud", GCLOUD.format(python=sys.executable))
    stand_in(tmp_path / "tools", "python_of_codes", PYTHON_OF_CODES)
    for number, text in enumerate(codes):
        (tmp_path / f"codes{number}").write_text(text)
    settings = {**POD, "STATE": str(tmp_path), "PYTHON": str(tmp_path / "tools/python_of_codes")}
    done = run("tpu_pod.sh", "run", tools=tmp_path / "tools", settings=settings)
    assert done.returncode == code and said in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "worker1" / "attempt").read_text().strip() == str(attempts)
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls.count("create") == 1 and calls.count("scp") == 1
    log = (tmp_path / "worker0" / "flipped" / "train.log").read_text()
    assert "--gin.MODEL_DIR=gs://mine/run" in log and "--gin.DTYPE=bfloat16" in log
    run("tpu_pod.sh", "delete", tools=tmp_path / "tools", settings=settings)
    assert not (tmp_path / "worker0").exists()


TINY = (
    "--gin.TRAIN_STEPS=12 --gin.BATCH_SIZE=4 --gin.CHECKPOINT_PERIOD=2 --gin.LOG_PERIOD=1 "
    "--gin.MIXTURE_OR_TASK_NAME=direct.super_glue_rte --gin.COORDINATOR_TIMEOUT=200 "
    "--gin.TASK_FEATURE_LENGTHS={'inputs':32,'targets':8} --gin.T5Config.vocab_size=512"
)


def real_settings(tmp_path: pathlib.Path, vocab: str) -> dict[str, str]:
    return {
        "STATE": str(tmp_path),
        "JOB": str(os.getpid()),
        "PORT": str(21_000 + os.getpid() % 9_000),
        "MODEL": "tiny",
        "RECIPE": "direct",
        "MODEL_DIR": str(tmp_path / "run"),
        "VOCAB_PATH": vocab,
        "INITIAL_CHECKPOINT_PATH": "None",
        "DATA_DIR": "None",
        "PYTHON": sys.executable,
        "PAUSE": "1",
        "SETTINGS": TINY,
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture
def nothing_left(tmp_path: pathlib.Path) -> Iterator[None]:
    """Ends the processes that a test which ran out of time has left."""
    yield
    groups = tmp_path / "groups"
    for group in groups.read_text().split() if groups.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)


def assert_each_step_once(tmp_path: pathlib.Path, steps: int = 12) -> None:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))


@pytest.mark.usefixtures("nothing_left")
def test_two_processes_on_slurm(tmp_path: pathlib.Path, small_vocab_path: str) -> None:
    stand_in(tmp_path / "tools", "srun", SRUN.format(python=sys.executable))
    settings = real_settings(tmp_path, small_vocab_path)
    settings["SETTINGS"] += " --gin.TRAIN_STEPS=2"
    done = run("slurm.sh", tools=tmp_path / "tools", settings=settings, seconds=600)
    assert done.returncode == 0 and "restart" not in done.stdout, done.stdout + done.stderr
    assert_each_step_once(tmp_path, 2)


@pytest.mark.usefixtures("nothing_left")
def test_a_mistake_of_one_process_ends_the_job(
    tmp_path: pathlib.Path, small_vocab_path: str
) -> None:
    """A file that one node does not have: both processes end at once, and are not started again."""
    text = SRUN.format(python=sys.executable).replace(
        "    processes.append",
        "    command[-1] = command[-1].replace('NODE', str(n))\n    processes.append",
        1,
    )
    stand_in(tmp_path / "tools", "srun", text)
    settings = real_settings(tmp_path, small_vocab_path)
    shutil.copy(small_vocab_path, tmp_path / "1.model")
    settings["SETTINGS"] += f" --gin.VOCAB_PATH={tmp_path}/NODE.model"
    done = run("slurm.sh", tools=tmp_path / "tools", settings=settings, seconds=600)
    assert done.returncode == 2 and "not started again" in done.stdout, done.stdout + done.stderr
    mistakes = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(mistakes) == 2 and all("0.model" in line for line in mistakes), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_killed_process_on_slurm(tmp_path: pathlib.Path, small_vocab_path: str) -> None:
    stand_in(tmp_path / "tools", "srun", SRUN.format(python=sys.executable))
    settings = real_settings(tmp_path, small_vocab_path)
    done = run("slurm.sh", tools=tmp_path / "tools", settings=settings, seconds=1800)
    assert done.returncode == 0 and "restart 1 of" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "killed").exists()
    assert_each_step_once(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_killed_worker_of_a_tpu_pod(tmp_path: pathlib.Path, small_vocab_path: str) -> None:
    kill = (
        'metrics = pathlib.Path(os.environ["MODEL_DIR"]) / "metrics.jsonl"\n'
        'if action == "ssh" and "status" in flags["--command"] and not (state / "killed").exists():\n'
        "    if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:\n"
        '        groups = [(worker / "flipped" / "worker.pid").read_text() for worker in workers]\n'
        '        (state / "groups").write_text("\\n".join(groups))\n'
        "        group = int(groups[1])\n"
        '        (state / "killed").touch()\n'
        "        os.killpg(group, 9)\n"
    )
    text = GCLOUD.format(python=sys.executable).replace(
        'if action == "create"', kill + 'if action == "create"'
    )
    stand_in(tmp_path / "tools", "gcloud", text)
    settings = {**real_settings(tmp_path, small_vocab_path), "INSTALL": "true", "POLL": "1"}
    words = {"STOP_SECONDS": "20", "GRACE": "200"}
    done = run(
        "tpu_pod.sh", "run", tools=tmp_path / "tools", settings=settings | words, seconds=1800
    )
    assert done.returncode == 0 and "restart 1 of" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "killed").exists()
    assert_each_step_once(tmp_path)
