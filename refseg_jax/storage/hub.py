"""Exported models on the Hugging Face hub (`hf://OWNER/NAME`), beside those on a disk and in a bucket.

Whatever reads a model calls `model_folder`. What is written, and data, lies elsewhere:
`refseg_jax.storage.buckets.located`.

The client keeps what it downloads in its cache (`HF_HOME`). What is there needs no network.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from refseg_jax.errors import UserError, escaped
from refseg_jax.storage.buckets import located

#: `pathlib` makes one slash of two.
_ADDRESS = re.compile(
    r"hf:/{1,2}(?P<name>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,200}))?/?", re.ASCII
)
_URL = "https://huggingface.co"

#: Of every export; the manifest names all other files.
_CONFIG, _MANIFEST = "config.json", "manifest.json"

#: A probe without an answer is no hub: seconds.
_PATIENCE = 10.0


class Address(NamedTuple):
    """A model on the hub.

    Attributes:
        name: `OWNER/NAME`.
        revision: a branch, a tag or a commit.
    """

    name: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.name}" + ("" if self.revision == "main" else f"@{self.revision}")


def on_hub(path: str | Path) -> bool:
    """Whether a path is an address on the hub."""
    return re.match("hf:/", str(path)) is not None


def model_folder(path: str | Path) -> Path:
    """The folder of a model: on a disk, in a bucket, or downloaded from the hub.

    Args:
        path: a path, or `gs://BUCKET/FOLDER`, or `hf://OWNER/NAME[@REVISION]`: an export that
            `tools.export --push` has put there.

    Returns:
        The folder; one of the hub lies in the client's cache. Its reader compares it with its digests.

    Raises:
        UserError: there is no such model on the hub, it is no export, it may not be read, or it is not
            in the cache and the hub cannot be reached; or as `located`.
    """
    return snapshot(address_of(path)) if on_hub(path) else located(path)


def address_of(path: str | Path) -> Address:
    """Parses `hf://OWNER/NAME[@REVISION]`.

    Raises:
        UserError: it is none.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None:
        raise UserError(
            f"{str(path)[:300]}: this names no model on the hub; write hf://OWNER/NAME or "
            "hf://OWNER/NAME@REVISION"
        )
    return Address(found["name"], found["revision"] or "main")


def snapshot(address: Address) -> Path:
    """Downloads the files of an export, unless the cache has them; raises as `model_folder` does."""
    manifest = hub_file(address, _MANIFEST, hint="it is no export of refseg_jax; name another")
    # A commit: its files do not change, and what the cache has of them is not asked for again.
    commit = Address(address.name, manifest.parent.name)
    hub_file(commit, _CONFIG, hint="it is no export of refseg_jax; name another", of=address)
    for name in _named(manifest, address):
        hub_file(commit, name, hint="its upload is not complete; push it again", of=address)
    return manifest.parent


def _named(manifest: Path, address: Address) -> list[str]:
    """The files of a manifest, whose digest the reader of the folder checks."""
    try:
        names = list(json.loads(manifest.read_bytes())["files"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{address}: its {_MANIFEST} is none of an export; name another") from None
    for name in names:
        if name.startswith("/") or "\\" in name or {"..", "."} & set(name.split("/")):
            raise UserError(f"{address}: its {_MANIFEST} names files outside the folder")
    return names


def hub_file(address: Address, name: str, *, hint: str, of: Address | None = None) -> Path:
    """A file on the hub, from the cache or downloaded into it.

    A branch or tag is looked up on the hub, if that can be reached: it may have moved.

    Args:
        address: the model.
        name: path of the file in it.
        hint: what is to be said if the hub has no such file.
        of: the address for errors, if it is not `address`.

    Raises:
        UserError: as `model_folder`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(address.name, name, revision=address.revision)
    there = Path(cached) if isinstance(cached, str) else None
    if there is not None and there.parents[name.count("/")].name == address.revision:
        return there
    shown = of or address
    page = f"{_URL}/{address.name}"
    try:
        # Without a network this fails at once, while a download would retry for half a minute.
        huggingface_hub.HfApi().model_info(
            address.name, revision=address.revision, timeout=_PATIENCE
        )
        return Path(huggingface_hub.hf_hub_download(address.name, name, revision=address.revision))
    except errors.GatedRepoError:
        why = f"its owner gives access to those who ask; ask at {page}, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "the hub has no such model that you may read; correct the name, or `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {address.revision}; {page}/tree/main lists them"
    except errors.RemoteEntryNotFoundError:
        why = f"no {name}: {hint}"
    except Exception as error:  # The client raises exceptions of many types.
        if there is not None:
            return there
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        why = (
            f"{name} is not in the cache, and the hub cannot be reached ({escaped(reason)[:120]}); see "
            f"to the network, or copy the folder by hand from {page}/tree/main"
        )
    raise UserError(f"{shown}: {why}") from None
