"""Makes targets and prompts from regions of objects and parts that have category names."""

import dataclasses
from collections.abc import Collection, Sequence

from input_pipeline import prompts
from input_pipeline.schema import Expression, Target


@dataclasses.dataclass(frozen=True)
class NamedRegion:
    """A region of an image.

    Attributes:
        counts: compressed COCO RLE counts.
        whole: category of the object in plain words, e.g. `"car"`.
        part: category of the part, e.g. `"side mirror"`; `""` for the object itself.
        parent: of a part, the index of its object in the image's regions; -1 if not known.
    """

    counts: bytes
    whole: str
    part: str = ""
    parent: int = -1


def targets_of(regions: Sequence[NamedRegion]) -> tuple[Target, ...]:
    """A target for each region, in order."""
    return tuple(
        Target(region.counts, region.part or region.whole, region.parent, _kind(region))
        for region in regions
    )


def expressions_of(
    regions: Sequence[NamedRegion], prefix: str, incomplete: Collection[tuple[str, str]] = ()
) -> tuple[Expression, ...]:
    """Prompts for the regions of an image.

    There is one for each object category that has regions of its own ("all car"), and one for each part
    of an object category ("wheel of car"), which means that part of all objects of the category.

    Args:
        regions: the regions of the image.
        prefix: beginning of the expressions' ids, unique in the dataset.
        incomplete: pairs (whole, part) that are not annotated everywhere in the image, for which no
            prompt is made.

    Returns:
        Expressions in the order of the regions; ids are `<prefix>/<whole>` and
        `<prefix>/<whole>:<part>`.
    """
    means: dict[tuple[str, str], list[int]] = {}
    for number, region in enumerate(regions):
        means.setdefault((region.whole, region.part), []).append(number)
    asked = [(names, found) for names, found in means.items() if names not in incomplete]
    return tuple(
        Expression(
            id=f"{prefix}/{whole}:{part}" if part else f"{prefix}/{whole}",
            text=prompts.part(part, whole) if part else prompts.category(whole),
            targets=tuple(found),
            granularity="part" if part else "category",
            referent=referent,
        )
        for referent, ((whole, part), found) in enumerate(asked)
    )


def _kind(region: NamedRegion) -> str:
    return "part" if region.part else "object"
