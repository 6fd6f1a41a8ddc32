"""Expressions to token ids."""
