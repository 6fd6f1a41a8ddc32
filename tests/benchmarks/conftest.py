"""Skips the comparisons with torch where it is not installed; only `make bench` installs it."""

import importlib.util

collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else ["model_step_bench.py", "pixel_decoder_bench.py", "rela_step_bench.py", "vit_bench.py"]
)
