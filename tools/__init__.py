"""Command lines of the project; each module is run as `python -m tools.NAME`."""
