"""The bridge to T5X: what its own programs bind through `gin/t5x/`. The only package that imports t5x."""
