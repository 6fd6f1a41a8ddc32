"""What the complete datasets hold, and how a build compares.

Counts of the released files: val and test were counted in complete files; train is as the CRIS and
TFDS converters report it. The RefCOCO paper prints 142,209 expressions, one less than the file; the
104,560 of RefCOCOg include Google's unreleased test split.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple


class Counts(NamedTuple):
    """Of one split; `expressions` is `None` where nobody published it."""

    images: int
    refs: int
    expressions: int | None


#: (dataset, by) -> split -> counts.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": Counts(16_994, 42_404, 120_624),
        "val": Counts(1_500, 3_811, 10_834),
        "testA": Counts(750, 1_975, 5_657),
        "testB": Counts(750, 1_810, 5_095),
    },
    ("refcoco", "google"): {
        "train": Counts(19_213, 40_000, None),
        "val": Counts(4_559, 5_000, None),
        "test": Counts(4_527, 5_000, None),
    },
    ("refcoco_plus", "unc"): {
        "train": Counts(16_992, 42_278, 120_191),
        "val": Counts(1_500, 3_805, 10_758),
        "testA": Counts(750, 1_975, 5_726),
        "testB": Counts(750, 1_798, 4_889),
    },
    ("refcocog", "umd"): {
        "train": Counts(21_899, 42_226, 80_512),
        "val": Counts(1_300, 2_573, 4_896),
        "test": Counts(2_600, 5_023, 9_602),
    },
    ("refcocog", "google"): {
        "train": Counts(24_698, 44_822, 85_474),
        "val": Counts(4_650, 5_000, 9_536),
    },
}


@dataclasses.dataclass
class Tally:
    """What has been written of a split so far."""

    images: int = 0
    refs: int = 0
    expressions: int = 0

    def counts(self) -> Counts:
        """As compared with the published ones."""
        return Counts(self.images, self.refs, self.expressions)


def compare(dataset: str, by: str, built: Mapping[str, Counts]) -> list[str]:
    """One line a split: what was built, and whether that is the complete split."""
    lines = []
    for split, counts in built.items():
        published = PUBLISHED[dataset, by].get(split)
        if published is None:
            verdict = "no such split is published"
        elif _agree(counts, published):
            verdict = "as published"
        else:
            verdict = f"published: {_words(published)}, so this is not the published split"
        lines.append(f"{split}: {_words(counts)}; {verdict}")
    return lines


def _agree(counts: Counts, published: Counts) -> bool:
    return all(p is None or c == p for c, p in zip(counts, published, strict=True))


def _words(counts: Counts) -> str:
    words = f"{counts.images:,} images, {counts.refs:,} refs"
    return words if counts.expressions is None else f"{words}, {counts.expressions:,} expressions"
