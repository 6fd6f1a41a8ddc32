"""A dataset of your own: a folder of images, and a file of JSON lines for each split.

    DIR/train.jsonl    {"image": "a.jpg", "expression": "the red car", "mask": "a-0.png"}
    DIR/val.jsonl      {"image": "b/c.png", "expression": "a dog", "mask": null}

Each line is one expression about one image. Exactly one of two fields gives the region that it means:

- `mask`: name of a mask file of the image's size (PNG, BMP, GIF or TIFF); or a list of such names for
  several targets. It is read as it looks (`input_pipeline.formats.mask_files`): white on black, whatever
  numbers the file stores for them, or a cut-out whose background is transparent. A mask with greys is
  an error, unless a `threshold` says which levels belong to the target.
- `segmentation`: COCO polygons or RLE. A polygon may leave the image by 5 pixels or 2 % of the longer
  side, whichever is more, and is cut at the border. The lines of `predictions.jsonl`, which
  `tools.predict` writes, have this form.

Nothing in the image matches the expression if the field is `null` or an RLE without a pixel, or if the
line has `"present": false` beside a segmentation, as a prediction whose mask was cleared has it.

Optional fields:

- `granularity`: `none` if and only if nothing matches. Default: `none`, `part` with a `parent`, `multi`
  for several masks, else `object`.
- `form`: why nothing matches, or the absence with which a match is compared: `kind`, `attribute`,
  `part`, `relation`, `place`, `number` or `negation`. Evaluations tell `N_acc` and `T_acc` of each.
- `threshold`: level (1..255) from which on the `mask` of the line counts, as `--mask_threshold` says it
  for all lines. With one above 1, a mask may be a JPEG.
- `category`: name of the region's category. If several lines share a region, the first one counts.
- `id`: id of the expression, unique in the dataset.
- `parent`: for a part, the `id` of its object's expression, which must be about the same image and mean
  one region.
- `image_id`: id of the image in all datasets that have it. It keeps evaluation images of one dataset
  out of training on another. For images of COCO it is COCO's id, else a name that begins with its pool
  (`sa1b/223750`).
- `box`: `[x, y, width, height]` in pixels. A mask that shares no pixel with it is an error; one that is
  mostly elsewhere is counted in the build report. The box
  itself becomes the region only with `"segmentation": "box"`, because a rectangle teaches a model to
  draw rectangles. The record's metadata lists such targets (`{"boxes": [0, 2]}`).

Names of files are relative to `DIR`, or to a folder that `--image_dir` gives (the flag may be repeated).
They may be absolute or climb up by `..` if they lead below one of these folders. Backslashes stand for
slashes where no file has such a name. Coordinates are pixels: shares of the picture (0..1) and per cent
are refused. Files of lines are UTF-8.

An image is what a person sees: an EXIF flag turns it, and its regions are those of the turned image. A
mask that fits the stored pixels alone is an error. The build report counts such images.

For more than a million lines, a split may consist of several files (`train-00000-of-00010.jsonl` and so
on), or of plain tars in the layout of WebDataset (`train-00000.tar`). A sample of a tar is `KEY.jpg` (or
`.png`), `KEY.json` (an object like a line, or a list of such objects, without `image`), and masks
`KEY.NAME.png`, which the JSON names in full.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError
from input_pipeline.building.own import build_records
from input_pipeline.formats.jsonl_files import find_splits, read_images
from input_pipeline.formats.jsonl_records import make_record
from input_pipeline.formats.places import Places
from refseg_jax.naming import unknown


def build(
    name: str,
    source_dir: Path,
    *,
    data_dir: Path,
    image_dir: Sequence[Path] = (),
    mask_threshold: int | None = None,
    splits: Sequence[str] = (),
    num_workers: int = 0,
    runner: Runner | None = None,
) -> Path:
    """Builds a dataset from a folder of images and JSON lines.

    Args:
        name: name of the dataset, the value of `config.data.dataset`.
        source_dir: the folder.
        data_dir: folder of all datasets.
        image_dir: other folders that may hold the images and masks.
        mask_threshold: level (1..255) from which on the masks count whose lines do not say it; `None`
            reads them as they look.
        splits: splits to build; empty builds all.
        num_workers: number of processes that make records.
        runner: Beam runner that writes the shards; `None` writes them on this machine.

    Returns:
        The folder of the dataset.

    Raises:
        SourceError: the folder has no file of lines.
        BuildError: a split or a line is wrong, or the name is invalid or taken; the message has file,
            line, reason and cure.
        ArchiveError: a tar is damaged or refused.
        ImageError: an image or a mask file is damaged.
    """
    files = find_splits(source_dir)
    for split in splits:
        if split not in files:
            raise BuildError(f"{source_dir}: {unknown('split', split, files)}")
    places = Places(source_dir, tuple(image_dir))
    chosen = [split for split in files if split in (splits or files)]
    plan = {split: read_images(files[split], places, mask_threshold) for split in chosen}
    make = functools.partial(make_record, places=places, source=name)
    return build_records(
        name, plan, make, data_dir=data_dir, num_workers=num_workers, runner=runner
    )
