"""Datasets that share their images, as those drawn from COCO do: what tests of mixtures share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.building.own import build_records
from input_pipeline.schema import Expression, Record
from tests.input_pipeline.tiny_dataset import make_record


@dataclasses.dataclass(frozen=True)
class Make:
    """The image of a number is the same in every dataset; ids of expressions are the dataset's."""

    name: str

    def __call__(self, item: tuple[str, int]) -> Record:
        split, number = item
        record = make_record("pool", number, (32, 32))
        said = [
            dataclasses.replace(e, id=f"{self.name}-{split}-{number}-{k}")
            for k, e in enumerate(record.expressions)
        ]
        said.append(Expression(f"{said[0].id}-g", "any box", (0, 1), "group", group=split))
        return dataclasses.replace(
            record, image_id=str(number), source=self.name, expressions=tuple(said)
        )


def build_pool(data_dir: Path, name: str, **splits: Sequence[int]) -> Path:
    """Builds a dataset of the images of these numbers, each with two objects, a part, and `any
    box`, which all images of a split share."""
    items = {split: [(split, number) for number in numbers] for split, numbers in splits.items()}
    return build_records(name, items, Make(name), data_dir=data_dir)
