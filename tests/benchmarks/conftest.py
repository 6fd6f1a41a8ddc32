"""Only `make bench` installs torch; elsewhere the comparison with it is not looked at."""

import importlib.util

collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else ["model_step_bench.py", "pixel_decoder_bench.py", "rela_step_bench.py", "vit_bench.py"]
)
