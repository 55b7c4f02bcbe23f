"""From a template and a row of a dataset to token ids of DIRECT, CHANNEL and FLIPPED."""
