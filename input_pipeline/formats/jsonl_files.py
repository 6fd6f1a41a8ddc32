"""Finds the lines of a user's own images; `input_pipeline.datasets.jsonl` has the format.

A plan of many images must be small and quick to hash, so it holds only the places of the lines and a
digest of them. Making a record reads the lines again.
"""

import dataclasses
import functools
import hashlib
import itertools
import operator
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.archives import Member, tar_members
from input_pipeline.formats.jsonl_lines import Line, parse_line, parse_lines
from input_pipeline.formats.places import Places
from refseg_jax.errors import shown
from refseg_jax.images.decoding import seen_size
from refseg_jax.images.files import check_regular, same_name
from refseg_jax.images.kinds import has_suffix
from refseg_jax.images.units import Evidence
from refseg_jax.text.encoding import EncodingError, check_start, is_blank

#: Endings of a sample's image in a tar. Others count where there is none of these, so that a sample may
#: have a TIFF of something else beside its JPEG.
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")

_PACKED = "gz|bz2|xz|zst|zip|7z"
#: Names of files that were meant for a split, and would be left out without a word.
_MEANT = re.compile(
    rf"(?P<lines>.+)\.(?:jsonl(?:\.(?:(?P<packed>{_PACKED})|txt|json))?|jsonlines|ndjson)"
    rf"|(?P<shard>.+-\d+(?:-of-\d+)?)\.(?:tar(?:\.(?P<tarred>{_PACKED}))?|(?P<short>tgz|txz|tbz2?))",
    re.IGNORECASE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class FolderImage:
    """An image of a folder, with the places of its lines.

    Attributes:
        name: path of the image file, relative to the folder.
        files: the files that have lines about it.
        places: i64 `[E, 3]` as bytes, for each expression: index in `files`, number of the line, and
            offset of the line in bytes.
        digest: BLAKE2b digest of the lines.
        threshold: at which masks are cut whose lines do not say it, or `None`.
    """

    name: str
    files: tuple[Path, ...]
    places: bytes
    digest: bytes
    threshold: int | None = None

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

    def read(self, name: str, places: Places, where: str) -> bytes:
        """Reads a file that a line names; raises a `BuildError` if that fails."""
        return places.read(name, where)


@dataclasses.dataclass(frozen=True)
class TarImage:
    """A sample of a tar: an image, its JSON and its masks.

    Attributes:
        name: name of the image.
        archive: a plain tar.
        text: the member with the JSON.
        members: all members of the sample.
        digest: BLAKE2b digest of the JSON.
        threshold: as that of `FolderImage`.
    """

    name: str
    archive: Path
    text: Member
    members: tuple[Member, ...]
    digest: bytes
    threshold: int | None = None

    @property
    def key(self) -> str:
        """Unique in the dataset, although two tars may have samples of the same name."""
        return f"{self.archive.name}/{self.name}"

    def lines(self) -> list[Line]:
        """Reads the expressions, in order."""
        return _parse_sample(self._bytes(self.text), self.archive, self.text)

    def read(self, name: str, places: Places, where: str) -> bytes:
        """Reads a member of the sample; raises a `BuildError` if there is none of that name."""
        del places
        key = same_name(name)
        member = next((m for m in self.members if same_name(m.name) == key), None)
        if member is None:
            sample = ", ".join(member.name for member in self.members)
            raise BuildError(f"{where}: no {name!r:.80} in its sample; there are: {sample}")
        return self._bytes(member)

    def _bytes(self, member: Member) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


class ImageLines(Protocol):
    """An image and its lines: of a folder, of a tar, or of an export of another tool."""

    @property
    def name(self) -> str:
        """Name of the image."""
        ...

    @property
    def key(self) -> str:
        """Unique in the dataset."""
        ...

    @property
    def threshold(self) -> int | None:
        """At which masks are cut whose lines do not say it."""
        ...

    def lines(self) -> list[Line]:
        """Reads the expressions, in order."""
        ...

    def read(self, name: str, places: Places, where: str) -> bytes:
        """Reads a file that a line names; raises a `BuildError` if that fails."""
        ...


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: `train.jsonl`, `train-00000-of-00010.jsonl`, or tars named alike.

    Raises:
        SourceError: the folder has no such file.
        BuildError: the name of a split cannot be used, or a file of a split is missing.
    """
    splits: dict[str, list[Path]] = {}
    numbered: dict[tuple[str, str, str], set[int]] = {}
    _check_none_is_left_out(folder)
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.tar")]):
        if path.name.startswith("."):  # Companions of macOS (._train.jsonl), locks of editors.
            continue
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


def _check_none_is_left_out(folder: Path) -> None:
    """Refuses files that are named like a split and are not read: `val.jsonl.gz`, `val.JSONL`.

    A copy beside the file that is read does no harm.
    """
    for path in sorted(folder.glob("*")):
        name = _MEANT.fullmatch(path.name)
        if name is None or path.suffix in (".jsonl", ".tar") or path.name.startswith("."):
            continue
        wanted = f"{name['lines']}.jsonl" if name["lines"] else f"{name['shard']}.tar"
        if (folder / wanted).exists():
            continue
        packed = name["packed"] or name["tarred"] or name["short"]
        cure = f"unpack it to {wanted}" if packed else f"call it {wanted}"
        raise BuildError(
            f"{shown(path)}: only *.jsonl and plain *.tar are read; {cure}, or move it elsewhere"
        )


def read_images(
    files: Sequence[Path], places: Places, mask_threshold: int | None = None
) -> list[FolderImage | TarImage]:
    """Reads the images of a split, in the order of their first lines, and checks every line.

    Args:
        files: files of lines and tars.
        places: the folders that may hold the images.
        mask_threshold: at which masks are cut whose lines do not say it, 1..255, or `None`.

    Raises:
        BuildError: a line is malformed, a file cannot be read, the coordinates of the split are no
            pixels, or the threshold is no level.
        ArchiveError: a tar is damaged or refused.
    """
    if mask_threshold is not None and not 1 <= mask_threshold <= 255:
        raise BuildError(f"--mask_threshold={mask_threshold}: it is a level of 1 to 255")
    for path in files:
        try:
            check_regular(path)
        except OSError as error:
            raise BuildError(f"{path}: {error.strerror}; it must be a file") from None
    lines = [path for path in files if path.suffix == ".jsonl"]
    tars = [path for path in files if path.suffix == ".tar"]
    evidence = Evidence()
    images: list[FolderImage | TarImage] = [*_folder_images(lines, evidence)]
    for tar in tars:
        images += _tar_images(tar, evidence)
    if unit := evidence.find(functools.partial(_size_of, places)):
        raise BuildError(f"{evidence.first.where}: {unit}")
    return [dataclasses.replace(image, threshold=mask_threshold) for image in images]


@dataclasses.dataclass(frozen=True)
class _Picture:
    """An image that a line is about; for a tar, `member` is the image.

    The place of the line does not count when two are compared.
    """

    name: str
    where: str = dataclasses.field(compare=False)
    archive: Path | None = None
    member: Member | None = None


def _size_of(places: Places, picture: _Picture) -> tuple[int, int]:
    """(height, width) that the header of an image states; (0, 0) if it cannot be read."""
    try:
        if picture.archive is None or picture.member is None:
            data = places.read(picture.name, picture.where)
        else:
            with picture.archive.open("rb") as file:
                file.seek(picture.member.offset)
                data = file.read(picture.member.size)
        return seen_size(data)
    except Exception:  # Making its record says what is wrong with it.
        return 0, 0


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


def _folder_images(files: Sequence[Path], evidence: Evidence) -> Iterator[FolderImage]:
    images: dict[str, _Found] = {}
    for path in files:
        for number, offset, data in _raw_lines(path):
            line = _parse(data, path, number)
            # One image, however its lines spell the way to it (`a.png`, `./a.png`). An address on the
            # web stays as it is, for the error.
            name = line.image if "://" in line.image else os.path.normpath(line.image)
            evidence.add(line.shape, _Picture(name, line.where))
            images.setdefault(name, _Found()).add(path, number, offset, data)
    for name, found in images.items():
        yield FolderImage(name, tuple(found.files), bytes(found.places), found.digest.digest())


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, offset in bytes, bytes) of each line that is not blank."""
    offset = 0
    try:
        with path.open("rb") as file:
            # Not `splitlines`, which also splits at characters that JSON allows within a text.
            for number, data in enumerate(file, 1):
                if number == 1:
                    check_start(data)
                if not is_blank(data):
                    yield number, offset, data
                offset += len(data)
    except EncodingError as error:
        raise BuildError(f"{path}: {error}") from None
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}; it must be a file") from None


