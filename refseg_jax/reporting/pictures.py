"""Draws panels and pages of results, maps of group tokens, region maps, and heatmaps of groups."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refseg_jax.evaluation.picture import Picture
from refseg_jax.images.drawing import PREDICTED_COLOUR, TARGET_COLOUR
from refseg_jax.images.sheets import GAP, captioned, fit, fit_regions, grid, row
from refseg_jax.models.heat_maps import HeatMap
from refseg_jax.models.region_maps import RegionMap

_CELL = 224

#: Side in pixels of the two upper views of `region_panel`; those below are half as large.
_REGIONS = 360

#: Side in pixels of a heatmap in `heat_panel`; the predicted mask is twice as large.
_HEAT = 150


def panel(picture: Picture) -> np.ndarray:
    """Draws image, reference (cyan) and prediction (pink) side by side, with a caption below.

    Returns:
        u8 `[h, w, 3]`, RGB; all panels have the same size.
    """
    image = picture.native_image()
    views = [
        fit(image, _CELL),
        fit_regions(image, [picture.target], _CELL, [TARGET_COLOUR]),
        fit_regions(image, [picture.predicted], _CELL, [PREDICTED_COLOUR]),
    ]
    notes = [
        picture.granularity,
        "reference" if picture.target.any() else "reference: no match",
        f"prediction, IoU {picture.iou:.2f}" if picture.predicted.any() else "prediction: no match",
    ]
    return captioned(row(views, _CELL), picture.expression, notes, size=22)


def page(pictures: Sequence[Picture], path: Path, columns: int = 2) -> None:
    """Writes a PNG with a panel for each picture, complete or not at all."""
    sheet = grid([panel(picture) for picture in pictures], columns, gap=24)
    partial = path.with_name(path.name + ".partial")
    try:
        Image.fromarray(sheet).save(partial, "PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def assignment_map(image: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Draws each patch in the colour of its most similar group token, as in UniRES's Figure 5.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        similarity: f32 `[T, grid, grid]`, one level of `UniRES.group_assignment` for one image.

    Returns:
        u8 `[H, W, 3]`, RGB.
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
    """Draws mask, minimap and region masks of one pair, as in ReLA's Figure 7.

    The first row has the predicted mask, and the minimap over the image, in which the highest cells are
    numbered. The second row has the region masks of these cells, with their numbers. Below are the
    expression and the probability that anything matches. Each region mask is stretched to its own
    range of values, because a target's mask is the sum of many faint region masks.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        mask: bool `[H, W]`, the predicted mask.
        found: region maps of the pair.
        words: the expression.

    Returns:
        u8 `[h, w, 3]`, RGB; its size depends on the number of regions alone.
    """
    small_side = (_REGIONS - GAP) // 2
    small = fit(image, small_side)
    shown = fit_regions(image, [mask], _REGIONS, [PREDICTED_COLOUR])
    top = row([shown, _minimap(fit(image, _REGIONS), found)], _REGIONS)
    strip = []
    for number, (region, values) in enumerate(zip(found.regions, found.masks, strict=True)):
        shares = lay_over(_whole_range(values), found, small.shape[:2], smooth=True)
        name = f"{number + 1}: {found.minimap.ravel()[region]:.2f}"
        strip.append(captioned(row([_lit(small, shares)], small_side), name, size=13))
    rows = [grid([top], 1, GAP), grid(strip, len(strip), GAP)]
    return captioned(grid(rows, 1, 0), words, [f"present {found.present:.2f}"])


def heat_panel(
    image: np.ndarray, mask: np.ndarray, found: HeatMap, names: Sequence[str], words: str
) -> np.ndarray:
    """Draws mask and heatmaps of one image of a group, as in GRSer's Figure 4.

    On the left is the predicted mask, or `no match` below the image if it is empty. On the right each
    row begins with the heatmap of the words; then come those of the images of the row: in the first row
    in the order of the images, in the second from the most to the least trusted. Below each stand the
    name of the image that it is drawn by and its largest cosine. Each heatmap is stretched to its own
    range of values.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        mask: bool `[H, W]`, the predicted mask.
        found: heatmaps of the image, of n images of its row.
        names: n names of these images.
        words: the expression.

    Returns:
        u8 `[h, w, 3]`, RGB; its size depends on n alone.
    """
    small = fit(image, _HEAT)

    def cell(values: np.ndarray, name: str) -> np.ndarray:
        laid = lay_over(values, found, (small.shape[0], small.shape[1]), smooth=True)
        drawn = row([_tinted(small, _whole_range(laid))], _HEAT)
        return captioned(drawn, name, [f"{values.max():.2f}"], size=13)

    language = cell(found.language, "the words")
    raw = [cell(values, name) for values, name in zip(found.vision, names, strict=True)]
    ranked = [raw[index] for index in found.order]
    rows = [grid([language, *cells], len(raw) + 1, GAP) for cells in (raw, ranked)]
    heat = grid(rows, 1, 0)
    shown = row([fit_regions(image, [mask], 2 * _HEAT, [PREDICTED_COLOUR])], 2 * _HEAT)
    if not mask.any():
        shown = captioned(shown, "no match")
    canvas = np.full((len(heat), shown.shape[1] + GAP + heat.shape[1], 3), 255, np.uint8)
    canvas[2 * GAP : 2 * GAP + len(shown), : shown.shape[1]] = shown
    canvas[:, shown.shape[1] + GAP :] = heat
    return captioned(canvas, words, ["above: the order of names; below: the order of trust"])


def lay_over(
    values: np.ndarray, found: RegionMap | HeatMap, size: tuple[int, int], *, smooth: bool
) -> np.ndarray:
    """Warps a map of the network's square back to the image; undoes letterboxing and stretching.

    Args:
        values: f32 `[h, w]`, a map over the network's square input.
        found: has the affine from native to network pixels.
        size: height and width of the result in pixels, which is the image at any scale.
        smooth: whether to interpolate linearly; else each pixel takes the nearest cell.

    Returns:
        f32 `[*size]`.
    """
    # From the index of a result's pixel to native pixels, to network pixels, to the index of a cell.
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
    """Draws each cell in the colour of its probability, 0 to 1, and numbers on the highest cells."""
    size = (image.shape[0], image.shape[1])
    drawing = Image.fromarray(_tinted(image, lay_over(found.minimap, found, size, smooth=False)))
    pen = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(16)
    cells = np.arange(found.minimap.size, dtype=np.float32).reshape(found.minimap.shape)
    where = lay_over(cells, found, size, smooth=False)
    for number, region in enumerate(found.regions):
        rows, columns = np.nonzero(where == region)
        # A cell that lies entirely in the letterbox's border is not on the image.
        if len(rows):
            place = (int(columns.mean()), int(rows.mean()))
            pen.text(
                place,
                str(number + 1),
                fill=(255, 255, 255),
                font=font,
                anchor="mm",
                stroke_width=1,
                stroke_fill=(0, 0, 0),
            )
    return np.asarray(drawing)


def _tinted(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The image under the colours of `shares`, f32 `[H, W]` in [0, 1]."""
    heat = (255 * shares).round().astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return (0.4 * image + 0.6 * coloured).astype(np.uint8)


def _whole_range(values: np.ndarray) -> np.ndarray:
    """Stretches values to 0..1; a constant map becomes 0."""
    least, most = values.min(), values.max()
    return (values - least) / max(most - least, 1e-6)


def _lit(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The image, darker where `shares`, f32 `[H, W]` in [0, 1], are lower (0.3 of it at 0)."""
    return ((0.3 + 0.7 * shares[..., None]) * image).astype(np.uint8)
