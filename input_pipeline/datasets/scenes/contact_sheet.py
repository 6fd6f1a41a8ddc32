"""A picture of what Scenes is: held-out scenes, each with one of its expressions.

    python -m input_pipeline.datasets.scenes.contact_sheet --output=docs/images/scenes.png

Nothing needs to be built for it: the scenes of the `test` split are drawn again.
"""

import argparse
import collections
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.graph import from_json
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Expression, Record
from refseg_jax.images.drawing import overlay
from refseg_jax.images.preprocess import decode_image

#: What is shown, in reading order: a granularity and a word that the expression must have.
WANTED = (
    *(("object", "left of"), ("part", "of the"), ("multi", "except"), ("salient", "")),
    *(("object", "largest"), ("part", "below"), ("none", ""), ("multi", " and ")),
    *(("category", "all"), ("multi", "things"), ("part", "on the right"), ("object", "at the top")),
)
# Far from all colours of objects and backgrounds.
_MARK = (255, 0, 170)
_CELL, _CAPTION, _GAP = 224, 46, 12


@dataclasses.dataclass(frozen=True)
class Choice:
    """A scene and the one expression that is shown with it."""

    record: Record
    expression: Expression


def choose(
    config: ScenesConfig, wanted: Sequence[tuple[str, str]] = WANTED, split: str = "test"
) -> list[Choice]:
    """A scene for each thing that is wanted, with varied backgrounds and kinds.

    Each takes the first scene that has it and shows the least of what has been shown before.

    Raises:
        ValueError: the split has no such expression that is not shown yet.
    """
    shown: collections.Counter[str] = collections.Counter()
    taken: set[str] = set()
    choices = []
    records = [make_record(config, split, index) for index in range(min(config.images(split), 120))]
    for granularity, word in wanted:
        found = [
            Choice(record, expression)
            for record in records
            if record.image_id not in taken
            for expression in record.expressions
            if expression.granularity == granularity
            and word in expression.text
            and (expression.targets or _is_near_miss(record, expression))
        ]
        if not found:
            raise ValueError(f"split {split!r} has no {granularity} expression with {word!r} left")
        best = min(found, key=lambda choice: sum(shown[name] for name in _contents(choice)))
        shown.update(_contents(best))
        taken.add(best.record.image_id)
        choices.append(best)
    return choices


def contact_sheet(choices: Sequence[Choice], columns: int = 4) -> np.ndarray:
    """Scenes with their expressions below, the targets outlined: u8 RGB."""
    rows = -(-len(choices) // columns)
    across, down = _CELL + _GAP, _CELL + _CAPTION + _GAP
    size = (columns * across + _GAP, rows * down + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, choice in enumerate(choices):
        row, column = divmod(number, columns)
        left, top = _GAP + column * across, _GAP + row * down
        sheet.paste(Image.fromarray(_view(choice)), (left, top))
        words, grey = choice.expression.text, (110, 110, 110)
        lines = textwrap.wrap(words, 29)
        for line, text in enumerate(lines):
            place = (left + 2, top + _CELL + 4 + 18 * line)
            pen.text(place, text, fill=(20, 20, 20), font=ImageFont.load_default(16))
        if not choice.expression.targets:
            place = (left + 2, top + _CELL + 5 + 18 * len(lines))
            pen.text(place, "(nothing matches)", fill=grey, font=ImageFont.load_default(14))
    return np.asarray(sheet)


def _is_near_miss(record: Record, expression: Expression) -> bool:
    """Whether the kind is there and only its colour is not: what is hardest to deny."""
    kind = expression.text.split()[-1]
    return any(target.category == kind for target in record.targets)


def _contents(choice: Choice) -> Iterator[str]:
    graph = from_json(choice.record.metadata)
    yield graph.background
    yield from {node.kind for node in graph.objects}
    yield from {choice.record.targets[i].category for i in choice.expression.targets}


def _view(choice: Choice) -> np.ndarray:
    """The scene enlarged; its target has an outline and no tint, which would hide its colour."""
    record, expression = choice.record, choice.expression
    size = (_CELL, _CELL)
    image = decode_image(record.image, name=record.file_name)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    soft = cv2.resize(record.mask(expression.targets) * 255, size, interpolation=cv2.INTER_LINEAR)
    mask = (soft > 127).astype(np.uint8)
    marked = overlay(image, mask.astype(bool), _MARK)
    inside = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=2) > 0
    marked[inside] = image[inside]
    return marked


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    options = parser.parse_args(arguments)
    sheet = Image.fromarray(contact_sheet(choose(ScenesConfig())))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.output, "PNG", optimize=True)


if __name__ == "__main__":
    main()
