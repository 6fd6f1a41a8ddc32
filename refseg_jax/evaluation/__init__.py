"""Predictions against references: the evaluator, pixel counts and the published protocols."""
