"""One's own pictures and words: a folder of images and files of JSON lines for each split.

    DIR/train.jsonl    {"image": "a.jpg", "expression": "the red car", "mask": "a-0.png"}
    DIR/val.jsonl      {"image": "b/c.png", "expression": "a dog", "mask": null}

A line is one expression of one image. What it means is one of

- `mask`: an image file of the picture's size (PNG, BMP, GIF or TIFF), or a list of them (several
  targets): pixels that are not zero;
- `segmentation`: COCO polygons or RLE, as in the `predictions.jsonl` that `tools.predict` writes, whose
  lines are therefore lines of this format; a polygon may leave the picture by 5 pixels or 2 % of its
  longer side, and is cut there;

and `null`, an RLE without a pixel, or `"present": false` beside a segmentation (as a prediction has it
whose mask was cleared) says that nothing matches. Optional are

- `granularity` (else `object`, `multi` for several masks, `part` with a parent; `none` exactly where
  nothing matches) and `category` (of the region where it comes first);
- `id` of the expression, and for a part `parent`: the id of the expression of its object, of the same
  image and of one region;
- `image_id`: what the image is called wherever it occurs, by which evaluation images of one dataset
  are kept out of the training on another: COCO's id for COCO's images, else a name with its pool in
  front (`sa1b/223750`);
- `box`: `[x, y, width, height]` in pixels. A mask that lies outside of it is an error. It is a region
  itself only by `"segmentation": "box"`, since a rectangle teaches a model to draw rectangles; these
  regions are listed in the record's metadata (`{"boxes": [0, 2]}`).

Paths count from `DIR`. Pictures are taken as their pixels are stored: one that an EXIF flag turns is
refused, because masks drawn on the turned picture would lie elsewhere.

For more than a million lines a split may be `train-00000-of-00010.jsonl` and so on, or plain tars
`train-00000.tar` as WebDataset has them: samples of `KEY.jpg` (or `.png`), `KEY.json` (an object as in a
line, or a list of them, without `image`) and masks `KEY.NAME.png`, which lines name in full.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError
from input_pipeline.building.own import build_records
from input_pipeline.formats.jsonl_files import find_splits, read_images
from input_pipeline.formats.jsonl_records import make_record
from refseg_jax.naming import unknown


def build(
    name: str,
    source_dir: Path,
    *,
    data_dir: Path,
    splits: Sequence[str] = (),
    num_workers: int = 0,
    runner: Runner | None = None,
) -> Path:
    """Builds the dataset `name` of a folder; `splits` (default: all) are names of its files.

    Raises:
        SourceError: the folder has no lines.
        BuildError: the first thing that is wrong: file, line, reason and cure.
        ArchiveError: a tar is damaged or refused.
        ImageError: a damaged image.
    """
    files = find_splits(source_dir)
    for split in splits:
        if split not in files:
            raise BuildError(f"{source_dir}: {unknown('split', split, files)}")
    plan = {split: read_images(files[split]) for split in files if split in (splits or files)}
    make = functools.partial(make_record, folder=source_dir, source=name)
    return build_records(
        name, plan, make, data_dir=data_dir, num_workers=num_workers, runner=runner
    )
