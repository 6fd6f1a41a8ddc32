"""How tests compile that run once what they compile."""

import functools
from collections.abc import Iterator

import jax
import pytest

from tests.refseg_jax.exports.folders import compiling_in_a_hurry

#: A small model compiles in a fifth of the time with these. They choose how kernels are written,
#: not what is computed.
_OPTIONS: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# Newer ones have no such choice, and refuse options that they do not know.
if jax.__version_info__ < (0, 11):
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False

#: The same for a process of its own: its `XLA_FLAGS`.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in _OPTIONS.items())

#: `jax.jit`, compiling with these.
quick_jit = functools.partial(jax.jit, compiler_options=_OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    """For all tests of a folder whose conftest imports it."""
    with compiling_in_a_hurry():
        yield
