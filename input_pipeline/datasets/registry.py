"""The datasets that `tools.build_dataset` can build, by name.

A name is the dataset's folder under `data_dir` and what `config.data.dataset` takes (for `jsonl` it
is the one that its owner gives). Builders are
imported when they are used: TFDS is slow to import.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from input_pipeline.datasets.refcoco.counts import PUBLISHED


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
    """

    data_dir: Path
    source_dir: Path | None = None
    name: str = ""
    splits: tuple[str, ...] = ()
    num_workers: int = 1
    skip_missing: bool = False


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


def _refer_folder(name: str, config: str, request: Request) -> Path:
    from input_pipeline.datasets.refcoco.builder import BUILDERS

    return request.data_dir / name / config / str(BUILDERS[name].VERSION)


def _build_refer(name: str, config: str, request: Request) -> None:
    from input_pipeline.datasets.refcoco.builder import BUILDERS

    assert request.source_dir is not None
    builder = BUILDERS[name](
        data_dir=request.data_dir,
        config=config,
        source_dir=request.source_dir,
        splits=request.splits,
        num_workers=request.num_workers,
        skip_missing=request.skip_missing,
    )
    builder.download_and_prepare()


def _scenes_folder(request: Request) -> Path:
    from input_pipeline.datasets.scenes.scenes import Scenes

    return Path(str(Scenes(data_dir=request.data_dir).data_dir))


def _build_scenes(request: Request) -> None:
    from input_pipeline.datasets.scenes.scenes import build

    build(request.data_dir, num_workers=request.num_workers)


def _jsonl_folder(request: Request) -> Path:
    from input_pipeline.datasets.building import own_folder

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
    )


def _entries() -> dict[str, Entry]:
    none, source = frozenset[str](), frozenset({"source_dir"})
    entries = {
        "scenes": Entry(none, none, _scenes_folder, _build_scenes),
        "jsonl": Entry(source | {"name"}, frozenset({"splits"}), _jsonl_folder, _build_jsonl),
    }
    for name, by in PUBLISHED:
        for config in (by, f"{by}_raw"):
            entries[f"{name}/{config}"] = Entry(
                source,
                frozenset({"splits", "skip_missing"}),
                functools.partial(_refer_folder, name, config),
                functools.partial(_build_refer, name, config),
            )
    return entries


DATASETS = _entries()
