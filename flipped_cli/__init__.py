"""The commands that people type: `flipped`, and what train.py and eval.py call."""

import os

# TensorFlow greets on stderr, where the one line that a mistake gets must stand alone.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
