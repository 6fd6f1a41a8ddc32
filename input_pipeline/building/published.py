"""Builds published datasets from their conversions, and writes the build report."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline.building.beam import Runner
from input_pipeline.building.builder import RecordBuilder
from input_pipeline.building.conversion import (
    BuildError,
    Conversion,
    Outcome,
    Plan,
    SourceError,
    as_given,
    converted,
)
from input_pipeline.building.counts import REPORT, compare, not_there
from input_pipeline.building.shards import Summary
from input_pipeline.facts.published import facts_of
from input_pipeline.schema import features
from refseg_jax.errors import escaped
from refseg_jax.naming import unknown

#: Number of problems that an error lists.
_LISTED = 20


def builder_of(
    conversion: Conversion,
    *,
    data_dir: str | Path,
    source_dir: str | Path = "",
    given: Path | None = None,
    splits: Sequence[str] = (),
    num_workers: int = 0,
    skip_missing: bool = False,
    runner: Runner | None = None,
) -> RecordBuilder:
    """Returns the TFDS builder of a published dataset.

    Args:
        conversion: conversion of the dataset; `input_pipeline.facts` must have its name.
        data_dir: folder of all datasets.
        source_dir: folder of the downloaded files; not needed to read a built dataset.
        given: path that the report prints instead of `source_dir`, e.g. of the archive; `None` prints
            `source_dir`.
        splits: splits to build; empty builds all.
        num_workers: number of processes that make records. For 0 or 1, or for fewer than 256 items,
            this process makes them.
        skip_missing: leave out missing and damaged items instead of failing.
        runner: Beam runner that writes the shards; `None` writes them on this machine.

    Raises:
        UserError: `input_pipeline.facts` does not have the dataset.
    """
    # TFDS takes the name of a dataset, and its configs, from the builder's class.
    name, _, config = conversion.name.partition("/")
    configs = [_config(config, conversion.name)] if config else []
    fields = {"name": name, "BUILDER_CONFIGS": configs}
    kind = type(name, (_Builder,), fields, skip_registration=True)
    return kind(
        conversion,
        Path(source_dir),
        given or Path(source_dir),
        tuple(splits),
        skip_missing,
        data_dir=data_dir,
        num_workers=num_workers,
        runner=runner,
    )


class _Builder(RecordBuilder, skip_registration=True):
    name = "published"

    def __init__(
        self,
        conversion: Conversion,
        source_dir: Path,
        given: Path,
        splits: tuple[str, ...],
        skip_missing: bool,
        *,
        data_dir: str | Path,
        num_workers: int,
        runner: Runner | None,
    ) -> None:
        self._conversion = conversion
        self._facts = facts_of(conversion.name)
        self._source_dir = source_dir
        self._given = given
        self._wanted = splits
        self._skip = skip_missing
        config = conversion.name.partition("/")[2] or None
        super().__init__(data_dir=data_dir, config=config, num_workers=num_workers, runner=runner)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._facts.description,
            features=features(),
            homepage=self._facts.homepage,
            license=self._facts.licence,
        )

    def _plan(self) -> Plan:
        """Reads the plan and keeps the chosen splits, in the published order."""
        plan = self._conversion.read_plan(self._source_dir)
        self._raise(plan.problems)
        there = {split: items for split, items in plan.splits.items() if items}
        missing = [split for split in self._wanted if split not in there]
        if missing:
            raise SourceError(
                "; ".join(unknown(f"split of {self.source}", split, there) for split in missing)
            )
        order = [*self._facts.published, *there]
        chosen = sorted(self._wanted or there, key=order.index)
        if not chosen:
            raise SourceError(
                f"{self._source_dir}: nothing of {self.source} is there; it must hold "
                f"{self._facts.layout}"
            )
        return dataclasses.replace(plan, splits={split: there[split] for split in chosen})

    def _maker(self) -> Callable[[Any], Outcome]:
        return functools.partial(converted, self._conversion.convert, self.source)

    def _finish(self, folder: Path, plan: Plan, built: Mapping[str, Summary]) -> None:
        problems = dict.fromkeys(plan.problems)
        notes = dict(plan.notes)
        for summary in built.values():
            problems |= summary.problems
            for note, number in summary.notes.items():
                notes[note] = notes.get(note, 0) + number
        self._raise(tuple(problems))
        counts = {split: summary.tally.result() for split, summary in built.items()}
        for split, counted in counts.items():
            if not counted["images"]:
                raise SourceError(f"{self.source}: no image of {split} could be built")
        lines = compare(counts, self._facts.published)
        if not self._wanted:
            lines += not_there(counts, self._facts.published)
        lines += [f"{name}: {number}" for name, number in [*plan.facts.items(), *notes.items()]]
        if problems:
            lines.append(f"left out: {_number(problems)}")
            lines += [as_given(line, self._source_dir, self._given) for line in problems]
        text = "\n".join(map(escaped, lines)) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")

    def _raise(self, problems: Sequence[str]) -> None:
        if not problems or self._skip:
            return
        more = len(problems) - _LISTED
        raise BuildError(
            f"{self.source}: nothing was built, {_number(problems)}; cure what is listed, "
            "or build the rest by --skip_missing",
            *problems[:_LISTED],
            *(f"... {more} more",) * (more > 0),
        )


def _number(problems: Collection[str]) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) != 1)}"


def _config(config: str, dataset: str) -> tfds.core.BuilderConfig:
    return tfds.core.BuilderConfig(name=config, description=facts_of(dataset).description)
