"""ADE20K's SceneParse150: every pixel as one of 150 classes, or as none of them.

    SOURCE/objectInfo150.txt
    SOURCE/images/{training,validation}/ADE_{train,val}_<8 digits>.jpg
    SOURCE/annotations/{training,validation}/ADE_{train,val}_<8 digits>.png

This is the content of `ADEChallengeData2016.zip`. The value of a map is the class's index in
`objectInfo150.txt`; 0 means no class. The name of a class is the first of its names there (`traffic
light, traffic signal, stoplight` is `traffic light`), as in other code. `objectInfo150.csv` of the
development kit is not read, because it does not separate the names of a class. Only that file says which
35 classes are stuff, so `STUFF` lists them.
"""

import dataclasses
from pathlib import Path

from input_pipeline.building.conversion import Conversion, Outcome, Plan, SourceError
from input_pipeline.facts.published import facts_of
from input_pipeline.formats.label_maps import (
    Classes,
    MapItem,
    asked_classes,
    convert_categories,
    plan_pairs,
)
from refseg_jax.text.encoding import EncodingError, decoded

#: Classes that the development kit calls stuff.
# fmt: off
STUFF = frozenset({
    1, 2, 3, 4, 6, 7, 10, 12, 14, 17, 22, 26, 27, 29, 30, 47, 49, 52, 53, 55, 60, 61, 62, 69, 80, 85,
    92, 95, 97, 102, 106, 110, 114, 129, 141,
})
# fmt: on

NAMES_FILE = "objectInfo150.txt"

_NUMBER = 150
_CURE = "unpack ADEChallengeData2016.zip again"
_SPLITS = {"train": "training", "val": "validation"}


def read_plan(source: Path) -> Plan:
    """Reads the names of the classes, and pairs images and maps.

    Raises:
        SourceError: no split is there, or the file of names is missing or wrong.
    """
    choices = {
        split: [(f"images/{folder}", f"annotations/{folder}")] for split, folder in _SPLITS.items()
    }
    layout = facts_of("ade20k/150").layout
    plan = plan_pairs(source, choices, image_id="ade20k/{}".format, layout=layout, cure=_CURE)
    names = read_names(source / NAMES_FILE)
    return dataclasses.replace(
        plan,
        splits={
            split: tuple(dataclasses.replace(item, names=names) for item in items)
            for split, items in plan.splits.items()
        },
        classes=asked_classes(names),
    )


def read_names(path: Path) -> tuple[str, ...]:
    """Reads the first name of each class.

    Args:
        path: `objectInfo150.txt`: lines of `Idx, Ratio, Train, Val, Name`, separated by tabs.

    Returns:
        The names of the classes 1..150, in order.

    Raises:
        SourceError: the file is missing, or does not name 150 classes.
    """
    try:
        text = decoded(path.read_bytes())
        lines = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
        names = {int(fields[0]): fields[4].split(",")[0].strip() for fields in lines}
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; {_CURE}") from None
    except EncodingError as error:
        raise SourceError(f"{path}: {error}") from None
    except (ValueError, IndexError):
        names = {}
    if list(names) != list(range(1, _NUMBER + 1)) or not all(names.values()):
        raise SourceError(f"{path}: does not name {_NUMBER} classes; {_CURE}")
    return tuple(names.values())


def convert(item: MapItem, source: str) -> Outcome:
    """Converts an image as `convert_categories` does, with the class names of the release."""
    classes = Classes(item.names, void=0, stuff=STUFF)
    return convert_categories(item, source, classes=classes, cure=_CURE)


CONVERSIONS = (Conversion("ade20k/150", read_plan, convert),)
