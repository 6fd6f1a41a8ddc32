"""Pictures for people: overlays of masks, and the page of results."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refseg_jax.evaluation.picture import Picture
from refseg_jax.images.drawing import PREDICTED_COLOUR, TARGET_COLOUR, overlay
from refseg_jax.models.region_maps import RegionMap

_CELL = 224
_CAPTION = 54

#: Side of the two upper views of `region_panel`; those below are half as large.
_REGIONS = 360


def panel(picture: Picture) -> np.ndarray:
    """Image, target and prediction side by side, with the words and the IoU below, u8 RGB."""
    image = picture.native_image()
    views = [
        image,
        overlay(image, picture.target, TARGET_COLOUR),
        overlay(image, picture.predicted, PREDICTED_COLOUR),
    ]
    canvas = np.full((_CELL + _CAPTION, 3 * _CELL + 16, 3), 255, np.uint8)
    for place, view in enumerate(views):
        fitted = _fit(view, _CELL)
        top, left = (_CELL - fitted.shape[0]) // 2, place * (_CELL + 8)
        left += (_CELL - fitted.shape[1]) // 2
        canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    pen.text((4, _CELL + 6), _shorten(picture.expression, 78), fill=(20, 20, 20), font=_font(16))
    below = f"{picture.granularity}, IoU {picture.iou:.2f}"
    pen.text((4, _CELL + 29), below, fill=(110, 110, 110), font=_font(13))
    return np.asarray(drawing)


def page(pictures: Sequence[Picture], path: Path, columns: int = 2) -> None:
    """A PNG with a panel for every picture: image, ground truth (green), prediction (orange)."""
    panels = [panel(picture) for picture in pictures]
    height, width = panels[0].shape[:2]
    gap = 24
    rows = -(-len(panels) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, cell in enumerate(panels):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = cell
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(sheet).save(partial, "PNG")
    partial.replace(path)


def assignment_map(image: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Group tokens over an image, one colour a token, as in UniRES's Figure 5.

    Args:
        image: u8 `[H, W, 3]`.
        similarity: f32 `[T, grid, grid]`, one level of `UniRES.group_assignment` for one image.

    Returns:
        u8 `[H, W, 3]`.
    """
    tokens = similarity.shape[0]
    hues = np.linspace(0, 179, tokens, endpoint=False).astype(np.uint8)
    palette = np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 235)], -1)[None]
    colours = cv2.cvtColor(palette, cv2.COLOR_HSV2RGB)[0]
    labels = similarity.argmax(0)
    size = (image.shape[1], image.shape[0])
    tinted = cv2.resize(colours[labels], size, interpolation=cv2.INTER_NEAREST)
    return (0.45 * image + 0.55 * tinted).astype(np.uint8)


