"""Trains a model from gin files.

usage: python train.py --gin_file=FILE … [--gin.NAME=VALUE …] [--data_dir=FOLDER] [--offline]

  --gin_file=FILE    read in the order given; relative to here or to the project's folder
  --gin.NAME=VALUE   a macro (--gin.TRAIN_STEPS=100) or a parameter (--gin.train.steps=100)
  --data_dir=FOLDER  the same as --gin.DATA_DIR=FOLDER
  --offline          no library looks for a network

example:
  python train.py --gin_file=gin/models/tiny.gin --gin_file=gin/recipes/flipped.gin \
    --gin_file=gin/runs/train.gin --gin.MODEL_DIR=runs/tiny \
    --gin.VOCAB_PATH=sentencepiece.model --gin.TRAIN_STEPS=20
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flipped_cli import errors, gin_config


def main(words: Sequence[str]) -> None:
    """Reads the gin files and trains what they describe."""
    gin_config.load(gin_config.parse_arguments(words, __doc__ or ""))
    from flipped_cli import training

    gin_config.call(training.train)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
