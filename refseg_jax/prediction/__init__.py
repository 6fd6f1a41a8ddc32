"""Masks for new pictures, from a run, a checkpoint or an export."""
