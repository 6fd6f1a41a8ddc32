"""TFDS builders of RefCOCO, RefCOCO+ and RefCOCOg, writing the record of `input_pipeline.schema`.

A record is an image of one split, with all its referred regions and their expressions. Configs are
named after who made the splits; those with `_raw` keep each sentence as it was typed (`raw`, which
LAVT and ReLA read), the others have refer's cleaned text (`sent`, which CRIS reads).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import tensorflow_datasets as tfds

from input_pipeline.datasets.building import BuildError, RecordBuilder
from input_pipeline.datasets.refcoco.convert import Outcome, convert
from input_pipeline.datasets.refcoco.counts import PUBLISHED, Tally, compare
from input_pipeline.datasets.refcoco.layout import ImagePlan, SourceError, read_plan
from input_pipeline.schema import Record, features
from refseg_jax.naming import unknown

#: What the build found, kept beside the records.
REPORT = "build_report.txt"

#: Problems that an error lists.
_LISTED = 20


@dataclasses.dataclass(eq=False)
class ReferConfig(tfds.core.BuilderConfig):
    """One way to split and to read a dataset.

    Attributes:
        by: who made the splits (`unc`, `google`, `umd`), as in the name of the refs file.
        text: which of a sentence's texts an expression has.
    """

    by: str = "unc"
    text: Literal["sent", "raw"] = "sent"


def _configs(*makers: str) -> list[ReferConfig]:
    return [
        ReferConfig(name=by if text == "sent" else f"{by}_raw", by=by, text=text)
        for text in ("sent", "raw")
        for by in makers
    ]


class ReferBuilder(RecordBuilder, skip_registration=True):
    """What the three datasets share."""

    name = "refer"
    #: The dataset's folder in the source.
    source_name: ClassVar[str] = ""

    def __init__(
        self,
        *,
        data_dir: str | Path,
        config: str,
        source_dir: str | Path = "",
        splits: Sequence[str] = (),
        num_workers: int = 0,
        skip_missing: bool = False,
    ) -> None:
        """Prepares a build.

        Args:
            data_dir: where datasets lie.
            config: one of `BUILDER_CONFIGS`, by name.
            source_dir: refer's `data` folder (see `layout`); not needed to read what is built.
            splits: those to build; empty for all.
            num_workers: processes that read images; at most 1, or few images, read in this one.
            skip_missing: build what is there instead of failing on what is not.
        """
        self._source_dir = Path(source_dir)
        self._wanted = tuple(splits)
        self._skip = skip_missing
        self._problems: list[str] = []
        self._tally: dict[str, Tally] = {}
        self._tiny = 0
        self._empty = 0
        super().__init__(data_dir=data_dir, config=config, num_workers=num_workers)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.source_name}: expressions that refer to objects in COCO images.",
            features=features(),
            homepage="https://github.com/lichengunc/refer",
            license="images: Flickr licences, per image; COCO annotations: CC BY 4.0",
        )

    def _plan(self) -> Mapping[str, Sequence[ImagePlan]]:
        """The images of the chosen splits, in the published order of the splits."""
        config: Any = self.builder_config
        plan = read_plan(self._source_dir, self.source_name, config.by, config.text)
        self._problems.extend(plan.problems)
        self._empty = plan.empty
        self._raise_problems()
        for split in self._wanted:
            if split not in plan.splits:
                raise SourceError(unknown(f"split of {self.source}", split, plan.splits))
        order = [*PUBLISHED[self.name, config.by], *plan.splits]
        chosen = sorted(self._wanted or plan.splits, key=order.index)
        self._tally = {split: Tally() for split in chosen}
        return {split: plan.splits[split] for split in chosen}

    def _maker(self) -> Callable[[ImagePlan], Outcome]:
        return functools.partial(convert, source=self.source)

    def _record(self, split: str, made: Outcome) -> Record | None:
        self._problems.extend(made.problems)
        self._tiny += made.tiny
        if made.record is not None:
            tally, expressions = self._tally[split], made.record.expressions
            tally.images += 1
            tally.refs += len({e.referent for e in expressions})
            tally.expressions += len(expressions)
        return made.record

    def _finish(self, folder: Path) -> None:
        self._raise_problems()
        for split, tally in self._tally.items():
            if not tally.images:
                raise SourceError(f"{self.source}: no image of {split} could be built")
        (folder / REPORT).write_text("\n".join(self._report()) + "\n", encoding="utf-8")

    def _raise_problems(self) -> None:
        if not self._problems or self._skip:
            return
        listed = "\n".join(self._problems[:_LISTED])
        more = len(self._problems) - _LISTED
        raise BuildError(
            f"{self.source}: nothing was built, {len(self._problems)} problems; cure them, or "
            f"build the rest by --skip_missing\n{listed}"
            + (f"\n... {more} more" if more > 0 else "")
        )

    def _report(self) -> list[str]:
        config: Any = self.builder_config
        built = {split: tally.counts() for split, tally in self._tally.items()}
        lines = compare(self.name, config.by, built)
        if self._tiny:
            lines.append(f"polygons of fewer than three points, left out of masks: {self._tiny}")
        if self._empty:
            lines.append(f"expressions without a word, left out: {self._empty}")
        if self._problems:
            lines += [f"left out: {len(self._problems)} problems", *self._problems]
        return lines


class Refcoco(ReferBuilder, skip_registration=True):
    """RefCOCO."""

    name = source_name = "refcoco"
    BUILDER_CONFIGS = _configs("unc", "google")


class RefcocoPlus(ReferBuilder, skip_registration=True):
    """RefCOCO+; its folder here has no `+`, which not every file system and shell likes."""

    name = "refcoco_plus"
    source_name = "refcoco+"
    BUILDER_CONFIGS = _configs("unc")


class Refcocog(ReferBuilder, skip_registration=True):
    """RefCOCOg."""

    name = source_name = "refcocog"
    BUILDER_CONFIGS = _configs("umd", "google")


BUILDERS: dict[str, type[ReferBuilder]] = {b.name: b for b in (Refcoco, RefcocoPlus, Refcocog)}
assert {(b.name, c.by) for b in BUILDERS.values() for c in b.BUILDER_CONFIGS} == set(PUBLISHED)
