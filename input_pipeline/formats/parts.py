"""Objects and their parts by name, as regions with the questions for them."""

import dataclasses
from collections.abc import Collection, Sequence

from input_pipeline import prompts
from input_pipeline.schema import Expression, Target


@dataclasses.dataclass(frozen=True)
class NamedRegion:
    """A region of an image.

    Attributes:
        counts: compressed COCO RLE counts.
        whole: kind of object, as it is spoken of, e.g. `"car"`.
        part: which part of it this is, e.g. `"side mirror"`; `""` for the object itself.
        parent: index of the object's own region in the image's regions, -1 where that is not known.
    """

    counts: bytes
    whole: str
    part: str = ""
    parent: int = -1


def targets_of(regions: Sequence[NamedRegion]) -> tuple[Target, ...]:
    """A target for each region, in their order."""
    return tuple(
        Target(region.counts, region.part or region.whole, region.parent, _kind(region))
        for region in regions
    )


def expressions_of(
    regions: Sequence[NamedRegion], prefix: str, incomplete: Collection[tuple[str, str]] = ()
) -> tuple[Expression, ...]:
    """The questions that the regions of an image answer.

    One for each kind of object that has regions of its own ("all car") and one for each kind of part
    of a kind of object ("wheel of car"), which means that part of all these objects.

    Args:
        regions: of the image.
        prefix: of the expressions' ids, unique in the dataset.
        incomplete: (whole, part) that has more regions than were drawn, so that nothing is asked.

    Returns:
        In the order of the regions; ids are `<prefix>/<whole>` and `<prefix>/<whole>:<part>`.
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
