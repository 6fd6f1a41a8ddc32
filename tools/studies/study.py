"""What a study is: its trainings and its tables.

A study trains each variant from several seeds and reads the scores of its tables from the workdirs. One
training may give several rows, because the rule that decides "nothing matches" is applied after it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from refseg_jax.reporting.tables import read_summary
from tools.studies.no_target_rule import matched_min_pixels, scores_by_min_pixels

#: Reads the scores of a finished run from its workdir.
Reader = Callable[[Path], Mapping[str, float]]

#: ReLA's paper clears masks with fewer pixels than this (section 5.3); its code counts at 480 x 480.
PAPER_MIN_PIXELS = 50


def summary(workdir: Path) -> Mapping[str, float]:
    """The scores that the run itself wrote."""
    return read_summary(workdir / "summary.json")


def by_pixels(workdir: Path) -> Mapping[str, float]:
    """The scores of the same masks if the pixel rule clears them instead of the presence head."""
    return scores_by_min_pixels(workdir / "dump" / "test", PAPER_MIN_PIXELS)


def by_matched_pixels(workdir: Path) -> Mapping[str, float]:
    """As `by_pixels`, with the greatest number of pixels whose T_acc on val is at least the head's."""
    wanted = summary(workdir)["val/T_acc"]
    number = matched_min_pixels(workdir / "dump" / "val", wanted)
    return scores_by_min_pixels(workdir / "dump" / "test", number)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A config that is trained from several seeds.

    Attributes:
        overrides: flags that set fields of the config.
        config: config file that replaces that of the study, or `""`.
    """

    overrides: tuple[str, ...] = ()
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: text of the first cell.
        variant: key of `Study.variants`.
        read: reads the scores of a finished run.
    """

    label: str
    variant: str
    read: Reader = summary


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose rows are compared with its first row.

    Attributes:
        heading: heading of the first column.
        rows: the rows from top to bottom.
        text: lines of Markdown before the table.
    """

    heading: str
    rows: tuple[Row, ...]
    text: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """An ablation.

    Attributes:
        title: title of the page.
        text: lines of Markdown below the title.
        config: the config file that the variants change.
        steps: steps of each training.
        fields: overrides that all variants share.
        variants: name -> variant.
        metrics: names of the scores that the tables show.
        tables: tables of the page.
        noise: standard deviation of a score over seeds, in [0, 1], with which a page of a single seed
            judges its differences; 0 if the study needs several seeds.
    """

    title: str
    text: tuple[str, ...]
    config: str
    steps: int
    fields: tuple[str, ...]
    variants: Mapping[str, Variant]
    metrics: tuple[str, ...]
    tables: tuple[Table, ...]
    noise: float = 0.0


#: Largest standard deviation over three seeds of a score of `group_tokens`, on the first version of
#: Scenes: that of part/mIoU without low tokens.
SEED_NOISE = 0.016
