"""Stand-ins for srun and gcloud, which the tests of launch/ put on PATH."""

from __future__ import annotations

import pathlib


def stand_in(folder: pathlib.Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


# A pod of two workers: a folder each, in which commands run as they would on the machines.
GCLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
state = pathlib.Path(os.environ["STATE"])
words = sys.argv[1:]
assert words[:3] == ["compute", "tpus", "tpu-vm"], words
action, flags = words[3], {{w.split("=", 1)[0]: w.split("=", 1)[-1] for w in words[4:] if w.startswith("--")}}
with open(state / "calls", "a") as log:
    log.write(action + " " + flags.get("--command", "") + "\\n")
workers = [state / f"worker{{n}}" for n in range(2)]
chosen = workers if flags.get("--worker", "all") == "all" else [workers[int(flags["--worker"])]]
if action == "create":
    if (state / "ready").exists():
        sys.exit("exists")
    for worker in workers:
        worker.mkdir()
    (state / "ready").touch()
elif action == "describe":
    print("READY" if (state / "ready").exists() else "")
elif action == "delete":
    if not (state / "ready").exists():
        sys.exit("NOT_FOUND")
    for worker in workers:
        shutil.rmtree(worker, ignore_errors=True)
    (state / "ready").unlink()
elif action == "scp":
    source, target = [w for w in words[4:] if not w.startswith("--")]
    for worker in chosen:
        shutil.copy(source, worker / target.partition(":")[2])
elif action == "ssh":
    if not (state / "ready").exists():
        sys.exit("unreachable")
    running = []
    for worker in chosen:
        number = workers.index(worker)
        environment = {{
            **os.environ, "HOME": str(worker), "TPU_WORKER_ID": str(number), "WORKER": str(number),
            "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1", "JAX_COORDINATOR_PORT": os.environ.get("PORT", "8477"),
        }}
        running.append(subprocess.Popen(["bash", "-c", flags["--command"]], cwd=worker, env=environment))
    sys.exit(max([process.wait() for process in running], key=abs))
"""
# Stands for Python on the workers: ends with the code that the worker's file has for this attempt.
PYTHON_OF_CODES = """#!/bin/bash
attempt=$(cat "$HOME/attempt" 2>/dev/null || echo 0)
echo $((attempt + 1)) >"$HOME/attempt"
codes=($(cat "$STATE/codes$WORKER"))
echo "attempt $attempt: $*"
exit "${codes[$attempt]}"
"""
# Two processes on loopback. Once, the second one is killed after some steps.
SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
state = pathlib.Path(os.environ["STATE"])
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
processes = []
for n in range(2):
    environment = dict(
        os.environ, SLURM_JOB_ID=os.environ["JOB"], SLURM_STEP_NODELIST="127.0.0.1", SLURM_NTASKS="2",
        SLURM_PROCID=str(n), SLURM_LOCALID=str(n),
    )
    processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    with open(state / "groups", "a") as groups:
        groups.write(f"{{processes[-1].pid}}\\n")
metrics = pathlib.Path(os.environ["MODEL_DIR"]) / "metrics.jsonl"
while not (state / "killed").exists() and all(process.poll() is None for process in processes):
    if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
        (state / "killed").touch()
        os.killpg(processes[1].pid, signal.SIGKILL)
    time.sleep(0.05)
sys.exit(max(code if code >= 0 else 128 - code for code in [process.wait() for process in processes]))
"""
