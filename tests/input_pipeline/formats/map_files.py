"""Small folders of images and maps, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.building.conversion import Conversion
from input_pipeline.building.published import REPORT, builder_of
from tests.input_pipeline.datasets.refcoco_files import jpeg


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Writes a JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(height, width, seed))


def write_map(path: Path, values: Any, *, palette: bool = False) -> np.ndarray:
    """Writes values `[H, W]` or `[H, W, 3]` as PNG, and returns them.

    The colours of the palette are unrelated to the values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values, np.uint8)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([(37 * i + 11) % 256 for i in range(768)])
    image.save(path, "PNG")
    return array


def blocks(height: int, width: int, values: Any) -> np.ndarray:
    """A map `[height, width]` of vertical stripes, one for each value."""
    columns = np.array(values, np.uint8)[np.arange(width) * len(values) // width]
    return np.repeat(columns[None], height, 0)


def build(conversion: Conversion, source: Path, data_dir: Path, **options: Any) -> Path:
    """Builds a dataset; returns its folder."""
    return builder_of(conversion, source_dir=source, data_dir=data_dir, **options).build()


def report(folder: Path) -> list[str]:
    """Lines of the build report."""
    return (folder / REPORT).read_text().splitlines()
