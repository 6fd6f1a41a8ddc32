"""Freed memory that stays with the process, by the page faults of getting it again."""

import importlib.util
import os
import platform
import subprocess
import sys

import jax
import pytest

from refseg_jax.host_memory import keep_freed_memory, only_cpus

#: Takes, fills and frees 64 MB a few times, and tells the page faults of all but the first time.
_SCRIPT = """
import ctypes, resource, sys
from refseg_jax.host_memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    place = libc.malloc(64 << 20)
    libc.memset(place, 1, 64 << 20)
    libc.free(place)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_not_asked_for_again() -> None:
    faults = {
        kept: int(subprocess.check_output([sys.executable, "-c", _SCRIPT, kept], text=True))
        for kept in ("keep", "give back")
    }
    assert faults["keep"] < 100 < faults["give back"]


def test_other_c_libraries_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", True), ("cuda,cpu", False)])
def test_who_names_platforms_decides(platforms: str, expected: bool) -> None:
    script = "from refseg_jax.host_memory import only_cpus; print(only_cpus())"
    environment = {**os.environ, "JAX_PLATFORMS": platforms}
    told = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment)
    assert told.strip() == str(expected)


@pytest.mark.parametrize("plugin", [None, "jax_plugins", "libtpu"])
def test_else_a_plugin_of_an_accelerator_does(
    monkeypatch: pytest.MonkeyPatch, plugin: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == plugin else None)
    named = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        assert only_cpus() == (plugin is None)
    finally:
        jax.config.update("jax_platforms", named)
