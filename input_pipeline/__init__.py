"""Bytes on disk to batches; knows nothing of models."""
