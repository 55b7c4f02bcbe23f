"""docs/training.md's first commands, run to the letter with stand-ins: FLIPPED XL on a pod and on SLURM."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from tests.launch_stand_ins import GCLOUD, PYTHON_OF_CODES, stand_in

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Notes its words; stands for what a guide's commands call.
NOTES = """#!/bin/bash
echo "$(basename "$0") $*" >>"$STATE/said"
"""
# Starts the script with the variables of --export, as SLURM does.
SBATCH = """#!/bin/bash
echo "sbatch $*" >>"$STATE/said"
for word; do
  [[ $word == --export=ALL,* ]] && exported=${word#--export=ALL,}
  script=$word
done
IFS=, read -ra variables <<<"$exported"
exec env "${variables[@]}" SLURM_JOB_ID=7 bash "$script"
"""


def documented(title: str) -> str:
    """The commands of a section of docs/training.md."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split(f"## {title}")[1]
    commands = text.split("```bash\n")[1].split("```")[0]
    return commands.replace("YOUR-BUCKET", "a-bucket")


def follow_the_guide(tmp_path: pathlib.Path, commands: str) -> str:
    """Runs a guide's commands to the letter in a copy of the project, and returns all that was said."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    project.mkdir()
    for name in ("launch", "gin"):
        shutil.copytree(ROOT / name, project / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    stand_in(project / "launch", "install.sh", NOTES)
    (project / ".venv" / "bin").mkdir(parents=True)
    stand_in(project / ".venv" / "bin", "flipped", NOTES)
    stand_in(tools, "python_of_codes", PYTHON_OF_CODES)
    stand_in(tools, "srun", NOTES)
    stand_in(tools, "sbatch", SBATCH)
    gcloud = GCLOUD.format(python=sys.executable)
    stand_in(
        tools, "gcloud", gcloud.replace("action, flags", 'if words[0] == "auth": sys.exit()\naction, flags')
        .replace("assert words[:3]", 'assert words[0] == "auth" or words[:3]'),
    )  # fmt: skip
    for number in range(2):
        (tmp_path / f"codes{number}").write_text("0")
    environment = {
        **os.environ,
        "STATE": str(tmp_path),
        "INSTALL": "true",
        "POLL": "1",
        "HOME": str(tmp_path),
    }
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    if "tpu_pod" in commands:
        environment["PYTHON"] = str(tools / "python_of_codes")
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return (tmp_path / "said").read_text() + done.stdout


def assert_a_run(line: str, folder: str) -> None:
    """The command is FLIPPED XL, and every macro is one that training reads."""
    from flipped_cli import gin_config
    from flipped_cli.runs import TrainRun

    words = line[line.index("train.py") :].split()[1:]
    assert [word for word in words if "gin_file" in word] == [
        "--gin_file=gin/models/xl.gin", "--gin_file=gin/recipes/flipped.gin", "--gin_file=gin/runs/train.gin"
    ]  # fmt: skip
    gin_config.load(gin_config.parse_arguments(words, ""), TrainRun)
    made = gin_config.make(TrainRun)
    assert (made.model_dir, made.data_dir) == (f"{folder}/runs/flipped_xl", f"{folder}/data")
    assert made.vocab_path == "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
    assert made.initial_checkpoint_path is not None
    assert made.initial_checkpoint_path.endswith("t5_1_1_lm100k_xl/checkpoint_1100000")
    assert made.mixture == "flipped_train" and made.steps == 5000
    assert made.model.dtype == "bfloat16" and made.model.emb_dim == 2048


def test_the_guide_for_a_pod(tmp_path: pathlib.Path) -> None:
    said = follow_the_guide(tmp_path, documented("FLIPPED XL on a v5p-64 pod"))
    assert "install.sh gcs,hub\n" in said
    assert "flipped data prepare training --from hub --data_dir gs://a-bucket/data\n" in said
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[-1] == "delete" and calls.count("create") == 1
    starts = [line for line in (tmp_path / "calls").read_text().splitlines() if "train.py" in line]
    assert len(starts) == 1
    command = shlex.split(shlex.split(starts[0][starts[0].index("bash launch") :])[-1])
    assert_a_run(" ".join(command), "gs://a-bucket")
    assert "COMPILATION_CACHE_DIR=gs://a-bucket/xla" in starts[0]


def test_the_guide_for_slurm(tmp_path: pathlib.Path) -> None:
    said = follow_the_guide(tmp_path, documented("FLIPPED XL on two nodes"))
    assert "install.sh cuda,gcs,hub\n" in said
    assert "flipped data prepare training --from hub --data_dir /shared/data\n" in said
    [step] = [line for line in said.splitlines() if line.startswith("srun ")]
    assert "--gpu-bind=none" in step and step.index(".venv/bin/python train.py")
    assert_a_run(step, "/shared")
