"""Evaluates a checkpoint on suites of unseen tasks, from gin files.

usage: python eval.py --gin_file=FILE … [--gin.NAME=VALUE …] [--data_dir=FOLDER] [--offline]

  --gin_file=FILE    read in the order given; relative to here or to the project's folder
  --gin.NAME=VALUE   a macro (--gin.MAX_EXAMPLES=9) or a field (--gin.EvalRun.seed=1)
  --data_dir=FOLDER  the same as --gin.DATA_DIR=FOLDER
  --offline          no library looks for a network

The exit code is 2, and the tasks are named, where some task could not be run; the others are evaluated.

example:
  python eval.py --gin_file=gin/runs/eval.gin --gin.CHECKPOINT_PATH=runs/tiny \
    --gin.EVAL_OUTPUT_DIR=runs/tiny/eval
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flipped_cli import errors


def main(words: Sequence[str]) -> None:
    """Reads the gin files and evaluates what they describe."""
    from flipped_cli import gin_config
    from flipped_cli.runs import EvalRun

    usage = f"{__doc__}\nmacros:\n{gin_config.settings_help(EvalRun)}"
    gin_config.load(gin_config.parse_arguments(words, usage), EvalRun)
    run = gin_config.make(EvalRun)
    from flipped_cli import evaluation

    evaluation.conclude(evaluation.evaluate(run))


if __name__ == "__main__":
    errors.begin(lasting=True)
    errors.leave(errors.run(main, sys.argv[1:]))
