"""Draws the pictures of the README and of the documentation.

    python -m tools.docs_pictures --run=runs/scenes_unires --output_dir=docs/images

`scenes.png` shows held-out scenes, each with one of its expressions and the region that it means.
`readme.jpg` shows what the run's latest checkpoint segments in held-out scenes, which are drawn three
times as large as those that it was trained on. `results.jpg` is the page of pictures that the run's
evaluation of `test` has left. Without `--run` only `scenes.png` is drawn.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.contact_sheet import choose, contact_sheet
from refseg_jax.errors import UserError
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from refseg_jax.images.preprocess import decode_image
from refseg_jax.images.sheets import captioned, grid
from refseg_jax.prediction.predictor import Predictor

#: Pictures of the README's row: a granularity, and a word that the expression must have.
WANTED = (("object", "left of"), ("part", "of the"), ("multi", " and "), ("category", "all"))

#: The row is twice as wide as a README shows it, for screens of high density.
_SIDE, _GAP, _LETTERS = 384, 16, 30

#: Of an image and an expression: u8 `[H, W, 3]` and words to a mask, bool `[H, W]`.
Segment = Callable[[np.ndarray, str], np.ndarray]


def predicted_row(segment: Segment, wanted: Sequence[tuple[str, str]] = WANTED) -> np.ndarray:
    """Held-out scenes side by side, each with an expression below and its predicted region outlined."""
    cells = []
    for choice in choose(ScenesConfig(image_size=_SIDE, test=40), wanted):
        image = decode_image(choice.record.image, name=choice.record.file_name)
        words = choice.expression.text
        drawn = draw_regions(image, [segment(image, words)], [PREDICTED_COLOUR])
        cells.append(captioned(drawn, words, lines=2, size=_LETTERS))
    return grid(cells, len(cells), _GAP)


def few_colours(sheet: np.ndarray) -> Image.Image:
    """A picture of 256 colours, dithered: a third of the bytes of a PNG of all colours."""
    image = Image.fromarray(sheet)
    palette = image.quantize(256, kmeans=2)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def draw(run: Path | None, folder: Path) -> None:
    """Writes the pictures.

    Raises:
        UserError: the run has no checkpoint, or no page of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    few_colours(contact_sheet(choose(ScenesConfig()))).save(folder / "scenes.png", optimize=True)
    if run is None:
        return
    page = run / "pictures-test.png"
    if not page.is_file():
        raise UserError(f"{page}: not there; `python main.py --mode=eval` of the run draws it")
    with Image.open(page) as image:
        image.convert("RGB").save(folder / "results.jpg", quality=80, optimize=True)
    predictor = Predictor.from_checkpoint(run)

    def segment(image: np.ndarray, words: str) -> np.ndarray:
        (prediction,) = predictor.predict(image, [words])
        return prediction.mask

    row = Image.fromarray(predicted_row(segment))
    row.save(folder / "readme.jpg", quality=88, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, help="the workdir of configs/scenes_unires.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        draw(options.run, options.output_dir)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
