"""Only `make bench` installs torch; elsewhere the comparison with it is not looked at."""

import importlib.util

import pytest

from refseg_jax.host_memory import keep_freed_memory

collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else ["model_step_bench.py", "pixel_decoder_bench.py", "rela_step_bench.py", "vit_bench.py"]
)


@pytest.fixture(scope="session", autouse=True)
def kept_memory() -> None:
    """As `main.py` does; torch, in the same process, has it too."""
    keep_freed_memory()
