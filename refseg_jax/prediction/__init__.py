"""Predicts masks for new images, from a run, a checkpoint or an export."""
