"""Compiler options for tests that run each compiled function only once."""

import functools
from collections.abc import Iterator

import jax
import pytest

from tests.refseg_jax.exports.folders import compiling_in_a_hurry

#: A small model compiles in a fifth of the time with these options. They change how kernels are written,
#: not what they compute.
_OPTIONS: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# Newer versions do not have the option, and refuse unknown ones.
if jax.__version_info__ < (0, 11):
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False

#: The same options for another process, as the value of `XLA_FLAGS`.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in _OPTIONS.items())

#: `jax.jit` with these options.
quick_jit = functools.partial(jax.jit, compiler_options=_OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    """Compiles so in all tests of a folder whose conftest imports this fixture."""
    with compiling_in_a_hurry():
        yield
