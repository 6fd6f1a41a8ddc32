"""Finds the lines of a user's own images; `input_pipeline.datasets.jsonl` has the format.

A plan of many images must be small and quick to hash, so it holds only the places of the lines and a
digest of them. Making a record reads the lines again.
"""

import dataclasses
import hashlib
import itertools
import operator
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.archives import Member, tar_members
from input_pipeline.formats.jsonl_lines import Line, parse_line, parse_lines

_BOM = b"\xef\xbb\xbf"
#: Endings of a sample's image in a tar.
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")


@dataclasses.dataclass(frozen=True)
class FolderImage:
    """An image of a folder, with the places of its lines.

    Attributes:
        name: path of the image file, relative to the folder.
        files: the files that have lines about it.
        places: i64 `[E, 3]` as bytes, for each expression: index in `files`, number of the line, and
            offset of the line in bytes.
        digest: BLAKE2b digest of the lines.
    """

    name: str
    files: tuple[Path, ...]
    places: bytes
    digest: bytes

    @property
    def key(self) -> str:
        """Unique in the dataset."""
        return self.name

    def lines(self) -> list[Line]:
        """Reads the expressions, in order."""
        lines = []
        places = np.frombuffer(self.places, np.int64).reshape(-1, 3).tolist()
        for file, of_file in itertools.groupby(places, key=operator.itemgetter(0)):
            path = self.files[file]
            with path.open("rb") as opened:
                for _, number, offset in of_file:
                    opened.seek(offset)
                    lines.append(_parse(opened.readline(), path, number))
        return lines

    def read(self, name: str, folder: Path, where: str) -> bytes:
        """Reads a file that a line names; raises a `BuildError` if that fails."""
        path = folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise BuildError(f"{where}: {path}: {error.strerror}; correct the name") from None


@dataclasses.dataclass(frozen=True)
class TarImage:
    """A sample of a tar: an image, its JSON and its masks.

    Attributes:
        name: name of the image.
        archive: a plain tar.
        text: the member with the JSON.
        members: all members of the sample.
        digest: BLAKE2b digest of the JSON.
    """

    name: str
    archive: Path
    text: Member
    members: tuple[Member, ...]
    digest: bytes

    @property
    def key(self) -> str:
        """Unique in the dataset, although two tars may have samples of the same name."""
        return f"{self.archive.name}/{self.name}"

    def lines(self) -> list[Line]:
        """Reads the expressions, in order."""
        data = self.read(self.text.name, self.archive, str(self.archive))
        return _parse_sample(data, self.archive, self.text)

    def read(self, name: str, folder: Path, where: str) -> bytes:
        """Reads a member of the sample; raises a `BuildError` if there is none of that name."""
        del folder
        member = next((member for member in self.members if member.name == name), None)
        if member is None:
            sample = ", ".join(member.name for member in self.members)
            raise BuildError(f"{where}: no {name!r:.80} in its sample; there are: {sample}")
        with self.archive.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


