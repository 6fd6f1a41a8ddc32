"""Finds weights by their name on the Hugging Face hub, in the local cache or by a download into it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from refseg_jax.errors import UserError
from refseg_jax.weights.readers import shards_of

_URL = "https://huggingface.co"


def locate(source: str, *, weights: Sequence[str], settings: Sequence[str]) -> Path:
    """Resolves a path or a name on the hub to a local path, and downloads the files if necessary.

    Args:
        source: a path, or a name on the hub (`owner/name`).
        weights: names of weight files in order of preference; only the first that the hub has is
            downloaded (for an index, its shards as well).
        settings: names of small files that are downloaded as well, if the hub has them.

    Returns:
        The path, if it exists, else the folder in the hub's cache that holds the files.

    Raises:
        UserError: there is neither such a path nor such a name; or the files are not in the cache
            and the hub cannot be reached, then the line says what to download by hand.
    """
    path = local_path(source)
    with contextlib.suppress(OSError):  # The path may be too long for the file system.
        if path.exists():
            return path
    if not _is_name(source):
        shown = source if source.isprintable() else ascii(source)
        raise UserError(
            f"{shown[:300]}: no such file or folder, nor a name on the hub (owner/name)"
        )
    return _cached(source, weights) or _fetched(source, weights, settings)


def local_path(source: str) -> Path:
    """The source as a path with `~` expanded; it need not exist.

    Raises:
        UserError: the source is empty, or names the home folder of an unknown user.
    """
    if not source.strip():
        raise UserError("the source is empty: name a file, a folder, or a name on the hub")
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise UserError(f"{source}: no such home folder; write the whole path") from None


def _is_name(source: str) -> bool:
    """Whether a source may be a name on the hub; `./clip` and `clip` are paths."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    # huggingface_hub before 1.33 accepts a line feed at the end.
    return source.count("/") == 1 and source.isprintable()


def _cached(name: str, weights: Sequence[str]) -> Path | None:
    for file in weights:
        found = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(found, str):
            path = Path(found)
            if all(shard.exists() for shard in shards_of(path)):
                return path.parent
    return None


def _fetched(name: str, weights: Sequence[str], settings: Sequence[str]) -> Path:
    try:
        # Without a network this fails at once, while a download would retry many times.
        there = {file.rfilename for file in huggingface_hub.HfApi().model_info(name).siblings or ()}
        chosen = [file for file in weights if file in there][:1]
        # Settings come first, so that a cache with the weights has everything.
        wanted = [*(file for file in settings if file in there), *chosen]
        paths = [Path(huggingface_hub.hf_hub_download(name, file)) for file in wanted]
        for shard in shards_of(paths[-1]) if chosen else ():
            if shard != paths[-1]:
                huggingface_hub.hf_hub_download(name, shard.name)
    except UserError:  # From `shards_of`.
        raise
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such file or folder, and the hub has no such (public) name; correct it, or "
            "log in with `hf auth login`"
        ) from None
    except Exception as error:  # The client raises exceptions of many types.
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
