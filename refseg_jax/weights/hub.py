"""Weights by their name on the Hugging Face hub: out of the local cache, or fetched into it."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from refseg_jax.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_URL = "https://huggingface.co"


def locate(source: str, *, weights: Sequence[str], settings: Sequence[str]) -> Path:
    """The file or folder that a person means.

    Args:
        source: a path, or a name on the hub (`owner/name`).
        weights: names of files, the preferred first; of the hub only the first that it has is taken.
        settings: names of small files that are taken too, where the hub has them.

    Returns:
        A path as it is, or the folder of the hub's cache that holds the files.

    Raises:
        UserError: there is neither such a path nor such a name, or the hub cannot be reached and
            the files are not in the cache; the line says what to download by hand and where to.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not _NAME.fullmatch(source):
        raise UserError(f"{source}: no such file or folder, nor a name on the hub (owner/name)")
    return _cached(source, weights) or _fetched(source, weights, settings)


def _cached(name: str, weights: Sequence[str]) -> Path | None:
    for file in weights:
        found = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _fetched(name: str, weights: Sequence[str], settings: Sequence[str]) -> Path:
    try:
        # Unlike a download, this does not try again and again where there is no network.
        there = {file.rfilename for file in huggingface_hub.HfApi().model_info(name).siblings or ()}
        chosen = [file for file in weights if file in there][:1]
        # The settings first: where the cache has weights, it then has everything.
        wanted = [*(file for file in settings if file in there), *chosen]
        paths = [Path(huggingface_hub.hf_hub_download(name, file)) for file in wanted]
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such file or folder, and the hub has no such (public) name; correct it, or "
            "log in with `hf auth login`"
        ) from None
    except Exception as error:  # The client's errors are of many kinds.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: not in the cache, and {_URL} cannot be reached "
            f"({' '.join(line.split())[:120]}): download {', '.join(settings[:2])} and "
            f"{' or '.join(weights[:2])} from {_URL}/{name}/tree/main by hand into one folder, and "
            f"give that folder's path instead of {name!r}"
        ) from None
    if not chosen:
        raise UserError(f"{_URL}/{name}: it has none of {', '.join(weights)}; name another")
    return paths[-1].parent