def _parse(data: bytes, path: Path, number: int) -> Line:
    return parse_line(data, f"{path}:{number}", f"{path.stem}-{number}")


def _tar_images(archive: Path, evidence: Evidence) -> Iterator[TarImage]:
    with archive.open("rb") as file:
        for key, members in _samples(archive).items():
            text = members.get("json")
            images = [members[ending] for ending in _IMAGES if ending in members] or [
                member
                for ending, member in members.items()
                # Masks have two dots.
                if "." not in ending and has_suffix(f"a.{ending}")
            ]
            if text is None or len(images) != 1:
                what = "no .json" if text is None else f"{len(images)} images"
                raise BuildError(
                    f"{archive}: sample {key!r:.80} has {what}; it needs {key}.json, {key}.jpg (or "
                    f".png) and its masks as {key}.NAME.png"
                )
            file.seek(text.offset)
            data = file.read(text.size)
            for line in _parse_sample(data, archive, text):
                picture = _Picture(images[0].name, line.where, archive, images[0])
                evidence.add(line.shape, picture)
                if line.image and same_name(line.image) != same_name(images[0].name):
                    raise BuildError(
                        f"{line.where}: 'image' is {line.image!r:.80}, its sample's is "
                        f"{images[0].name!r:.80}; leave it out"
                    )
            digest = hashlib.blake2b(data, digest_size=16).digest()
            yield TarImage(images[0].name, archive, text, tuple(members.values()), digest)


def _samples(archive: Path) -> Mapping[str, Mapping[str, Member]]:
    """Sample -> ending -> member. As in WebDataset, the ending begins at the name's first dot.

    The members of a sample may be spelled apart (`same_name`), as two systems have packed them.
    """
    samples: dict[str, dict[str, Member]] = {}
    for member in tar_members(archive):
        folder, slash, name = member.name.rpartition("/")
        if name.startswith("."):  # .DS_Store
            continue
        key, _, ending = name.partition(".")
        sample = samples.setdefault(same_name(f"{folder}{slash}{key}"), {})
        if other := sample.get(ending.lower()):
            raise BuildError(
                f"{archive}: {shown(other.name)} and {shown(member.name)} are the same file of one "
                "sample; rename one of them"
            )
        sample[ending.lower()] = member
    return samples


def _parse_sample(data: bytes, archive: Path, text: Member) -> list[Line]:
    key = text.name.rpartition(".")[0]
    return parse_lines(data, f"{archive}/{text.name}", f"{archive.stem}/{key}")
