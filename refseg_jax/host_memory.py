"""The host's memory between the steps of a run on CPUs."""

import ctypes
import importlib.util
import platform

import jax

#: `mallopt`'s names and values (malloc.h): one arena, nothing by mmap, nothing given back.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_NEVER = -1


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, so that the next step gets the same pages again.

    XLA:CPU takes the space for a program's intermediate values anew for each call and frees it behind
    it. glibc asks the system for pieces of that size, and gives them back, which hands out each page
    cleared, one page fault every 4 KB: of ReLA's step at 480 (3.8 GB) that was 5 of 18 seconds of
    CPU time. The process is never smaller again than at its largest, which a training does not mind;
    of a library's caller it would be much to ask, so that command lines decide it. Threads that took
    memory before keep places of their own: to be called before JAX starts its own.

    Returns:
        Whether it is so: the C library is glibc and took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    return all(mallopt(name, value) == 1 for name, value in settings)


def only_cpus() -> bool:
    """Whether JAX will run on CPUs, told without starting it.

    It does where it is told to (`JAX_PLATFORMS=cpu`), or finds no plugin of an accelerator.
    """
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))
