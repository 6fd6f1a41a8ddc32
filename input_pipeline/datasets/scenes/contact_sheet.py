"""Makes contact sheets of Scenes: held-out scenes with one of their expressions, and held-out groups.

The scenes are drawn again, so the dataset need not be built. `tools.docs_pictures` writes the sheets to
files.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.graph import from_json
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Expression, Record
from refseg_jax.images.decoding import decode_image
from refseg_jax.images.drawing import TARGET_COLOUR
from refseg_jax.images.sheets import captioned, fit_regions, grid

#: Number of scenes of a split that are searched.
_SEARCHED = 200

#: Expressions to show, in reading order: granularity, and words that the expression must contain.
WANTED = (
    *(("object", "left of"), ("part", "of the"), ("multi", "except"), ("salient", "")),
    *(("object", "largest"), ("part", "below"), ("none", ""), ("multi", " and ")),
    *(
        ("category", "all"),
        ("multi", "that is not"),
        ("part", "on the right"),
        ("object", "without"),
    ),
)
#: Numbers of the groups of `test_groups` to show.
GROUPS = (0, 1, 2, 3)
_CELL, _GAP = 224, 12
_MEMBER = 116


@dataclasses.dataclass(frozen=True)
class Choice:
    """A scene and the expression that is shown with it."""

    record: Record
    expression: Expression


def choose(
    config: ScenesConfig, wanted: Sequence[tuple[str, str]] = WANTED, split: str = "test"
) -> list[Choice]:
    """Chooses a scene for each wanted expression, with varied backgrounds and kinds.

    Of the scenes with such an expression, it takes the one whose background and kinds have been chosen
    least so far. No scene is chosen twice.

    Args:
        config: settings of the build.
        wanted: pairs like those of `WANTED`.
        split: the split to search.

    Raises:
        ValueError: no scene with such an expression is left.
    """
    shown: collections.Counter[str] = collections.Counter()
    taken: set[str] = set()
    choices = []
    searched = range(min(config.images(split), _SEARCHED))
    records = [make_record(config, split, index) for index in searched]
    for granularity, word in wanted:
        found = [
            Choice(record, expression)
            for record in records
            if record.image_id not in taken
            for expression in record.expressions
            if expression.granularity == granularity
            and word in expression.text
            and (expression.targets or expression.form != "kind")
        ]
        if not found:
            raise ValueError(f"split {split!r} has no {granularity} expression with {word!r} left")
        best = min(found, key=lambda choice: sum(shown[name] for name in _contents(choice)))
        shown.update(_contents(best))
        taken.add(best.record.image_id)
        choices.append(best)
    return choices


def contact_sheet(choices: Sequence[Choice], columns: int = 4) -> np.ndarray:
    """Draws scenes with their expressions below, targets outlined, the rest dimmed: u8 RGB."""
    return grid([_cell(choice) for choice in choices], columns, _GAP)


def group_sheet(config: ScenesConfig, numbers: Sequence[int] = GROUPS) -> np.ndarray:
    """Draws groups of the `test_groups` split, one in each row, with what all its images are asked.

    Targets are outlined, and the rest is dimmed: the whole image if nothing matches.

    Returns:
        u8 RGB.
    """
    cells = []
    for number in numbers:
        for member in range(config.group_size):
            record = make_record(config, "test_groups", number * config.group_size + member)
            (expression,) = record.expressions
            image = decode_image(record.image, name=record.file_name)
            masks = [record.mask(expression.targets).astype(bool)] if expression.targets else []
            view = fit_regions(image, masks, _MEMBER, [TARGET_COLOUR])
            note = "" if expression.targets else f"absent: {expression.form}"
            words = "" if member else expression.text
            cells.append(
                captioned(
                    view, words or note or " ", [note] if words and note else [], lines=2, size=12
                )
            )
    return grid(cells, config.group_size, _GAP // 2)


def _contents(choice: Choice) -> Iterator[str]:
    graph = from_json(choice.record.metadata)
    yield graph.background
    yield from {node.kind for node in graph.objects}
    yield from {choice.record.targets[i].category for i in choice.expression.targets}


def _cell(choice: Choice) -> np.ndarray:
    record, expression = choice.record, choice.expression
    image = decode_image(record.image, name=record.file_name)
    masks = [record.mask(expression.targets).astype(bool)]
    notes = [] if expression.targets else ["(nothing matches)"]
    view = fit_regions(image, masks, _CELL, [TARGET_COLOUR])
    return captioned(view, expression.text, notes, lines=2)
