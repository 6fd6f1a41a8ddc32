"""Only `make parity` and `make bench` install torch; elsewhere this folder is not looked at."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["*_test.py"]
