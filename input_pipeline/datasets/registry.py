"""The datasets that `tools.build_dataset` can build, by name.

A name is the dataset's folder under `data_dir` and what `config.data.dataset` takes (for `jsonl` it
is the one that its owner gives). What is known about a dataset is in `input_pipeline.facts`; here is
how to build it. Builders are imported when they are used: TFDS is slow to import, and worker
processes, which import this module with the command that started them, do without it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import Conversion
from input_pipeline.datasets import (
    coca,
    coco_stuff,
    d3,
    lip,
    paco,
    partimagenet,
    phrasecut,
    ref_youtube_vos,
    referit,
    sa1b,
    saliency,
)
from input_pipeline.datasets.ade20k import full as ade20k_full
from input_pipeline.datasets.ade20k import scene_parsing as ade20k_150
from input_pipeline.datasets.pascal import context as pascal_context
from input_pipeline.datasets.pascal import part as pascal_part
from input_pipeline.datasets.refcoco import cris, grefcoco, refclef, refcoco, refcocom, regrouped
from input_pipeline.facts.published import all_facts


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person asks to be built.

    Attributes:
        data_dir: where datasets lie.
        source_dir: the files it is made of; `None` for a dataset that needs none.
        name: of a dataset of one's own.
        splits: those to build; empty for all.
        num_workers: processes.
        skip_missing: build what is there instead of failing on what is not.
        runner: of Apache Beam, which then makes the shards.
        given: what to call `source_dir`, where that is what an archive was unpacked to.
    """

    data_dir: Path
    source_dir: Path | None = None
    name: str = ""
    splits: tuple[str, ...] = ()
    num_workers: int = 1
    skip_missing: bool = False
    runner: Runner | None = None
    given: Path | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to build a dataset.

    Attributes:
        needs: fields of the request that it cannot do without.
        takes: other fields that apply to it (`data_dir` and `num_workers` always do).
        folder: where it lies once it is built.
        build: writes it; raises `UserError`, and leaves nothing behind, where it cannot.
    """

    needs: frozenset[str]
    takes: frozenset[str]
    folder: Callable[[Request], Path]
    build: Callable[[Request], None]


#: The published datasets.
_MODULES = (
    refcoco, grefcoco, refcocom, cris, refclef, referit, d3, regrouped, phrasecut,
    paco, partimagenet, pascal_part, coco_stuff, ade20k_150, ade20k_full, pascal_context, lip,
    saliency, coca, ref_youtube_vos, sa1b,
)  # fmt: skip
CONVERSIONS: Mapping[str, Conversion] = {
    conversion.name: conversion
    for conversion in itertools.chain.from_iterable(module.CONVERSIONS for module in _MODULES)
}


def _published_folder(conversion: Conversion, request: Request) -> Path:
    from input_pipeline.building.published import builder_of

    return Path(str(builder_of(conversion, data_dir=request.data_dir).data_dir))


def _build_published(conversion: Conversion, request: Request) -> None:
    from input_pipeline.building.published import builder_of

    assert request.source_dir is not None
    builder_of(
        conversion,
        data_dir=request.data_dir,
        source_dir=request.source_dir,
        given=request.given,
        splits=request.splits,
        num_workers=request.num_workers,
        skip_missing=request.skip_missing,
        runner=request.runner,
    ).build()


def _scenes_folder(request: Request) -> Path:
    from input_pipeline.datasets.scenes.scenes import Scenes

    return Path(str(Scenes(data_dir=request.data_dir).data_dir))


def _build_scenes(request: Request) -> None:
    from input_pipeline.datasets.scenes.scenes import build

    build(request.data_dir, num_workers=request.num_workers)


def _jsonl_folder(request: Request) -> Path:
    from input_pipeline.building.own import own_folder

    return own_folder(request.name, request.data_dir)


def _build_jsonl(request: Request) -> None:
    from input_pipeline.datasets import jsonl

    assert request.source_dir is not None
    jsonl.build(
        request.name,
        request.source_dir,
        data_dir=request.data_dir,
        splits=request.splits,
        num_workers=request.num_workers,
        runner=request.runner,
    )


def _entries() -> dict[str, Entry]:
    none, source = frozenset[str](), frozenset({"source_dir"})
    entries = {
        "scenes": Entry(none, none, _scenes_folder, _build_scenes),
        "jsonl": Entry(
            source | {"name"}, frozenset({"splits", "runner"}), _jsonl_folder, _build_jsonl
        ),
    }
    for name, conversion in CONVERSIONS.items():
        entries[name] = Entry(
            source,
            frozenset({"splits", "skip_missing", "runner"}),
            functools.partial(_published_folder, conversion),
            functools.partial(_build_published, conversion),
        )
    return entries


DATASETS = _entries()
# The facts about `jsonl` are its owner's.
_UNMATCHED = all_facts().keys() ^ (DATASETS.keys() - {"jsonl"})
assert not _UNMATCHED, f"these have code or facts, not both: {', '.join(sorted(_UNMATCHED))}"
