"""Sheets of pictures: views side by side, captions below them, cells in a grid; all u8 RGB on white."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refseg_jax.images.drawing import REGION_COLOURS, Colour, draw_regions

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

#: Between views that belong together, in pixels.
GAP = 8

_INK, _GREY = (20, 20, 20), (100, 100, 100)

#: No caption has room for more characters.
_MOST = 400


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """A picture whose longer side is `side`, u8 `[h, w, 3]`; no side becomes shorter than a pixel."""
    scale = side / max(image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, _fitted_size(image, side), interpolation=way)


def fit_regions(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    side: int,
    colours: Sequence[Colour] = REGION_COLOURS,
) -> np.ndarray:
    """`fit` of `draw_regions`: the outline is smooth in a small picture, and seen in a large one.

    A small picture is enlarged before it is drawn on, a large one afterwards, so that even a region
    of one pixel is outlined.
    """
    scale = side / max(image.shape[:2])
    if scale <= 1:
        return fit(draw_regions(image, masks, colours), side)
    # Interpolation between fewer than two samples a pixel may lose a region of one pixel.
    way = cv2.INTER_LINEAR if scale >= 2 else cv2.INTER_NEAREST
    size = _fitted_size(image, side)
    larger = [cv2.resize(mask.astype(np.float32), size, interpolation=way) > 0.5 for mask in masks]
    return draw_regions(fit(image, side), larger, colours)


def row(views: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Views side by side, each in the middle of a square cell: u8 `[side, w, 3]`."""
    canvas = np.full((side, len(views) * (side + GAP) - GAP, 3), 255, np.uint8)
    for place, view in enumerate(views):
        height, width, _ = view.shape
        top, left = (side - height) // 2, place * (side + GAP) + (side - width) // 2
        canvas[top : top + height, left : left + width] = view
    return canvas


def captioned(
    picture: np.ndarray, words: str, notes: Sequence[str] = (), *, lines: int = 1, size: int = 16
) -> np.ndarray:
    """A picture with a caption below.

    Args:
        picture: u8 `[h, w, 3]`.
        words: wrapped to the picture's width; what is left after the last line is cut.
        notes: smaller and grey, below the words; several stand side by side and share the width.
        lines: at most so many of words.
        size: of the words' letters in pixels.

    Returns:
        u8 `[h + caption, w, 3]`; the caption's height depends on the number of lines.
    """
    height, width, _ = picture.shape
    large, small = ImageFont.load_default(size), ImageFont.load_default(round(0.82 * size))
    margin, leading = size // 4, round(1.2 * size)
    wrapped = _wrapped(words, large, width - 2 * margin, lines)
    caption = margin + leading * (len(wrapped) + bool(notes)) + margin
    canvas = np.full((height + caption, width, 3), 255, np.uint8)
    canvas[:height] = picture
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    top = height + margin
    for number, line in enumerate(wrapped):
        pen.text((margin, top + number * leading), line, fill=_INK, font=large)
    share = (width + GAP) / max(len(notes), 1)
    for number, note in enumerate(notes):
        place = (margin + number * share, top + len(wrapped) * leading)
        room = share - GAP - 2 * margin
        pen.text(place, _cut(_one_line(note), small, room), fill=_GREY, font=small)
    return np.asarray(drawing)


def grid(cells: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Cells in reading order, `gap` pixels apart and from the edge.

    Columns are as wide as the widest cell, a row is as high as its own highest.
    """
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.shape[0] for cell in one) for one in rows]
    width = max(cell.shape[1] for cell in cells)
    size = (sum(heights) + gap * (len(rows) + 1), columns * (width + gap) + gap)
    sheet = np.full((*size, 3), 255, np.uint8)
    top = gap
    for one, height in zip(rows, heights, strict=True):
        for x, cell in enumerate(one):
            left = gap + x * (width + gap)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += height + gap
    return sheet


def _fitted_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """Width and height."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _one_line(text: str) -> str:
    return " ".join(text[:_MOST].split())


def _wrapped(text: str, font: Font, width: float, most: int) -> list[str]:
    """At least one line, at most `most`."""
    lines = [""]
    for word in _one_line(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    shown, last = lines[: most - 1], lines[most - 1 :]
    if last:
        shown.append(" ".join(last))
    return [_cut(line, font, width) for line in shown]


def _cut(line: str, font: Font, width: float) -> str:
    """A line that is no wider than `width`, with an ellipsis if something is left out."""
    if font.getlength(line) <= width:
        return line
    while len(line) > 1 and font.getlength(line + "…") > width:
        line = line[:-1].rstrip()
    return line + "…"
