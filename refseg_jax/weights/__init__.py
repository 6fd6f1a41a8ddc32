"""Weights of other people's models: tables of names, readers of files, one strict loader."""
