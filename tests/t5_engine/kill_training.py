"""Kills a training again and again: parameters, metrics and examples of each run are those of one left alone.

python -m tests.t5_engine.kill_training FOLDER KILLS SEED
"""

from __future__ import annotations

import json
import pathlib
import sys

from t5_engine import checkpoints
from tests import killing
from tests.t5_engine import killed_program, killed_run


def check(folder: pathlib.Path) -> None:
    """Raises where the folder differs from that of the run that was left alone."""
    alone = folder.parent / "alone"
    params, _, step = checkpoints.load(alone)
    assert step == killed_program.STEPS
    killed_run.assert_same_run(folder, alone, params)
    left = [path.name for path in (folder / checkpoints.FOLDER).iterdir()]
    assert all(name.isdigit() for name in left), left
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not hidden, hidden


if __name__ == "__main__":
    place, kills, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    told = killing.kill_again_and_again(killed_program.run, check, place, seed=seed, kills=kills)
    print(json.dumps(told))
