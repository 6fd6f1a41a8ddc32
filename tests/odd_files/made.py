"""Odd folders that are drawn in the test, so that a fresh clone tests their rules too.

As in the odd files that are shared, the picture is 96 x 64, a person sees a box on a wall, and the
region of every expression is that box.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.schema import encode_mask
from refseg_jax.images.kinds import kind_of

#: Height and width of what a person sees.
SIZE = (64, 96)
BOX = np.zeros(SIZE, bool)
BOX[14:50, 20:60] = True
POLYGON = [[20, 14, 60, 14, 60, 50, 20, 50]]

RED, WALL = (200, 30, 30), (120, 160, 200)
PICTURE = np.where(BOX[..., None], RED, WALL).astype(np.uint8)
#: Levels of the box and of the wall in grey pictures.
GREY = np.where(BOX, 81, 153)

#: An EXIF flag that turns the stored pixels by a quarter to the right, and how to make these pixels.
_FLAG = 6


def _stored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(pixels, 1))


def _bytes(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = _FLAG
    options = {
        "JPEG": {"quality": 97, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 97, "subsampling": "4:4:4"},
    }.get(kind, {})
    return _bytes(_stored(PICTURE), kind, exif=exif, **options)


def _line(image: str, expression: str, **fields: Any) -> dict[str, Any]:
    return {"image": image, "expression": expression, **fields}


def _write(folder: Path, lines: list[dict[str, Any]], files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def _indexed(white: int) -> Image.Image:
    image = Image.fromarray(np.where(BOX, white, 1 - white).astype(np.uint8), "P")
    image.putpalette([255] * 3 + [0] * 3 if white == 0 else [0] * 3 + [255] * 3)
    return image


def _masks(folder: Path, masks: dict[str, bytes]) -> None:
    lines = [_line("a.png", f"the box of {name}", mask=name) for name in masks]
    _write(folder, lines, {"a.png": _bytes(PICTURE, "PNG"), **masks})


def looks(folder: Path) -> None:
    """Masks whose stored numbers are not what they show."""
    level = np.where(BOX, 255, 0).astype(np.uint8)
    masks = {
        "white0.png": _bytes(_indexed(0), "PNG"),
        "white1.png": _bytes(_indexed(1), "PNG"),
        "white0.gif": _bytes(_indexed(0), "GIF"),
        "one.png": _bytes(BOX.astype(np.uint8), "PNG"),
        "cut-out.png": _bytes(np.dstack([PICTURE, level]), "PNG"),
        "alpha.png": _bytes(np.dstack([level] * 3 + [level]), "PNG"),
        "deep.png": _bytes(BOX.astype(np.uint16), "PNG"),
    }
    _masks(folder, masks)


def soft(folder: Path) -> None:
    """A mask with a grey border around the box, darker than half."""
    level = np.where(BOX, 255, 0).astype(np.uint8)
    level[12:14, 18:62] = 90
    _masks(folder, {"soft.png": _bytes(level, "PNG")})


def inverted(folder: Path) -> None:
    """A mask of the wall, which leaves out the box."""
    _masks(folder, {"wall.png": _bytes(np.where(BOX, 0, 255).astype(np.uint8), "PNG")})


def turned(folder: Path) -> None:
    """Pictures that an EXIF flag turns, with regions of what is seen."""
    # Pillow reads AVIF since 11.3.
    avif = ("AVIF",) * (kind_of(b"\0\0\0\x0cftypavif").reader != "")
    kinds = ("JPEG", "PNG", "TIFF", "WEBP", *avif)
    files = {f"{kind}.{kind.lower()}": _turned(kind) for kind in kinds}
    files["box.png"] = _bytes(np.where(BOX, 255, 0).astype(np.uint8), "PNG")
    rle = {"size": list(SIZE), "counts": encode_mask(BOX).decode()}
    lines = [
        _line(name, f"{form} of {name}", **field)
        for name in files
        if name != "box.png"
        for form, field in (
            ("the mask", {"mask": "box.png"}),
            ("the polygon", {"segmentation": POLYGON}),
            ("the runs", {"segmentation": rle}),
        )
    ]
    _write(folder, lines, files)


def turned_stored(folder: Path) -> None:
    """A picture that an EXIF flag turns, with a mask of its stored size."""
    mask = np.where(_stored(BOX), 255, 0).astype(np.uint8)
    files = {"a.jpg": _turned("JPEG"), "box.png": _bytes(mask, "PNG")}
    _write(folder, [_line("a.jpg", "the box", mask="box.png")], files)


def turned_stored_runs(folder: Path) -> None:
    """As `turned_stored`, with an RLE of the stored size."""
    region = _stored(BOX)
    rle = {"size": list(region.shape), "counts": encode_mask(region).decode()}
    _write(folder, [_line("a.jpg", "the box", segmentation=rle)], {"a.jpg": _turned("JPEG")})


def deep(folder: Path) -> None:
    """Grey pictures of more than 8 bits a sample."""
    twelve = np.round(GREY * (4095 / 255)).astype(np.uint16)
    files = {
        "eight.png": _bytes(GREY.astype(np.uint16), "PNG"),
        "twelve.png": _bytes(twelve, "PNG"),
        "twelve.tif": _bytes(twelve, "TIFF"),
        "wide.tif": _bytes(GREY.astype(np.int32), "TIFF"),
        "fractions.tif": _bytes((GREY / 255).astype(np.float32), "TIFF"),
    }
    lines = [_line(name, f"the box of {name}", segmentation=POLYGON) for name in files]
    _write(folder, lines, files)


def unread(folder: Path) -> None:
    """A picture of a format that is not read here, under the name of another."""
    data = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)
    _write(folder, [_line("a.jpg", "the box", segmentation=POLYGON)], {"a.jpg": data})


def pipe_as_image(folder: Path) -> None:
    """A pipe in the place of the picture: who opens it waits for ever."""
    _write(folder, [_line("pipe.png", "the box", segmentation=POLYGON)], {})
    os.mkfifo(folder / "pipe.png")


def pipe_as_mask(folder: Path) -> None:
    """A link to a pipe in the place of the mask."""
    lines = [_line("a.png", "the box", mask="m.png")]
    _write(folder, lines, {"a.png": _bytes(PICTURE, "PNG")})
    os.mkfifo(folder / "pipe")
    (folder / "m.png").symlink_to(folder / "pipe")


def device_as_image(folder: Path) -> None:
    """A link to a device that never ends in the place of the picture."""
    _write(folder, [_line("zero.png", "the box", segmentation=POLYGON)], {})
    (folder / "zero.png").symlink_to("/dev/zero")


def pipe_as_lines(folder: Path) -> None:
    """A pipe in the place of the lines."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "train.jsonl")


def links(folder: Path) -> None:
    """Links that the user has placed, to regular files."""
    away = folder.with_name("away")
    away.mkdir(parents=True)
    (away / "b.png").write_bytes(_bytes(PICTURE, "PNG"))
    _write(folder, [_line("a.png", "the box", segmentation=POLYGON)], {})
    (folder / "a.png").symlink_to(away / "b.png")


#: Name of a row -> draws the folder, which does not exist.
MADE: dict[str, Callable[[Path], None]] = {
    f"made_{draw.__name__}": draw
    for draw in (
        looks, soft, inverted, turned, turned_stored, turned_stored_runs, deep,
        unread, pipe_as_image, pipe_as_mask, pipe_as_lines, device_as_image, links,
    )
}  # fmt: skip
