"""Datasets that share their images, like those that use COCO's, for tests of mixtures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.building.own import build_records
from input_pipeline.schema import Expression, Record
from tests.input_pipeline.tiny_dataset import make_record


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes a record from a number. Datasets share images and their ids, but not ids of expressions."""

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
    """Builds a dataset of the images with these numbers.

    Each image has two objects, a part, and the expression `any box`, which all images of a split share.
    """
    items = {split: [(split, number) for number in numbers] for split, numbers in splits.items()}
    return build_records(name, items, Make(name), data_dir=data_dir)
