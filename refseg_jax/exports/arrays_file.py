"""Writes and reads arrays as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from refseg_jax.errors import UserError


def write_arrays(path: Path, arrays: Mapping[str, Any], *, layout: str = "np") -> None:
    """Writes named arrays.

    Args:
        path: the file.
        arrays: name -> array.
        layout: value of `format` in the file's metadata, which names the framework whose axis order
            the arrays have; transformers reads only `"pt"`.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    contiguous = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    try:
        save_file(contiguous, path, metadata={"format": layout})
    except safetensors.SafetensorError as error:
        raise OSError(" ".join(str(error).split())[:120]) from None
    # The library creates files that only their owner can read; a server may run as another user.
    path.chmod(0o644)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file, by name.

    Raises:
        UserError: the file is not a safetensors file.
    """
    try:
        return load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a safetensors file ({reason}); export again") from None
