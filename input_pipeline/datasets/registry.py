"""The datasets that `tools.build_dataset` can build, by name.

A name is the value of `config.data.dataset` and the dataset's folder in `data_dir`; for `jsonl` and
`masks/...`, datasets of your own, it is the name that you give. This module has the code that builds a
dataset; the facts about it are in `input_pipeline.facts`. Builders are imported when they are used: TFDS
is slow to import, and worker processes, which also import this module, do not need it.
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
    """A request to build a dataset.

    Attributes:
        data_dir: folder of all datasets.
        source_dir: folder of the source files; `None` for a dataset that needs none.
        name: name of a dataset of your own (`jsonl`, `masks/...`), else `""`.
        image_dir: folders besides `source_dir` that may hold the images of a dataset of your own.
        mask_threshold: level (1..255) at which its masks are cut; `None` reads them as they look.
        splits: splits to build; empty builds all.
        num_workers: number of processes that make records.
        skip_missing: leave out missing and damaged items instead of failing.
        runner: Beam runner that writes the shards; `None` writes them on this machine.
        given: the path that the user gave, e.g. of an archive that was unpacked to `source_dir`; the
            build report prints it. `None` prints `source_dir`.
    """

    data_dir: Path
    source_dir: Path | None = None
    name: str = ""
    image_dir: tuple[Path, ...] = ()
    mask_threshold: int | None = None
    splits: tuple[str, ...] = ()
    num_workers: int = 1
    skip_missing: bool = False
    runner: Runner | None = None
    given: Path | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """The code that builds one dataset, and the fields of `Request` that it reads.

    Attributes:
        needs: fields that must be given.
        takes: fields that may be given, besides `data_dir` and `num_workers`, which all datasets take.
        folder: returns the folder of the built dataset.
        build: builds the dataset; raises `UserError` if that fails.
    """

    needs: frozenset[str]
    takes: frozenset[str]
    folder: Callable[[Request], Path]
    build: Callable[[Request], None]


#: Modules of the published datasets; each lists its conversions in `CONVERSIONS`.
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


#: Datasets of your own, which the table of facts does not have: lines, and exports of other tools.
OWN = ("jsonl", "masks/coco", "masks/fiftyone", "masks/label_studio")


def _own_folder(request: Request) -> Path:
    from input_pipeline.building.own import own_folder

    return own_folder(request.name, request.data_dir)


def _build_jsonl(request: Request) -> None:
    from input_pipeline.datasets import jsonl

    assert request.source_dir is not None
    jsonl.build(
        request.name,
        request.source_dir,
        data_dir=request.data_dir,
        image_dir=request.image_dir,
        mask_threshold=request.mask_threshold,
        splits=request.splits,
        num_workers=request.num_workers,
        runner=request.runner,
    )


def _build_masks(form: str, request: Request) -> None:
    from input_pipeline.datasets import masks

    assert request.source_dir is not None
    masks.build(
        form,
        request.name,
        request.source_dir,
        data_dir=request.data_dir,
        image_dir=request.image_dir,
        splits=request.splits,
        num_workers=request.num_workers,
        runner=request.runner,
    )


def _entries() -> dict[str, Entry]:
    none, source = frozenset[str](), frozenset({"source_dir"})
    entries = {
        "scenes": Entry(none, none, _scenes_folder, _build_scenes),
        "jsonl": Entry(
            source | {"name"},
            frozenset({"image_dir", "mask_threshold", "splits", "runner"}),
            _own_folder,
            _build_jsonl,
        ),
    }
    for name in OWN[1:]:
        entries[name] = Entry(
            source | {"name"},
            frozenset({"image_dir", "splits", "runner"}),
            _own_folder,
            functools.partial(_build_masks, name.removeprefix("masks/")),
        )
    for name, conversion in CONVERSIONS.items():
        entries[name] = Entry(
            source,
            frozenset({"splits", "skip_missing", "runner"}),
            functools.partial(_published_folder, conversion),
            functools.partial(_build_published, conversion),
        )
    return entries


DATASETS = _entries()
_UNMATCHED = all_facts().keys() ^ (DATASETS.keys() - set(OWN))
assert not _UNMATCHED, f"these have code or facts, not both: {', '.join(sorted(_UNMATCHED))}"
