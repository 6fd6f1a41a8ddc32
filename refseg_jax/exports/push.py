"""Puts an exported folder on the Hugging Face hub, where `hf://OWNER/NAME` finds it."""

import glob
from pathlib import Path
from typing import NamedTuple

from refseg_jax.checkpoints import manifest
from refseg_jax.errors import UserError, escaped
from refseg_jax.exports import folder as exported
from refseg_jax.storage.hub import address_of

_LOG_IN = "log in with `hf auth login`, by a token that may write there"


class Pushed(NamedTuple):
    """What lies on the hub, or would.

    Attributes:
        name: `OWNER/NAME`.
        files: path of each file -> bytes.
        commit: address of the commit, `""` where nothing was sent.
    """

    name: str
    files: dict[str, int]
    commit: str


def check_name(name: str) -> str:
    """Checks that a name may be one of a model on the hub, and returns it.

    Raises:
        UserError: it is none.
    """
    if "@" in name or name.startswith("hf:"):
        raise UserError(f"--push={name[:200]}: give OWNER/NAME alone; it goes to the main branch")
    try:
        return address_of(f"hf://{name}").name
    except UserError:
        raise UserError(f"--push={name[:200]}: no name on the hub; write OWNER/NAME") from None


def push(folder: Path, name: str, *, private: bool = False, dry_run: bool = False) -> Pushed:
    """Uploads the files of an export in one commit; makes the repository if there is none.

    Files that are no part of the export stay where they are, here and there.

    Args:
        folder: the export, which is compared with its digests first.
        name: `OWNER/NAME`.
        private: whether a repository that is made here is private.
        dry_run: sends nothing, and needs no network.

    Raises:
        UserError: a file of the export is missing or damaged, or the hub refuses it or cannot be
            reached.
    """
    check_name(name)
    exported.check_files(folder, (exported.CONFIG,))
    sizes = {file: size for file, (size, _) in manifest.read(folder).items()}
    sizes[manifest.NAME] = (folder / manifest.NAME).stat().st_size
    commit = "" if dry_run else _upload(folder, name, list(sizes), private)
    return Pushed(name, sizes, commit)


def _upload(folder: Path, name: str, files: list[str], private: bool) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    client = huggingface_hub.HfApi(library_name="refseg_jax")
    try:
        client.create_repo(name, private=private, exist_ok=True)
        done = client.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[glob.escape(file) for file in files],
            commit_message="Export of refseg_jax",
        )
        return str(done.commit_url)
    except errors.LocalTokenNotFoundError:
        why = f"there is no token; {_LOG_IN}"
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        cure = _LOG_IN if code in (401, 403, 404) else "the same command again may do"
        why = f"the hub refuses it ({_line(error)}); {cure}"
    except ValueError as error:
        why = f"the hub refuses it ({_line(error)}); correct the model card, or export again"
    except Exception as error:  # The client raises exceptions of many types.
        why = f"the hub cannot be reached ({_line(error)}); see to the network, and give it again"
    raise UserError(f"--push={name}: {why}; {folder} is complete") from None


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return escaped(" ".join(text.splitlines()[0].split()))[:160]
