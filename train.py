"""Trains a model from gin files.

usage: python train.py --gin_file=FILE … [--gin.NAME=VALUE …] [--data_dir=FOLDER] [--offline] [--profile]

  --gin_file=FILE    read in the order given; relative to here or to the project's folder
  --gin.NAME=VALUE   a macro (--gin.TRAIN_STEPS=100) or a field (--gin.TrainRun.steps=100)
  --data_dir=FOLDER  the same as --gin.DATA_DIR=FOLDER
  --offline          no library looks for a network
  --profile          the same as --gin.PROFILE=(10,5): after 10 steps, a trace of 5 in MODEL_DIR/profile

SIGTERM and Ctrl-C save a checkpoint and end with code 0 and 130; the same command resumes there. A second one ends
at once. docs/training.md has more.

example:
  python train.py --gin_file=gin/models/tiny.gin --gin_file=gin/recipes/flipped.gin \
    --gin_file=gin/runs/train.gin --gin.MODEL_DIR=runs/tiny \
    --gin.VOCAB_PATH=sentencepiece.model --gin.TRAIN_STEPS=20
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flipped_cli import errors

PROFILE = "--gin.PROFILE=(10,5)"


def main(words: Sequence[str]) -> None:
    """Reads the gin files and trains what they describe."""
    from flipped_cli import gin_config
    from flipped_cli.runs import TrainRun

    words = [PROFILE if word == "--profile" else word for word in words]
    usage = f"{__doc__}\nmacros:\n{gin_config.settings_help(TrainRun)}"
    gin_config.load(gin_config.parse_arguments(words, usage), TrainRun)
    run = gin_config.make(TrainRun)
    from flipped_cli import training

    training.train(run, gin_config.operative())


if __name__ == "__main__":
    errors.begin(lasting=True)
    errors.leave(errors.run(main, sys.argv[1:]))
