"""Finds the files that the lines of a user's own data name, and only where they may lie."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.building.conversion import BuildError
from refseg_jax.errors import shown
from refseg_jax.images.files import read_file, spellings

#: Addresses on the web, in a cloud, or of a file (`file://`), and pictures within a text.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:\w+/", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders that may hold the images and masks of a dataset.

    A name is relative to the first folder, and to each of the others if it is not there. A name that is
    absolute, or climbs out of the first folder by `..`, must lead below one of these folders. Links in
    them are followed to regular files, because the user has placed them; unpacked archives have none.

    Attributes:
        folder: the folder of the lines.
        others: folders of images elsewhere.
    """

    folder: Path
    others: tuple[Path, ...] = ()

    def read(self, name: str, where: str) -> bytes:
        """Reads a file that a line names.

        Args:
            name: the name. Backslashes may stand for slashes, as on Windows, and accents may be
                composed or not (macOS decomposes them).
            where: place of the line, for errors.

        Raises:
            BuildError: there is no such file, it is no regular file, or it lies elsewhere.
        """
        if _ADDRESS.match(name):
            raise BuildError(
                f"{where}: {shown(name)} is an address, no file; download it, and name the file"
            )
        paths = dict.fromkeys(self._candidates(name))
        inside = [path for path in paths if self._holds(path)]
        if not inside:
            raise BuildError(
                f"{where}: {shown(name)} lies outside of {self.folder}; give --image_dir=FOLDER, the "
                "folder that holds it"
            )
        path = next(filter(os.path.exists, inside), inside[0])
        try:
            return read_file(path)
        except OSError as error:
            raise BuildError(
                f"{where}: {shown(path)}: {error.strerror}; correct the name"
            ) from None

    def has(self, name: str) -> bool:
        """Whether a name leads to a file in one of the folders."""
        if _ADDRESS.match(name):
            return False
        return any(path.is_file() and self._holds(path) for path in self._candidates(name))

    def _candidates(self, name: str) -> Iterator[Path]:
        for spelling in spellings(name):
            # Not resolved by the file system: `..` behind a link would lead elsewhere.
            within = Path(os.path.normpath(spelling))
            climbs = within.is_absolute() or within.parts[:1] == ("..",)
            for folder in (self.folder, *(() if climbs else self.others)):
                yield Path(os.path.normpath(folder / within))

    def _holds(self, path: Path) -> bool:
        roots = [_absolute(folder) for folder in (self.folder, *self.others)]
        if any(_absolute(path).is_relative_to(root) for root in roots):
            return True
        # An absolute name may be that of the folder behind a link.
        return any(path.resolve().is_relative_to(root.resolve()) for root in roots)


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))
