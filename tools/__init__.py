"""Command lines of the project, e.g. `python -m tools.build_dataset`."""
