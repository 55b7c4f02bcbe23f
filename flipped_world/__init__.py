"""The made-up world's pre-trained miniature: weights, vocabulary and model card, as files of this package.

`make pretrain` rebuilds them (`flipped_cli.pretrain`); the folder is one that `INITIAL_CHECKPOINT_PATH` and
`CHECKPOINT_PATH` accept.
"""

from __future__ import annotations

import pathlib

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"
WEIGHTS = PRETRAINED / "model.safetensors"
VOCABULARY = PRETRAINED / "spiece.model"
# What the files are, for programs; README.md beside it says the same to people.
CARD = PRETRAINED / "card.json"
