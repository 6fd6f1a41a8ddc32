"""Finds the pictures of a file or folder by their content, and says what else is there."""

import contextlib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from refseg_jax.errors import UserError, escaped
from refseg_jax.images.decoding import ImageError
from refseg_jax.images.files import check_regular
from refseg_jax.images.kinds import HEAD, VIDEO, has_suffix, kind_of
from refseg_jax.prediction.pictures import unusable

#: Files that systems lay beside pictures; nobody needs to hear of them.
_COMPANIONS = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini", re.IGNORECASE | re.DOTALL)

#: Errors of writing that are of one picture's name, not of the folder.
_OF_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

#: What a result's name adds to that of its picture; files that are not of a single picture.
_RESULT = re.compile(r"(.+)-(?:\d+-(?:mask|overlay|regions|heatmaps)|groups-\w+)\.png", re.DOTALL)
_SHARED = re.compile(r"predictions\.jsonl?|matches\.jsonl|coco\.json|sheet-\d+\.png")


class Picture(NamedTuple):
    """A file that should be a picture.

    Attributes:
        path: the file.
        name: of the file in the folder, with `/` after sub-folders.
    """

    path: Path
    name: str


class Found(NamedTuple):
    """The pictures of a folder, and what else is there.

    Attributes:
        pictures: those to read, in the order of their names; sub-folders come after files.
        errors: a line for each kind of pictures that cannot be read, and for each other file that
            cannot be used.
        unusable: number of files in `errors`.
        notes: a line for each kind of files that are no pictures, and for folders that were not entered.
    """

    pictures: list[Picture]
    errors: list[str]
    unusable: int
    notes: list[str]


def find_pictures(
    path: Path, *, recursive: bool | None = False, without: Path | None = None
) -> Found:
    """Finds the pictures that a path names.

    A file is taken as it is. Of a folder, all files that begin like a picture are taken, and those that
    are named like one. Links to files are followed, and links to folders if sub-folders are entered.

    Args:
        path: a file or a folder.
        recursive: whether to enter sub-folders; `None` if not, and no flag would enter them.
        without: a folder that is not entered, because results go there.

    Raises:
        UserError: there is no such path, it is neither file nor folder, or it cannot be listed.
    """
    search = _Search(recursive, without)
    if path.is_file():
        search.add(path, path.name, chosen=True)
    elif path.is_dir():
        search.enter(path, "")
    else:
        what = "is no file" if path.exists() else "no such file or folder"
        raise UserError(f"{path}: {what}; name an image with --image")
    return search.found()


def check_results(found: Iterable[Picture], folder: Path) -> None:
    """Checks that no result gets the name of a picture that it would replace.

    Args:
        found: the pictures.
        folder: where the results will be written.

    Raises:
        UserError: a picture lies in the folder under the name of a result.
    """
    there, pictures = _real(folder), list(found)
    names = {_key(picture.name) for picture in pictures}
    for picture in pictures:
        place = _real(picture.path.parent) / picture.path.name
        if not place.is_relative_to(there):
            continue
        name = _key(place.relative_to(there).as_posix())
        parts = _RESULT.fullmatch(name)
        if _SHARED.fullmatch(name) or (parts is not None and parts[1] in names):
            raise UserError(
                f"{picture.path}: this picture has the name of a result, which would replace it; name "
                "another --output_dir"
            )


@contextlib.contextmanager
def costing_itself(name: object) -> Iterator[None]:
    """Turns whatever one picture raises in the block into an `ImageError`; the others may be well.

    Args:
        name: of the picture, for the message.

    Raises:
        UserError: this picture cannot be used (`ImageError`), or none can.
        OSError: nothing can be written.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in _OF_NAME:
            raise
        raise ImageError(
            f"{name}: its results cannot be written ({error.strerror}); rename it"
        ) from None
    # Decoders, warps and the model may raise anything.
    except Exception as error:
        raise unusable(name, error) from None


class _Search:
    """Collects what folders hold."""

    def __init__(self, recursive: bool | None, without: Path | None) -> None:
        self.pictures: list[Picture] = []
        self.errors: list[str] = []
        self._recursive = recursive
        # Folders that are not entered: results, and those that were entered through a link.
        self._left = set() if without is None else {_real(without)}
        self._unread: dict[str, list[str]] = {}
        self._others: dict[str, list[str]] = {}
        self._hidden: list[str] = []
        self._folders: list[str] = []

    def found(self) -> Found:
        unread = [f"{_first(names)}: {reason}" for reason, names in self._unread.items()]
        notes = [
            f"{_first(names)}: no pictures ({suffix or 'no suffix'}), left out"
            for suffix, names in self._others.items()
        ]
        if self._hidden:
            notes.append(f"{_first(self._hidden)}: hidden, left out")
        if self._folders:
            cure = "" if self._recursive is None else "; --recursive enters sub-folders"
            notes.append(f"{_first(self._folders)}: not entered{cure}")
        number = len(self.errors) + sum(map(len, self._unread.values()))
        return Found(self.pictures, [*self.errors, *unread], number, notes)

    def enter(self, folder: Path, prefix: str) -> None:
        """Adds the files of a folder; `prefix` stands before their names."""
        self._left.add(_real(folder))
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            if not prefix:
                raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
            self.errors.append(f"{folder}: cannot be entered ({error.strerror}); allow it")
            return
        folders = []
        for path in paths:
            name = path.name
            if _COMPANIONS.fullmatch(name):
                continue
            if name.startswith("."):
                self._hidden.append(str(path))
            # Unlike Path.is_dir, it is false where the folder may be listed and not entered.
            elif os.path.isdir(path):  # noqa: PTH112
                folders.append(path)
            else:
                self.add(path, prefix + name)
        for path in folders:
            if _real(path) in self._left:
                continue
            if self._recursive:
                self.enter(path, f"{prefix}{path.name}/")
            else:
                self._folders.append(str(path))

    def add(self, path: Path, name: str, *, chosen: bool = False) -> None:
        """Adds a file; `chosen` says that the user has named it, so that it must be a picture."""
        try:
            check_regular(path)
            with path.open("rb") as file:
                kind = kind_of(file.read(HEAD))
        except OSError as error:
            self.errors.append(f"{path}: {error.strerror}; give a picture that can be read")
            return
        if chosen and kind is not None and kind.name == VIDEO:
            self.errors.append(f"{path}: is a video; name it with --video")
            return
        meant = chosen or has_suffix(name) or (kind is not None and kind.is_picture)
        if not meant:
            self._others.setdefault(path.suffix.lower(), []).append(str(path))
        elif kind is not None and not kind.reader:
            self._unread.setdefault(kind.unread, []).append(str(path))
        elif not _is_utf8(name):
            self.errors.append(f"{path}: its name is not UTF-8; rename it")
        else:
            self.pictures.append(Picture(path, name))


def _real(path: Path) -> Path:
    """The path without links; unlike `Path.resolve`, it takes links that lead to themselves."""
    return Path(os.path.realpath(path))


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key(name: str) -> str:
    """Equal for names that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def lines_of(found: Found) -> Iterator[str]:
    """The lines to print: errors and notes."""
    yield from (f"error: {escaped(line)}" for line in found.errors)
    yield from (f"note: {escaped(line)}" for line in found.notes)
