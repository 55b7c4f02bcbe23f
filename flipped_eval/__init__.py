"""Rank classification of a checkpoint on the suites: examples, scores, metrics and the report."""
