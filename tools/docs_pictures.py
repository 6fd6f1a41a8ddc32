"""Draws the pictures of the README and of the documentation.

    python -m tools.docs_pictures --run=runs/scenes_unires --output_dir=docs/images

`scenes.png` shows held-out scenes, each with one of its expressions and the region that it means, and
`groups.png` held-out groups of scenes that share an expression.
`results.jpg` is the page of pictures that the run's evaluation of `test` has written, without selection.
`readme.jpg` shows good answers of the run's latest checkpoint: for each of a few kinds of expressions,
the answer with the highest IoU in 100 held-out scenes, which are drawn three times as large as those of
the training. Without `--run`, only these two are drawn.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.contact_sheet import choose, contact_sheet, group_sheet
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Expression, Record
from refseg_jax.cli.command_line import command_parser, ended, path
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import decode_image
from refseg_jax.images.drawing import PREDICTED_COLOUR, draw_regions
from refseg_jax.images.sheets import captioned, grid
from refseg_jax.prediction.predictor import Predictor

#: Expressions of the README's row: granularity, and words that the expression must contain.
WANTED = (("object", "on the left"), ("part", "wheels of"), ("multi", " and "), ("category", "all"))

#: Sizes in pixels. The row is twice as wide as a README shows it, for screens of high density.
_SIDE, _GAP, _LETTERS = 384, 16, 30
#: Number of held-out scenes among which answers are chosen.
_SCENES = 100

#: Maps an image, u8 `[H, W, 3]`, and expressions to a mask, bool `[H, W]`, for each expression.
Segment = Callable[[np.ndarray, Sequence[str]], Sequence[np.ndarray]]


class Answer(NamedTuple):
    """The mask that was predicted for an expression, and its IoU with the target."""

    expression: Expression
    image: np.ndarray
    mask: np.ndarray
    iou: float


def predicted_row(segment: Segment, wanted: Sequence[tuple[str, str]] = WANTED) -> np.ndarray:
    """Draws scenes side by side, with an expression below and its predicted region outlined: u8 RGB."""
    cells = []
    for answer in best_answers(segment, wanted):
        drawn = draw_regions(answer.image, [answer.mask], [PREDICTED_COLOUR])
        cells.append(captioned(drawn, answer.expression.text, lines=2, size=_LETTERS))
    return grid(cells, len(cells), _GAP)


def best_answers(segment: Segment, wanted: Sequence[tuple[str, str]]) -> list[Answer]:
    """For each wanted expression (as in `WANTED`) the answer with the highest IoU.

    No scene gives two answers.
    """
    config = ScenesConfig(image_size=_SIDE)
    scenes = [_answers(make_record(config, "test", index), segment) for index in range(_SCENES)]
    best = []
    for granularity, word in wanted:
        found = [
            (answer.iou, number, answer)
            for number, answers in enumerate(scenes)
            for answer in answers
            if answer.expression.granularity == granularity and word in answer.expression.text
        ]
        _, number, answer = max(found, key=lambda one: one[0])
        scenes[number] = []
        best.append(answer)
    return best


def _answers(record: Record, segment: Segment) -> list[Answer]:
    image = decode_image(record.image, name=record.file_name)
    asked = [expression for expression in record.expressions if expression.targets]
    masks = segment(image, [expression.text for expression in asked])
    answers = []
    for expression, mask in zip(asked, masks, strict=True):
        target = record.mask(expression.targets).astype(bool)
        iou = float((mask & target).sum() / (mask | target).sum())
        answers.append(Answer(expression, image, mask, iou))
    return answers


def few_colours(sheet: np.ndarray) -> Image.Image:
    """Reduces a picture to 256 dithered colours: its PNG has a third of the bytes."""
    image = Image.fromarray(sheet)
    palette = image.quantize(256, kmeans=2)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def draw(run: Path | None, folder: Path) -> None:
    """Writes the pictures.

    Args:
        run: workdir of a run of configs/scenes_unires.py; `None` writes `scenes.png` and `groups.png`
            only.
        folder: folder of the pictures.

    Raises:
        UserError: the run has no checkpoint, or no page of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = ScenesConfig()
    for name, sheet in (("scenes", contact_sheet(choose(config))), ("groups", group_sheet(config))):
        few_colours(sheet).save(folder / f"{name}.png", optimize=True)
    if run is None:
        return
    page = run / "pictures-test.png"
    if not page.is_file():
        raise UserError(f"{page}: not there; `python main.py --mode=eval` of the run draws it")
    with Image.open(page) as image:
        image.convert("RGB").save(folder / "results.jpg", quality=68, optimize=True)
    predictor = Predictor.from_checkpoint(run)

    def segment(image: np.ndarray, words: Sequence[str]) -> list[np.ndarray]:
        return [prediction.mask for prediction in predictor.predict(image, words)]

    row = Image.fromarray(predicted_row(segment))
    row.save(folder / "readme.jpg", quality=88, optimize=True)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.docs_pictures", __doc__)
    parser.add_argument("--run", type=path, help="the workdir of configs/scenes_unires.py")
    parser.add_argument("--output_dir", type=path, required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return ended(lambda: draw(options.run, options.output_dir))


if __name__ == "__main__":
    leave(main())
