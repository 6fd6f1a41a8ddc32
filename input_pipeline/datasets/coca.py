"""CoCA: 80 groups of images, and masks of the objects that the images of a group have in common.

    SOURCE/image/<group>/<name>.jpg
    SOURCE/binary/<group>/<name>.png

A group is named after its category (`Accordion`). That name is the expression of all its images, without
the "all" of other category prompts, as in GRSer (section 5.1). All images are positive. Pixels of a map
(0..255) with 128 or more belong to the object. `bbox` and `instance` of the release are not read.
"""

import os
from pathlib import Path

from input_pipeline import prompts
from input_pipeline.building.conversion import Conversion, Outcome, Plan, SourceError, read_image
from input_pipeline.datasets.saliency import read_mask
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import MapItem, first_folders, held_out, pair_files
from input_pipeline.schema import Expression, Target, encode_mask
from refseg_jax.images.files import same_name

_CURE = "unpack CoCA.zip again"


def read_plan(source: Path) -> Plan:
    """Pairs images and maps, group by group.

    Raises:
        SourceError: `image` or `binary` is missing.
    """
    choices = [("image", "binary"), ("CoCA/image", "CoCA/binary")]
    images, maps = first_folders(source, choices, layout=facts_of("coca").layout)
    groups = [_folders(images), _folders(maps)]
    problems: list[str] = []
    items: list[MapItem] = []
    for group in sorted(groups[0].keys() | groups[1].keys()):
        missing = [
            folder
            for folder, there in zip((images, maps), groups, strict=True)
            if group not in there
        ]
        if missing:
            problems.append(f"{missing[0] / group}: not there; {_CURE}")
            continue
        files = pair_files(groups[0][group], groups[1][group], cure=_CURE)
        problems += files.problems
        items += [
            MapItem(image, labels, f"coca/{group}/{stem}", f"{group}/{stem}", (group,))
            for stem, image, labels in files.found
        ]
    splits = {"test": tuple(items)}
    return Plan(splits, tuple(problems), held_out=held_out(splits))


def convert(item: MapItem, source: str) -> Outcome:
    """Makes the record of an image of a group.

    Args:
        item: the image and its map; `names` has the group.
        source: the record's `source`.

    Raises:
        ItemError: a file is missing, or the sizes differ.
        ImageError: the image or the map is damaged, or the levels of the map are not 0..255.
    """
    (group,) = item.names
    mask, notes = read_mask(item.labels, cure=_CURE)
    image = read_image(item.image, size=mask.shape, cure=_CURE)
    there = bool(mask.any())
    text = prompts.name(group)
    record = image.record(
        item.image_id,
        source,
        targets=(Target(encode_mask(mask), text),) if there else (),
        expressions=(Expression(item.key, text, (0,) if there else (), "group", 0, group),),
    )
    return Outcome(record, notes=notes)


def _folders(folder: Path) -> dict[str, Path]:
    """Group -> its folder; the spelling of a name may differ between images and maps."""
    with os.scandir(folder) as entries:
        names = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    found: dict[str, Path] = {}
    # What macOS adds to archives is no group.
    for name in sorted(names - {"__MACOSX"}):
        other = found.setdefault(same_name(name), folder / name)
        if other.name != name:
            raise SourceError(f"{folder / name}: {other.name} has the same name; {_CURE}")
    return found


CONVERSIONS = (Conversion("coca", read_plan, convert),)
