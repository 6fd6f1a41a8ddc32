"""Protocols whose unit is the category over a whole split: `every_class`, `semseg` and `part`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias, get_args

from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols.base import (
    Pair,
    Protocol,
    Reads,
    Sums,
    exact,
    mean,
    required,
)
from refseg_jax.naming import unknown

#: What a pixel without a class is: not counted, or of the class `BACKGROUND`.
Background: TypeAlias = Literal["ignored", "class"]

#: Category of pixels without a class, where they are counted.
BACKGROUND = "background"


@dataclasses.dataclass(frozen=True)
class Semseg(Protocol):
    """Mean IoU over categories, of the pairs that are there.

    A pair is one category on one image: `category` names it, and the reference is empty if the image
    does not contain it. `IoU/<category>` is the sum of the category's intersections over the sum of
    its unions in the whole split. `mIoU` is the mean of these over all categories that occur in any
    prediction or reference.

    An evaluation asks an image only for the categories that its expressions name, and cuts each mask
    at a threshold, so that masks may overlap. Benchmarks ask for every class: see `EveryClass`.
    """

    name: ClassVar[str] = "semseg"
    comparable: ClassVar[str] = (
        "no published table, unless every image was asked for every class (every_class): an image "
        "that is asked only for what it contains scores higher"
    )
    columns: ClassVar[tuple[str, ...]] = ("mIoU",)

    def bucket(self, pair: Pair) -> str:
        """The category.

        Raises:
            UserError: the pair has none.
        """
        return required(pair, "category", self.name)

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Intersection and union."""
        counts = pair.regions.counts()
        return {"intersection": counts.intersection, "union": counts.union}

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, and `IoU/<category>`."""
        ious = {
            category: total["intersection"] / total["union"]
            for category, total in sums.items()
            if total["union"]
        }
        if not ious:
            return {}
        return {
            "mIoU": mean(sum(map(exact, ious.values())), len(ious)),
            **{f"IoU/{category}": iou for category, iou in ious.items()},
        }


@dataclasses.dataclass(frozen=True)
class EveryClass(Semseg):
    """Mean IoU as benchmarks of semantic, open-vocabulary and part segmentation report it.

    Every image is asked for every class of the dataset's list, and each pixel goes to the class with
    the largest logit, at the image's own size; of equal ones the first in the list wins. A pair is a
    class on an image. `refseg_jax.evaluation.every_class` makes the pairs.

    `mIoU` is the mean of `IoU/<class>` over the classes that occur in any prediction or reference
    (mmsegmentation's mean without NaN; ADE20K's development kit counts a class that never occurs as
    0). `mAcc` is the mean over classes of the share of their pixels that are found, and `aAcc` the
    share of all counted pixels.

    Attributes:
        background: what becomes of pixels without a class. `ignored`: they count nowhere, as in
            ADE20K-150, PASCAL-Context-59 and COCO-Stuff. `class`: they are a class of their own,
            `background`, and a pixel is predicted as background where no class's probability is
            above the threshold, as in PASCAL-Context-60 and LIP's 20 classes. `fg_mIoU` is then the
            mean over the other classes, in whose unions the background counts. PartImageNet's maps
            have 40 parts and a value for the background (github.com/TACJu/PartImageNet, issue 12);
            neither its README nor UniLSeg's paper states whether the mean includes it: `mIoU` does,
            `fg_mIoU` does not.
    """

    name: ClassVar[str] = "every_class"
    comparable: ClassVar[str] = (
        "mIoU over the classes of ADE20K-150, PASCAL-Context-59 and COCO-Stuff (background ignored), "
        "PASCAL-Context-60, LIP and PartImageNet (background a class; fg_mIoU leaves it out)"
    )
    reads: ClassVar[tuple[Reads, ...]] = ("argmax",)
    columns: ClassVar[tuple[str, ...]] = ("mIoU", "mAcc", "aAcc")

    background: Background = "ignored"

    def __post_init__(self) -> None:
        """Checks the background's rule.

        Raises:
            UserError: its name is unknown.
        """
        rules = get_args(Background)
        if self.background not in rules:
            raise UserError(unknown("config.eval.background", str(self.background), rules))

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """Intersection, union and target."""
        return {**super().measure(pair), "target": pair.regions.counts().target}

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`mIoU`, `mAcc`, `aAcc`, `IoU/<class>`; with a background, `fg_mIoU`."""
        found = super().scores(sums)
        shown = [total for total in sums.values() if total["target"]]
        if not shown:
            return found
        accuracies = [total["intersection"] / total["target"] for total in shown]
        found["mAcc"] = mean(sum(map(exact, accuracies)), len(accuracies))
        found["aAcc"] = sum(total["intersection"] for total in shown) / sum(
            total["target"] for total in shown
        )
        if BACKGROUND in sums:
            classes = {name: total for name, total in sums.items() if name != BACKGROUND}
            found["fg_mIoU"] = super().scores(classes).get("mIoU", 0.0)
        return found


@dataclasses.dataclass(frozen=True)
class Part(Semseg):
    """`semseg` over the categories of parts; for PartImageNet's benchmark see `EveryClass`.

    Pairs of other granularities are left out; a pair without a granularity counts as a part.
    """

    name: ClassVar[str] = "part"
    comparable: ClassVar[str] = (
        "no published table, unless every image was asked for every part (every_class); not the "
        "per-expression Part of RefCOCOm (refcocom)"
    )

    def takes(self, pair: Pair) -> bool:
        """Whether the pair is of a part."""
        return pair.granularity in ("", "part")
