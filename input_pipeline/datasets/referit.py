"""ReferIt as prepared by text_objseg (Hu et al., 2016): queries for regions of SAIAPR TC-12 images.

    SOURCE/data/referit_query_{train,val,test}.json    {"<image>_<region>": [text, ...], ...}
    SOURCE/data/referit_imsize.json                    {"<image>.jpg": [width, height], ...}
    SOURCE/referit-dataset/images/<image>.jpg
    SOURCE/referit-dataset/mask/<image>_<region>.mat   `segimg_t`: 0 in the region

SOURCE is the folder exp-referit of github.com/ronghanghu/text_objseg, with referitdata.tar.gz unpacked
in it. `referit_query_trainval.json`, which is train and val together, is not read. Queries are kept
unchanged, also those that repeat. These files have 120,081 queries; the published 130,525 are those of
the raw game. This reader was written without the masks: that 0 marks the region is taken from
text_objseg's code.
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import (
    NO_WORD,
    Conversion,
    ItemError,
    Outcome,
    Plan,
    SourceError,
    read_image,
)
from input_pipeline.formats.image_files import ImageFiles
from input_pipeline.formats.json_stream import elements
from input_pipeline.formats.matfile import MatError, load_mat
from input_pipeline.formats.refer.refs import stored_text
from input_pipeline.schema import Expression, Target, encode_mask
from refseg_jax.text.cleaning import has_word

SPLITS = ("train", "val", "test")

_ARCHIVE = "unpack referitdata.tar.gz again"


@dataclasses.dataclass(frozen=True)
class Region:
    """A region with its queries.

    Attributes:
        key: `"<image>_<number>"`, the name of its mask file without `.mat`.
        queries: pairs (expression id, text).
    """

    key: str
    queries: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image of one split with its regions.

    Attributes:
        image_id: as in `Record`.
        path: path of the image file.
        masks: folder of the mask files.
        size: (height, width) in pixels, as the file of sizes states it.
        regions: regions that have a query.
    """

    image_id: str
    path: Path
    masks: Path
    size: tuple[int, int]
    regions: tuple[Region, ...]


def read_plan(source: Path) -> Plan:
    """Reads the queries and the sizes of the images.

    Raises:
        SourceError: a file or a folder is missing, or a file is damaged or of another format.
    """
    data, archive = source / "data", source / "referit-dataset"
    files = {split: data / f"referit_query_{split}.json" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise SourceError(
            f"{data}: no referit_query_train.json there; --source_dir must be the folder that "
            "holds data/referit_query_*.json and referit-dataset"
        )
    sizes = _sizes(data / "referit_imsize.json")
    images, masks = archive / "images", archive / "mask"
    for folder in (images, masks):
        if not folder.is_dir():
            raise SourceError(f"{folder}: not there; unpack referitdata.tar.gz in {archive}")
    pictures = ImageFiles(archive, ("images",), "ReferIt's images")
    drawn = {entry.name for entry in os.scandir(masks)}
    problems: dict[str, None] = {}
    splits: dict[str, tuple[ImagePlan, ...]] = {}
    held_out: dict[str, tuple[str, ...]] = {}
    empty = 0
    for split, file in files.items():
        found: dict[tuple[str, Path], list[Region]] = {}
        ids: dict[str, None] = {}
        for region, without in _regions(file):
            empty += without
            image = f"{region.key.split('_')[0]}.jpg"
            ids[_image_id(image)] = None
            line = ""
            path = pictures.find(image)
            if path is None:
                line = f"{images / image}: not there; {_ARCHIVE}"
            elif image not in sizes:
                line = f"{data / 'referit_imsize.json'}: no {image}; use the file of text_objseg"
            elif f"{region.key}.mat" not in drawn:
                line = f"{masks / region.key}.mat: not there; {_ARCHIVE}"
            if line or path is None:
                problems[line] = None
            elif region.queries:
                found.setdefault((image, path), []).append(region)
        splits[split] = tuple(
            ImagePlan(_image_id(image), path, masks, sizes[image], tuple(regions))
            for (image, path), regions in found.items()
        )
        if split != "train":
            held_out[split] = tuple(ids)
    return Plan(splits, tuple(problems), {NO_WORD: empty} if empty else {}, held_out)


def convert(plan: ImagePlan, source: str) -> Outcome:
    """Reads an image and the masks of its regions into a record.

    Raises:
        ItemError: the image is missing, or has another size than stated.
        ImageError: the image is damaged.
    """
    image = read_image(plan.path, size=plan.size, cure=_ARCHIVE)
    targets: list[Target] = []
    expressions: list[Expression] = []
    problems: list[str] = []
    keys: list[str] = []
    for region in plan.regions:
        try:
            counts = _counts(plan.masks / f"{region.key}.mat", plan.size)
        except (ItemError, MatError) as error:
            problems.append(str(error))
            continue
        expressions.extend(
            Expression(i, text, (len(targets),), "object", len(targets))
            for i, text in region.queries
        )
        targets.append(Target(counts, ""))
        keys.append(region.key)
    if not targets:
        return Outcome(None, tuple(problems))
    record = image.record(
        plan.image_id,
        source,
        targets=tuple(targets),
        expressions=tuple(expressions),
        metadata=json.dumps({"regions": keys}),
    )
    return Outcome(record, tuple(problems))


def _counts(path: Path, size: tuple[int, int]) -> bytes:
    values = load_mat(path).get("segimg_t")
    shape = getattr(values, "shape", None)
    if shape != size:
        found = "no map" if shape is None else f"the shape {list(shape)}"
        raise ItemError(f"{path}: segimg_t has {found}, its image {list(size)}; {_ARCHIVE}")
    mask = values == 0
    if not mask.any():
        raise ItemError(f"{path}: no pixel is of the region; {_ARCHIVE}")
    return encode_mask(mask)


def _regions(file: Path) -> list[tuple[Region, int]]:
    """The regions of a split, each with the number of its queries without a word."""
    regions = []
    for key, texts in _lists(file).items():
        if not re.fullmatch(r"\d+_\d+", key, re.ASCII):
            raise SourceError(
                f"{file}: {key!r:.40} is no <image>_<region>; use the file of text_objseg"
            )
        try:
            said = [(f"{key}-{n}", stored_text(text)) for n, text in enumerate(texts)]
        except AttributeError:
            raise SourceError(
                f"{file}: {key} has a query that is no text; use the file of text_objseg"
            ) from None
        words = tuple((i, text) for i, text in said if has_word(text))
        regions.append((Region(key, words), len(said) - len(words)))
    return regions


def _lists(file: Path) -> dict[str, list[Any]]:
    """Reads a JSON object whose values are lists."""
    lists: dict[str, list[Any]] = {}
    for key, element in elements(file):
        lists.setdefault(key, []).append(element)
    return lists


def _sizes(file: Path) -> dict[str, tuple[int, int]]:
    """File name of an image -> (height, width)."""
    sizes = {}
    for name, size in _lists(file).items():
        if len(size) != 2 or not all(type(n) is int for n in size):
            raise SourceError(
                f"{file}: {name!r:.40} has no [width, height]; use the file of text_objseg"
            )
        sizes[name] = (size[1], size[0])
    return sizes


def _image_id(name: str) -> str:
    return f"saiapr/{Path(name).stem}"


CONVERSIONS = (Conversion("referit", read_plan, convert),)
