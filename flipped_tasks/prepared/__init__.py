"""Datasets stored once as TFDS datasets: their types, writing, reading, and where the rows come from."""
