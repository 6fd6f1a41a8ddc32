"""Skips this folder where torch is not installed; only `make parity` and `make bench` install it."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["*_test.py"]
