"""Keeps what JAX compiles, for the next start."""

import os
from pathlib import Path

import jax

from refseg_jax.errors import UserError


def keep_compilations(folder: str) -> None:
    """Has JAX keep all that it compiles from here on in a folder, and take from there what it finds.

    JAX's entries name the compiler, the flags and the kind of device, so that runs of any kind can share
    a folder. Of several processes the first one writes. Whoever can write there can have code run here.

    Args:
        folder: `""` leaves JAX as it is: nothing is kept, unless `JAX_COMPILATION_CACHE_DIR` is set.

    Raises:
        UserError: the folder cannot be written.
    """
    if not folder:
        return
    # What has a scheme lies in a bucket, where folders need not be made.
    if "://" not in folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
        else:
            reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written"
        if reason:
            raise UserError(
                f"config.loop.compilation_cache={folder}: {reason}; name a folder that can be written, "
                'or "" to keep nothing'
            )
    jax.config.update("jax_compilation_cache_dir", folder)
    # By default JAX keeps only what took a second: a start compiles hundreds of small functions beside.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
