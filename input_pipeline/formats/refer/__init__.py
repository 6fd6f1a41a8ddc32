"""The layout of the `refer` releases: `refs(*).p` beside `instances.json`."""
