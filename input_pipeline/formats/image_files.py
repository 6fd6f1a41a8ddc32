"""Finds the images that published annotations name, in the copies of the image sets that people have."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from input_pipeline.building.conversion import SourceError
from refseg_jax.images.files import same_name
from refseg_jax.images.kinds import has_suffix

#: What COCO's names of 2014 have before those of 2017: `COCO_train2014_000000000009.jpg`.
_COCO = re.compile(r"coco_[a-z]+20\d\d_(?=\d{12}\.)")


class ImageFiles:
    """The images of some folders, by name; earlier folders come first.

    An image that is not there under its own name is found under another one: COCO's of the other year,
    with an ending in other letters (`.JPG`, `.jpeg`), or with accents in another form. Hidden files are
    no images, and neither are the companions that macOS writes (`._NAME`).
    """

    def __init__(self, source: Path, folders: Iterable[str], images: str) -> None:
        """Lists the folders.

        Args:
            source: the source folder.
            folders: folders below it that may hold images, and need not exist.
            images: name of the image collection, for the message.

        Raises:
            SourceError: no folder has an image.
        """
        places = tuple(folders)
        self._folders: list[Path] = []
        # File name -> index of the folder, because a dataset may have 100,000 of them.
        self._found: dict[str, int] = {}
        self._alike: dict[str, str] = {}
        for folder in (source / place for place in places):
            names = _images_in(folder)
            if names:
                for name in names:
                    self._found.setdefault(name, len(self._folders))
                self._folders.append(folder)
        if not self._folders:
            raise SourceError(
                f"{source}: no folder of images; put (or link) {images} at "
                f"{source / places[min(1, len(places) - 1)]}"
            )

    def find(self, name: str) -> Path | None:
        """Path of the image of a name; `None` if there is none."""
        if name in self._found:
            return self._folders[self._found[name]] / name
        if not self._alike:
            for other in self._found:
                self._alike.setdefault(_key(other), other)
        alike = self._alike.get(_key(name))
        return None if alike is None else self._folders[self._found[alike]] / alike

    def expected(self, name: str) -> Path:
        """Path at which to put an image that is not there."""
        return self._folders[0] / name


def base_name(file_name: str) -> str:
    """The last part of a file name. Some copies add folders, which must not lead out of the source."""
    return PurePosixPath(file_name.replace("\\", "/")).name


def _images_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and has_suffix(name)


def _key(name: str) -> str:
    lower = same_name(name).lower()
    return _COCO.sub("", lower).replace(".jpeg", ".jpg")
