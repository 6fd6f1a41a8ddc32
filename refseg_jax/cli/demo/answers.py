"""What the page keeps and shows of its answers; knows nothing of a browser."""

import hashlib
import html
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from refseg_jax.cli.pairs import line_of
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.images.drawing import REGION_COLOURS, Colour, draw_regions
from refseg_jax.prediction.encoding import EncodedImages
from refseg_jax.prediction.painting import Prediction

#: Of the expressions, in their order; the page answers as many at a time.
COLOURS: tuple[Colour, ...] = (
    *REGION_COLOURS,
    (255, 140, 40),
    (165, 125, 255),
    (255, 85, 85),
    (235, 235, 235),
)

#: Longest side of a picture on the page, in pixels.
_SHOWN = 1280


class Asked(NamedTuple):
    """A picture of the page, and what was found in it.

    Attributes:
        model: name of the model.
        name: of the picture's file.
        digest: of the file.
        pixels: u8 `[H, W, 3]`, RGB.
        encoded: its features.
        found: expression -> answer with a soft map, in the order in which they were asked.
    """

    model: str
    name: str
    digest: bytes
    pixels: np.ndarray
    encoded: EncodedImages
    found: Mapping[str, Prediction]


class Times(NamedTuple):
    """Seconds that an answer took.

    Attributes:
        encoding: of the picture; `None` if it was encoded for an earlier question.
        words: of all the rest.
        new: expressions that were not asked before.
    """

    encoding: float | None
    words: float
    new: int


def digest_of(data: bytes) -> bytes:
    """Tells the files of pictures apart."""
    return hashlib.blake2b(data, digest_size=16).digest()


def texts_of(text: str) -> list[str]:
    """The expressions of a text, one a line; each once."""
    lines = (line.strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def judged(one: Prediction, thresholds: Thresholds) -> Prediction:
    """An answer by other thresholds, without the model.

    The presence threshold decides as the model would. A mask by another threshold than before comes of
    the soft map, whose probabilities are rounded to 1/255: pixels nearer to the threshold than half of
    that may differ from the model's, and so may the score.

    Args:
        one: with a soft map.
        thresholds: decide now.
    """
    uncleared, score = one.uncleared, one.score
    if thresholds.mask != one.thresholds.mask:
        assert one.soft_map is not None
        # The smallest grey value above the threshold.
        uncleared = one.soft_map > np.floor(255.0 * thresholds.mask)
        score = float(one.soft_map[uncleared].mean() / 255.0) if uncleared.any() else 0.0
    if one.margin is None:
        present = bool(uncleared.any())
    else:
        present = one.margin > thresholds.presence_logit
    mask = uncleared if present else np.zeros_like(uncleared)
    return Prediction(
        mask, score, present, uncleared, thresholds, one.soft_map, one.presence, one.margin
    )


def drawing(pixels: np.ndarray, answers: Sequence[Prediction]) -> np.ndarray:
    """The picture with the region of each answer in its colour; dimmed where none has any.

    Returns:
        u8 `[h, w, 3]`, at most 1280 pixels long.
    """
    shown = smaller(pixels)
    size = shown.shape[1::-1]
    masks = [
        cv2.resize(one.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        for one in answers
    ]
    return draw_regions(shown, masks, COLOURS)


def smaller(pixels: np.ndarray) -> np.ndarray:
    """Pixels `[H, W, ...]` as the page shows them: at most 1280 pixels long."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _SHOWN / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels


def heat(pixels: np.ndarray, soft_map: np.ndarray) -> np.ndarray:
    """The probabilities u8 `[H, W]` as colours over the grey picture, u8 `[h, w, 3]`."""
    shown = smaller(pixels)
    colours = cv2.applyColorMap(smaller(soft_map), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(np.ascontiguousarray(colours), 0.75, grey, 0.25, 0)


def legend(texts: Sequence[str], answers: Sequence[Prediction]) -> str:
    """HTML: each expression with its colour, its score, and whether anything matches."""
    rows = [
        _row(text, one, COLOURS[number % len(COLOURS)])
        for number, (text, one) in enumerate(zip(texts, answers, strict=True))
    ]
    note = ""
    if not any(one.mask.any() for one in answers):
        note = (
            '<p class="rs-none"><strong>No match.</strong> Nothing in this picture is what the words '
            "say.</p>"
        )
    return f'<div class="rs-legend" role="status">{note}<ul>{"".join(rows)}</ul></div>'


def _row(text: str, one: Prediction, colour: Colour) -> str:
    words = html.escape(text)
    found = bool(one.mask.any())
    swatch = f"background:rgb{colour}" if found else "background:none"
    facts = []
    if found:
        facts.append(f"score {one.score:.2f}")
        facts.append(f"{_share(one.mask)} of the picture")
    elif one.present:
        facts.append("the model says that it is there, but no pixel shows it")
    if one.presence is not None:
        facts.append(f"presence {one.presence:.2f}")
    state = "" if found else '<b class="rs-badge">no match</b>'
    return (
        f'<li class="{"rs-found" if found else "rs-absent"}"><span class="rs-swatch" '
        f'style="{swatch}"></span><span class="rs-words">{words}</span>{state}'
        f'<span class="rs-facts">{" · ".join(facts)}</span></li>'
    )


def _share(mask: np.ndarray) -> str:
    share = 100 * float(mask.mean())
    return f"{share:.0f}%" if share >= 1 else "less than 1%"


def told(times: Times) -> str:
    """HTML: how long the answer took."""
    words = f"{times.new} new expression{'' if times.new == 1 else 's'}"
    if times.encoding is not None:
        line = (
            f"First answer in <b>{_seconds(times.encoding + times.words)}</b>: the picture was encoded "
            f"in {_seconds(times.encoding)}, the words answered in {_seconds(times.words)}."
        )
    elif times.new:
        line = f"Asked again: {words} in <b>{_seconds(times.words)}</b>; the picture was encoded before."
    else:
        line = "Asked again: nothing new; these answers were kept."
    return f'<p class="rs-times">{line}</p>'


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def zipped(name: str, texts: Sequence[str], answers: Sequence[Prediction]) -> bytes:
    """A zip of the masks, at the size of the picture, and of `predictions.jsonl`.

    Args:
        name: of the picture's file, as the lines have it.
        texts: the expressions.
        answers: theirs.
    """
    # What a browser calls a file is no name for one here.
    stem = re.sub(r"[^\w.-]+", "_", name).lstrip(".")[:80] or "picture"
    lines: list[dict[str, Any]] = []
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, (text, one) in enumerate(zip(texts, answers, strict=True)):
            png = io.BytesIO()
            Image.fromarray(one.mask.astype(np.uint8) * 255).save(png, "PNG")
            archive.writestr(f"{stem}-{k}-mask.png", png.getvalue())
            line = line_of(f"{name}#{k}", name, text, one)
            lines.append({key: value for key, value in line.items() if key != "map"})
        archive.writestr("predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return file.getvalue()
