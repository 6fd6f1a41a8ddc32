"""Paths in buckets of Google Cloud Storage (`gs://bucket/folder`), beside those on a disk.

Whatever takes both calls `located`. A path in a bucket has the methods of `pathlib.Path` but
`absolute`, `rglob` and some fields of `stat`; functions of this module stand in for these.

A bucket has objects, no folders: nothing is renamed or appended to, nothing can be locked, and a file
appears at once when it is complete.
"""

import contextlib
import fnmatch
import functools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from refseg_jax.errors import UserError

#: `pathlib` makes one slash of two.
_REMOTE = re.compile(r"gs:/{1,2}(?P<bucket>[^/]*)(?P<rest>/.*)?", re.DOTALL)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")

_INSTALL = "pip install 'refseg_jax[gcs]'"
_ALLOW = (
    "give these credentials the role Storage Object User on the bucket, or use others (gcloud auth "
    "application-default login, or GOOGLE_APPLICATION_CREDENTIALS)"
)
_RETRY = "see to the network and the name; the same command again goes on"

# Read when etils is first used: else it imports TensorFlow for buckets wherever that is installed.
os.environ.setdefault("EPATH_USE_TF", "false")
# Read when gcsfs is imported: the plain API serves every kind of bucket and needs fewer permissions.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def is_remote(path: str | Path) -> bool:
    """Whether a path lies in a bucket."""
    return _REMOTE.match(str(path)) is not None


def scheme_of(path: str | Path) -> str | None:
    """The scheme of an address, e.g. `s3`; `None` of a path on a disk."""
    found = _SCHEME.match(str(path))
    return found[1] if found else None


def located(path: str | Path) -> Path:
    """A path on a disk or in a bucket.

    The first path of each bucket asks whether that can be listed, so that a mistake in its name or in
    the credentials is found at once.

    Raises:
        UserError: the bucket does not exist, cannot be reached or may not be listed; gcsfs is not
            installed; or the path has another scheme than `gs://`.
    """
    found = _REMOTE.fullmatch(str(path))
    if found is None:
        return on_disk(path)
    bucket, rest = found["bucket"], found["rest"] or ""
    if not bucket:
        raise UserError(f"{path}: it names no bucket; write gs://BUCKET/FOLDER")
    _check(bucket)
    from etils import epath

    # It has the methods that are called here, though it is no `pathlib.Path`.
    return cast(Path, epath.Path(f"gs://{bucket}{rest}"))


def on_disk(path: str | Path, cure: str = "name a folder on a disk") -> Path:
    """A path that must lie on a disk.

    Raises:
        UserError: it has a scheme; the line ends with `cure`.
    """
    text = str(path)
    scheme = scheme_of(text)
    if is_remote(text):
        raise UserError(f"{text}: this cannot lie in a bucket; {cure}")
    if scheme is not None:
        raise UserError(f"{text}: {scheme}:// is not known; name a folder on a disk or gs://")
    return Path(path)


def absolute(path: Path) -> Path:
    """`Path.absolute`; a path in a bucket is absolute."""
    return path if is_remote(path) else path.absolute()


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    stat: Any = path.stat()
    return stat.length if is_remote(path) else stat.st_size


def versions(folder: Path, pattern: str) -> list[tuple[str, int, int]]:
    """Name and bytes of the files of a folder, and a number that changes when one is written again.

    Args:
        folder: the folder.
        pattern: of the names, as for `Path.glob`, without a slash.
    """
    if not is_remote(folder):
        stats = ((path.name, path.stat()) for path in folder.glob(pattern))
        return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    found = ((Path(f["name"]).name, f) for f in _files().ls(str(folder), detail=True))
    return sorted(
        (name, f["size"], int(f["generation"]))
        for name, f in found
        if fnmatch.fnmatchcase(name, pattern) and f["type"] == "file"
    )


def files(folder: Path) -> list[str]:
    """Sorted paths of all files below a folder, relative to it."""
    if not is_remote(folder):
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    start = f"{folder}/".removeprefix("gs://")
    # The web console keeps an empty folder as an object whose name ends with a slash.
    return sorted(p.removeprefix(start) for p in _files().find(start) if not p.endswith("/"))


def write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all; its folder must exist.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):
        path.write_bytes(content)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Deletes a folder with all that is in it; errors are ignored."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    # gcsfs' own errors are no `OSError`.
    with contextlib.suppress(Exception):
        _files().rm(str(folder), recursive=True)


def trouble(error: BaseException | None) -> str | None:
    """What is wrong with a bucket or the way to it, with the cure; `None` if the error is another one.

    Searches the error and its causes. An error of JAX is another one, though it may say `UNAVAILABLE`
    of a process that is gone. So is that of a network's disk which does not answer.
    """
    while error is not None:
        package = type(error).__module__.partition(".")[0]
        if package in ("jax", "jaxlib"):
            return None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if package == "gcsfs":
            code = getattr(error, "code", None)
            return f"{reason}; {_ALLOW if code in (401, 403) else _RETRY}"
        if package == "google":
            return f"no credentials ({reason}); {_ALLOW}"
        of_client = isinstance(error, TimeoutError) and error.errno is None
        if package == "aiohttp" or of_client:
            return f"it cannot be reached ({reason}); {_RETRY}"
        if isinstance(error, OSError) and reason.startswith("Forbidden: "):
            return f"{reason}; {_ALLOW}"
        if found := _OF_CLIENTS.search(reason):
            return f"{reason}; {_ALLOW if found[1] in _REFUSALS else _RETRY}"
        error = error.__cause__ or error.__context__
    return None


#: How the clients of TensorStore and ArrayRecord, in C++, name what went wrong.
_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
_OF_CLIENTS = re.compile(r"\b(UNAUTHENTICATED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turns errors of buckets into one line.

    Raises:
        UserError: in the place of an error that has a `trouble`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        raise UserError(f"gs://: {reason}") from error


@functools.cache
def _check(bucket: str) -> None:
    """Lists one object of a bucket."""
    place = f"gs://{bucket}"
    try:
        system = _files()
    except ImportError:
        raise UserError(
            f"{place}: buckets need gcsfs, which is not installed; {_INSTALL}"
        ) from None
    try:
        system.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(
            f"{place}: there is no such bucket; write its name as Google has it"
        ) from None
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        raise UserError(f"{place}: {reason}") from error


def _files() -> Any:
    """The file system of all buckets, which etils uses as well.

    Raises:
        ImportError: gcsfs is not installed.
    """
    import fsspec
    import fsspec.config

    # TensorStore writes beside it, and so do other processes: a kept listing would be an old one.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # Its errors are raised, too.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return fsspec.filesystem("gcs", finalize_on_close=True)
