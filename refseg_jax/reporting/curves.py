"""Draws curves over [0, 1] as a picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Side of the square of a plot in pixels, and the margins around it.
_SIDE, _LEFT, _TOP, _BELOW, _RIGHT = 360, 56, 40, 48, 24

_COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (140, 86, 75))
_GREY, _LIGHT = (90, 90, 90), (225, 225, 225)


class Plot(NamedTuple):
    """Curves in one square.

    Attributes:
        title: stands above.
        x: name of the axis.
        curves: name -> points (x, y), both f64 `[n]` in [0, 1].
        marks: name -> x of a vertical line.
    """

    title: str
    x: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    marks: Mapping[str, float]


def draw_plots(plots: Sequence[Plot]) -> np.ndarray:
    """The plots side by side, u8 `[h, w, 3]`."""
    return np.concatenate([_drawn(plot) for plot in plots], 1)


def _drawn(plot: Plot) -> np.ndarray:
    size = (_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BELOW)
    drawing = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(13)
    for share in np.linspace(0.0, 1.0, 6):
        x, y = _place(share, share)
        pen.line([(x, _TOP), (x, _TOP + _SIDE)], fill=_LIGHT)
        pen.line([(_LEFT, y), (_LEFT + _SIDE, y)], fill=_LIGHT)
        pen.text((x, _TOP + _SIDE + 6), f"{share:.1f}", fill=_GREY, font=font, anchor="mt")
        pen.text((_LEFT - 6, y), f"{share:.1f}", fill=_GREY, font=font, anchor="rm")
    pen.rectangle([_LEFT, _TOP, _LEFT + _SIDE, _TOP + _SIDE], outline=_GREY)
    pen.text((_LEFT, _TOP - 10), plot.title, fill=(0, 0, 0), font=font, anchor="lb")
    middle = _LEFT + _SIDE // 2
    pen.text((middle, _TOP + _SIDE + 26), plot.x, fill=(0, 0, 0), font=font, anchor="mt")
    for name, x in plot.marks.items():
        left, _ = _place(x, 0.0)
        # The chosen one is a whole line, others are dashed.
        length = 8 if name == "calibrated" else 4
        for top in range(_TOP, _TOP + _SIDE, 8):
            pen.line([(left, top), (left, top + length)], fill=_GREY)
    _legend(pen, font, plot)
    for colour, (xs, ys) in zip(_COLOURS, plot.curves.values(), strict=False):
        pen.line([_place(x, y) for x, y in zip(xs, ys, strict=True)], fill=colour, width=2)
    return np.asarray(drawing)


def _legend(
    pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, plot: Plot
) -> None:
    """Names of curves in their colours, and of the lines with their places, from the bottom up."""
    lines = [*zip(plot.curves, _COLOURS, strict=False)]
    lines += [(f"{name}: {x:.3f}", _GREY) for name, x in plot.marks.items()]
    for number, (text, colour) in enumerate(reversed(lines)):
        place = (_LEFT + 0.42 * _SIDE, _TOP + _SIDE - 12 - 18 * number)
        pen.rectangle(pen.textbbox(place, text, font=font, anchor="ls"), fill=(255, 255, 255))
        pen.text(place, text, fill=colour, font=font, anchor="ls")


def _place(x: float, y: float) -> tuple[float, float]:
    return _LEFT + _SIDE * float(x), _TOP + _SIDE * (1.0 - float(y))
