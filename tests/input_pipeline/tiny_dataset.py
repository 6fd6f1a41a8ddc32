"""A dataset of a few coloured rectangles, built for tests."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.schema import Expression, Record, Target, encode_mask, features, to_features

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def make_record(split: str, number: int, size: tuple[int, int]) -> Record:
    """Makes a record of a left and a right rectangle of different colours, the left one with a part."""
    height, width = size
    rng = np.random.default_rng([number, sum(map(ord, split))])
    names = list(rng.permutation(list(COLOURS))[:2])
    image = np.full((height, width, 3), 128, np.uint8)
    top, bottom = height // 4, height - height // 4
    boxes = [
        (top, bottom, width // 10, width // 2 - 2),
        (top, bottom, width // 2 + 2, width - width // 10),
        (top, top + (bottom - top) // 3, width // 10, width // 2 - 2),
    ]
    targets = []
    for place, (y0, y1, x0, x1) in enumerate(boxes):
        mask = np.zeros((height, width), np.uint8)
        mask[y0:y1, x0:x1] = 1
        colour = COLOURS[names[place]] if place < 2 else (250, 240, 90)
        image[mask > 0] = colour
        kind = ("box", 0, "part") if place == 2 else ("box", -1, "object")
        targets.append(Target(encode_mask(mask), "lid" if place == 2 else kind[0], *kind[1:]))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    said = [
        (f"the {names[0]} box", (0,), "object", 0),
        ("the box on the left", (0,), "object", 0),
        (f"the {names[1]} box", (1,), "object", 1),
        ("the lid of the left box", (2,), "part", 2),
        ("both boxes", (0, 1), "multi", 3),
        ("the purple box", (), "none", 4),
    ]
    return Record(
        image=buffer.getvalue(),
        image_id=f"{split}{number}",
        file_name=f"{split}{number}.jpg",
        height=height,
        width=width,
        source="tiny",
        targets=tuple(targets),
        expressions=tuple(
            Expression(f"{split}{number}-{k}", text, chosen, granularity, referent)
            for k, (text, chosen, granularity, referent) in enumerate(said)
        ),
    )


def build_tiny_dataset(
    data_dir: Path,
    splits: dict[str, int] | None = None,
    size: tuple[int, int] = (32, 32),
    change: Callable[[Record], Record] = lambda record: record,
) -> Path:
    """Builds the dataset `tiny` in `data_dir`.

    Args:
        data_dir: folder of all datasets.
        splits: split -> number of images.
        size: height and width in pixels; every third image is a little smaller.
        change: applied to every record before it is written, e.g. to damage some.

    Returns:
        The folder of the dataset.
    """
    counts = splits or {"train": 12, "val": 5}

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """See `build_tiny_dataset`."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=features())

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(name) for name in counts}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for number in range(counts[split]):
                shrink = 0 if number % 3 else min(size) // 4
                record = make_record(split, number, (size[0] - shrink, size[1]))
                yield record.image_id, to_features(change(record))

    builder = Tiny(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def flip_a_bit(folder: Path, split: str) -> None:
    """Damages one record of a built split by changing a bit; a second call repairs it."""
    (file,) = folder.glob(f"*-{split}.array_record*")
    stored = bytearray(file.read_bytes())
    # Every record is a chunk of its own; the first begins behind the file's 64 bytes of signature.
    stored[64 + 400] ^= 4
    file.write_bytes(stored)
