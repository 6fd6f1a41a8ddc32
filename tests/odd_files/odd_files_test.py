"""Every odd file through every way in: right, or one clear line with the cure; never silently wrong.

A row of `TABLE` names a folder (of the shared odd files, or of `made.MADE`), a way in (of `ways.WAYS`)
and what must come out. Rows of shared folders are skipped where those are not there.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.formats.cris import SOFT as CRIS_SOFT
from refseg_jax.images.decoding import AS_STORED, TURNED
from tests.odd_files.made import BOX, MADE, RED, WALL
from tests.odd_files.ways import WAYS

Colour = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Right:
    """Regions and pictures are right.

    Attributes:
        note: what must be said.
        inside, outside: colours of the region and of the rest; empty where the pictures have others.
        pixels: pixels of the regions, where they are not the box.
        stored: whether region and picture are as the file stores them, a quarter turn to the left.
        code: the exit code; a finding of the doctor is 1.
    """

    note: str = ""
    inside: Colour = RED
    outside: Colour = WALL
    pixels: int = 0
    stored: bool = False
    code: int = 0


@dataclasses.dataclass(frozen=True)
class Said:
    """Nothing is made, and one line says why and gives the cure."""

    text: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A folder, a way in with its flags, and what must come out."""

    folder: str
    way: str
    expected: Right | Said
    flags: tuple[str, ...] = ()


def rows(
    folders: Iterable[str], ways: Iterable[str], expected: Right | Said, *flags: str
) -> list[Row]:
    return [Row(folder, way, expected, flags) for folder in folders for way in ways]


LINES = ("jsonl", "shards", "tar")
LAYOUTS = ("cris", "refer", "ecssd", "coca", "lip", "sa1b")
BATCHES = ("training", "evaluation")

GREY = Right(inside=(81,), outside=(153,))
_CUT = "a mask two; save it black and white, or say from which level on (1 to 255) it counts"

