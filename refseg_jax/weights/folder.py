"""Finds the weight file in a folder of published weights, and reads the JSON beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
from refseg_jax.weights.readers import ENDINGS


def weight_file(folder: Path, names: Sequence[str]) -> Path:
    """The weight file in a folder: the first of `names` that exists, else the only weight file.

    Raises:
        UserError: the folder has no weight file, or several of other names.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    # Hidden files are companions that macOS writes (._NAME).
    others = sorted(p for p in folder.iterdir() if p.suffix in ENDINGS and p.name[0] != ".")
    if len(others) == 1:
        return others[0]
    what = f"{len(others)} weight files" if others else "no weight file"
    known = ", ".join((*names[:2], "or one other")) if names else "one alone"
    raise UserError(f"{folder}: {what} ({known}); name the file")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; it tells what the weights beside it do not: copy it there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({' '.join(str(error).split())[:100]}); copy it again"
        ) from None