def region_panel(image: np.ndarray, mask: np.ndarray, found: RegionMap, words: str) -> np.ndarray:
    """What ReLA saw in one pair, as in its Figure 7.

    The predicted mask and the minimap over the image; below, the masks of the regions with the highest
    minimap, whose cells have the same numbers; below that the words and the probability that anything
    matches. A region's mask is drawn from its least to its highest value, since many faint masks make
    up that of the targets.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        mask: bool `[H, W]`, predicted.
        found: of the same image.
        words: the expression.

    Returns:
        u8 `[h, w, 3]`; its size depends on the number of regions alone.
    """
    large, small = _fit(image, _REGIONS), _fit(image, (_REGIONS - 8) // 2)
    shrunk = cv2.resize(mask.astype(np.uint8), large.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    top = [overlay(large, shrunk.astype(bool), PREDICTED_COLOUR), _minimap(large, found)]
    strip = [
        _glowing(small, lay_over(_whole_range(one), found, small.shape[:2], smooth=True))
        for one in found.masks
    ]
    width = 8 + max(2 * (_REGIONS + 8), len(strip) * ((_REGIONS - 8) // 2 + 8))
    canvas = np.full((_REGIONS + (_REGIONS - 8) // 2 + 100, width, 3), 255, np.uint8)
    _row(canvas, top, 8, _REGIONS)
    _row(canvas, strip, _REGIONS + 16, (_REGIONS - 8) // 2)
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    below = _REGIONS + (_REGIONS - 8) // 2 + 20
    for number, region in enumerate(found.regions):
        left = 8 + number * ((_REGIONS - 8) // 2 + 8)
        text = f"{number + 1}: {found.minimap.ravel()[region]:.2f}"
        pen.text((left, below), text, fill=(110, 110, 110), font=_font(13))
    pen.text((8, below + 22), _shorten(words, 78), fill=(20, 20, 20), font=_font(16))
    pen.text((8, below + 46), f"present {found.present:.2f}", fill=(110, 110, 110), font=_font(13))
    return np.asarray(drawing)


def lay_over(
    values: np.ndarray, found: RegionMap, size: tuple[int, int], *, smooth: bool
) -> np.ndarray:
    """A map of the network's square as the picture sees it: letterboxing and stretching are undone.

    Args:
        values: f32 `[h, w]`.
        found: tells how the picture came into the square.
        size: height and width of the result, `found.size` or that of a copy of the picture that
            was made smaller.
        smooth: interpolate, else cells stay cells.

    Returns:
        f32 `[*size]`.
    """
    # From a pixel's index to its place, to network pixels, to a cell's index.
    cells = np.array(values.shape[::-1]) / found.image_size
    shrunk = np.array(found.size[::-1]) / np.array(size[::-1])
    linear, shift = found.affine[:, :2].astype(np.float64), found.affine[:, 2].astype(np.float64)
    shift = linear @ (0.5 * shrunk - 0.5) + shift
    matrix = np.column_stack([linear * shrunk, shift + 0.5]) * cells[:, None]
    matrix[:, 2] -= 0.5
    way = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return cv2.warpAffine(
        values.astype(np.float32),
        matrix,
        size[::-1],
        flags=way | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _minimap(image: np.ndarray, found: RegionMap) -> np.ndarray:
    """Each cell in the colour of its probability, 0 to 1; the highest have their numbers."""
    size = (image.shape[0], image.shape[1])
    heat = (255 * lay_over(found.minimap, found, size, smooth=False)).round().astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    drawing = Image.fromarray((0.4 * image + 0.6 * coloured).astype(np.uint8))
    pen = ImageDraw.Draw(drawing)
    cells = np.arange(found.minimap.size, dtype=np.float32).reshape(found.minimap.shape)
    where = lay_over(cells, found, size, smooth=False)
    for number, region in enumerate(found.regions):
        rows, columns = np.nonzero(where == region)
        # A cell may lie in the border of a letterbox alone.
        if len(rows):
            place = (int(columns.mean()), int(rows.mean()))
            pen.text(place, str(number + 1), fill=(255, 255, 255), font=_font(16), anchor="mm")
    return np.asarray(drawing)


def _whole_range(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; one value alone becomes 0."""
    least, most = values.min(), values.max()
    return (values - least) / max(most - least, 1e-6)


def _glowing(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """An image, dark where `shares`, f32 `[H, W]` in [0, 1], are 0 and tinted where they are 1."""
    light = shares[..., None]
    tinted = 0.5 * image + 0.5 * np.array(PREDICTED_COLOUR, np.float32)
    return (light * tinted + (1 - light) * 0.35 * image).astype(np.uint8)


def _row(canvas: np.ndarray, views: Sequence[np.ndarray], top: int, cell: int) -> None:
    """Writes views side by side, each in the middle of a square cell."""
    for place, view in enumerate(views):
        height, width, _ = view.shape
        y, x = top + (cell - height) // 2, 8 + place * (cell + 8) + (cell - width) // 2
        canvas[y : y + height, x : x + width] = view


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=way)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