TABLE: list[Row] = [
    # Masks that do not store what they show.
    *rows(
        ["mask_palette_order", "mask_palette_quantized", "mask_cutout_rgba", "made_looks"],
        [*LINES, "doctor", "doctor of the build", "cris", *BATCHES],
        Right(),
    ),
    *rows(
        ["mask_alpha_only"], [*LINES, "doctor", "doctor of the build", "cris", *BATCHES], Right()
    ),
    *rows(
        ["mask_palette_order", "mask_palette_quantized", "mask_cutout_rgba", "mask_alpha_only"],
        ["ecssd", "coca"],
        Right(),
    ),
    # Soft masks: a threshold is asked for.
    *rows(["mask_soft", "made_soft"], [*LINES, "doctor"], Said(_CUT)),
    *rows(["made_soft"], [*LINES, "doctor"], Right(), "--mask_threshold=128"),
    *rows(["made_soft"], ["ecssd", "coca"], Right("maps with other values than 0 and 255")),
    *rows(["made_soft"], ["cris"], Right(CRIS_SOFT, pixels=1528, inside=())),
    # Black and white the wrong way round is nobody's error, but told.
    *rows(
        ["made_inverted"],
        [*LINES, "cris", "ecssd", "coca"],
        Right("cover all four corners of the image", pixels=4704, inside=()),
    ),
    *rows(
        ["made_inverted"],
        ["doctor", "doctor of the build"],
        Right("target that covers all four corners of the image"),
    ),
    # Pictures that an EXIF flag turns.
    *rows(["made_turned"], [*LINES, "build_records", *LAYOUTS], Right(TURNED)),
    *rows(["made_turned"], ["doctor", "doctor of the build"], Right(TURNED)),
    *rows(["made_turned"], BATCHES, Right()),
    *rows(
        ["made_turned_stored", "made_turned_stored_runs"],
        [*LINES, "doctor"],
        Said("An EXIF flag turns the picture to 96 x 64: draw on what is seen, or save it upright"),
    ),
    *rows(
        ["made_turned_stored", "made_turned_stored_runs"],
        ["build_records", *LAYOUTS],
        Right(AS_STORED, stored=True),
    ),
    # Samples of more than 8 bits.
    *rows(
        ["deep_grey", "made_deep"],
        [*LINES, "doctor", "doctor of the build", "build_records", *LAYOUTS],
        dataclasses.replace(GREY, note="pictures of more than 8 bits a sample, read as of 12 bits"),
    ),
    *rows(["deep_grey", "made_deep"], BATCHES, GREY),
    *rows(
        ["made_unread"],
        [*LINES, "doctor", "build_records", *LAYOUTS],
        Said("JPEG 2000 is not read here; save it as PNG or JPEG"),
    ),
    # What is no file.
    *rows(
        ["made_pipe_as_image", "made_pipe_as_mask"],
        ["jsonl", "shards", "doctor"],
        Said("is a pipe, no file; correct the name"),
    ),
    *rows(
        ["made_device_as_image"],
        ["jsonl", "shards", "doctor"],
        Said("is a device, no file; correct the name"),
    ),
    *rows(["made_pipe_as_lines"], ["jsonl"], Said("is a pipe, no file; it must be a file")),
    *rows(["made_links"], ["jsonl", "doctor"], Right()),
    # What was right before.
    *rows(
        ["plain", "cmyk_jpeg"],
        [*LINES, "build_records", *BATCHES, *LAYOUTS],
        Right(inside=()),
    ),
    *rows(["cmyk_jpeg"], ["doctor"], Right()),
    # Its picture is in `val`, too.
    *rows(["plain"], ["doctor"], Right(code=1)),
    *rows(["tiny_1x1"], LINES, Right("masks that cover the whole image", (), (), 1)),
    *rows(["tiny_1x1"], ["doctor"], Right("masks that cover the whole image", code=1)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: " ".join([row.folder, row.way, *row.flags]))
def test_right_or_one_clear_line(row: Row, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    if row.folder in MADE:
        MADE[row.folder](folder)
    else:
        folder = request.getfixturevalue("shared_data") / "odd_files" / row.folder
    room = tmp_path / "room"
    room.mkdir()
    seen = WAYS[row.way](folder, room, *row.flags)
    assert "Traceback" not in seen.said
    if isinstance(row.expected, Said):
        _check_line(row, seen.code, seen.said)
        return
    assert seen.code == row.expected.code, seen.said
    assert row.expected.note in seen.said
    if not row.way.startswith("doctor"):
        assert seen.pairs
    for name, picture, region in seen.pairs:
        _check_pair(row, name, picture, region)


def _check_line(row: Row, code: int, said: str) -> None:
    """One line about the file, which begins with `error`, or is a finding of the doctor."""
    assert code == 1, said
    about = [line for line in said.splitlines() if row.expected.text in line]
    assert about, said
    if row.way.startswith("doctor"):
        assert "cannot be built" in said
    else:
        assert sum(line.startswith("error: ") for line in said.splitlines()) == 1


def _check_pair(row: Row, name: str, picture: np.ndarray, region: np.ndarray) -> None:
    expected = row.expected
    assert isinstance(expected, Right)
    if row.way in BATCHES:
        # The square of the network: the border of the box may lie within a pixel.
        assert abs(region.mean() - BOX.mean()) < 0.02, name
    elif expected.pixels:
        assert region.sum() == expected.pixels, name
    else:
        truth = np.rot90(BOX, 1) if expected.stored else BOX
        np.testing.assert_array_equal(region, truth, name)
    assert picture.shape[:2] == region.shape
    if expected.inside:
        for part, colour in ((region, expected.inside), (~region, expected.outside)):
            found = np.median(picture[part].astype(int), axis=0)
            assert np.abs(found - colour).max() <= 6, (name, found, colour)


def test_every_folder_that_is_made_is_tried() -> None:
    assert {row.folder for row in TABLE} >= MADE.keys()
    assert {row.way for row in TABLE} == WAYS.keys()