ImageLines: TypeAlias = FolderImage | TarImage


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: `train.jsonl`, `train-00000-of-00010.jsonl`, or tars named alike.

    Raises:
        SourceError: the folder has no such file.
        BuildError: the name of a split cannot be used, or a file of a split is missing.
    """
    splits: dict[str, list[Path]] = {}
    numbered: dict[tuple[str, str, str], set[int]] = {}
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.tar")]):
        parts = re.fullmatch(r"(.+?)(?:-(\d+)(?:-of-(\d+))?)?", path.stem, re.ASCII | re.DOTALL)
        assert parts is not None  # The first group matches any text.
        split, number, of = parts.groups()
        # TFDS reads `train+val` and `train[0]` as expressions over splits, and `all` as all of them.
        if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII) or split == "all":
            raise BuildError(f"{path}: a split cannot be called {split!r}; use letters, digits, _")
        splits.setdefault(split, []).append(path)
        if of:
            numbered.setdefault((split, of, path.suffix), set()).add(int(number))
    if not splits:
        raise SourceError(f"{folder}: no *.jsonl there; write one for each split (train.jsonl)")
    for (split, of, suffix), there in numbered.items():
        missing = int(of) - len(there)
        if missing or max(there) >= int(of):
            first = next(number for number in itertools.count() if number not in there)
            raise BuildError(
                f"{folder}: {split}-*-of-{of}{suffix} are {len(there)} files, number {first} is "
                "missing or one is too many; copy all of them"
            )
    return splits


def read_images(files: Sequence[Path]) -> list[ImageLines]:
    """Reads the images of a split, in the order of their first lines, and checks every line.

    Raises:
        BuildError: a line is malformed, or a file cannot be read.
        ArchiveError: a tar is damaged or refused.
    """
    lines = [path for path in files if path.suffix == ".jsonl"]
    tars = [path for path in files if path.suffix == ".tar"]
    return [*_folder_images(lines), *(image for tar in tars for image in _tar_images(tar))]


class _Found:
    """Collects the lines of an image of a folder."""

    def __init__(self) -> None:
        self.files: dict[Path, int] = {}
        self.places = bytearray()
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, path: Path, number: int, offset: int, line: bytes) -> None:
        file = self.files.setdefault(path, len(self.files))
        self.places += struct.pack("=3q", file, number, offset)
        self.digest.update(line)


def _folder_images(files: Sequence[Path]) -> Iterator[FolderImage]:
    images: dict[str, _Found] = {}
    for path in files:
        for number, offset, data in _raw_lines(path):
            line = _parse(data, path, number)
            images.setdefault(line.image, _Found()).add(path, number, offset, data)
    for name, found in images.items():
        yield FolderImage(name, tuple(found.files), bytes(found.places), found.digest.digest())


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, offset in bytes, bytes) of each line that is not blank."""
    offset = 0
    try:
        with path.open("rb") as file:
            # Not `splitlines`, which also splits at characters that JSON allows within a text.
            for number, data in enumerate(file, 1):
                if data.removeprefix(_BOM if number == 1 else b"").strip():
                    yield number, offset, data
                offset += len(data)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}; it must be a file") from None


def _parse(data: bytes, path: Path, number: int) -> Line:
    # Some editors begin a file with a byte order mark.
    text = data.removeprefix(_BOM) if number == 1 else data
    return parse_line(text, f"{path}:{number}", f"{path.stem}-{number}")


def _tar_images(archive: Path) -> Iterator[TarImage]:
    with archive.open("rb") as file:
        for key, members in _samples(archive).items():
            text = members.get("json")
            images = [members[ending] for ending in _IMAGES if ending in members]
            if text is None or len(images) != 1:
                what = "no .json" if text is None else f"{len(images)} images"
                raise BuildError(
                    f"{archive}: sample {key!r:.80} has {what}; it needs {key}.json, {key}.jpg (or "
                    f".png) and its masks as {key}.NAME.png"
                )
            file.seek(text.offset)
            data = file.read(text.size)
            for line in _parse_sample(data, archive, text):
                if line.image not in ("", images[0].name):
                    raise BuildError(
                        f"{line.where}: 'image' is {line.image!r:.80}, its sample's is "
                        f"{images[0].name!r:.80}; leave it out"
                    )
            digest = hashlib.blake2b(data, digest_size=16).digest()
            yield TarImage(images[0].name, archive, text, tuple(members.values()), digest)


def _samples(archive: Path) -> Mapping[str, Mapping[str, Member]]:
    """Sample -> ending -> member. As in WebDataset, the ending begins at the name's first dot."""
    samples: dict[str, dict[str, Member]] = {}
    for member in tar_members(archive):
        folder, slash, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        samples.setdefault(f"{folder}{slash}{key}", {})[ending.lower()] = member
    return samples


def _parse_sample(data: bytes, archive: Path, text: Member) -> list[Line]:
    key = text.name.rpartition(".")[0]
    return parse_lines(data, f"{archive}/{text.name}", f"{archive.stem}/{key}")
