"""Checkpoints: written whole, verified when read, found by their step."""
