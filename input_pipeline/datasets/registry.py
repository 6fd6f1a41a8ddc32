"""The datasets that `tools.build_dataset` can build, by name.

A name is the dataset's folder under `data_dir` and what `config.data.dataset` takes. Builders are
imported when they are used: TFDS is slow to import.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from input_pipeline.datasets.refcoco.counts import PUBLISHED
from refseg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person asks to be built.

    Attributes:
        data_dir: where datasets lie.
        source_dir: the downloaded files; `None` for a dataset that needs none.
        splits: those to build; empty for all.
        num_workers: processes.
        skip_missing: build what is there instead of failing on what is not.
    """

    data_dir: Path
    source_dir: Path | None = None
    splits: tuple[str, ...] = ()
    num_workers: int = 1
    skip_missing: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to build a dataset.

    Attributes:
        needs_source: it is made of downloaded files; `splits` and `skip_missing` apply to it.
        folder: where it lies once it is built, by `data_dir`.
        build: writes it; raises `UserError`, and leaves nothing behind, where it cannot.
    """

    needs_source: bool
    folder: Callable[[Path], Path]
    build: Callable[[Request], None]


def _refer_folder(name: str, config: str, data_dir: Path) -> Path:
    from input_pipeline.datasets.refcoco.builder import BUILDERS

    return data_dir / name / config / str(BUILDERS[name].VERSION)


def _build_refer(name: str, config: str, request: Request) -> None:
    from input_pipeline.datasets.refcoco.builder import BUILDERS

    if request.source_dir is None:
        raise UserError(f"{name}: no --source_dir; give the folder that holds {name}'s files")
    builder = BUILDERS[name](
        data_dir=request.data_dir,
        config=config,
        source_dir=request.source_dir,
        splits=request.splits,
        num_workers=request.num_workers,
        skip_missing=request.skip_missing,
    )
    builder.download_and_prepare()


def _scenes_folder(data_dir: Path) -> Path:
    from input_pipeline.datasets.scenes.scenes import Scenes

    return Path(str(Scenes(data_dir=data_dir).data_dir))


def _build_scenes(request: Request) -> None:
    from input_pipeline.datasets.scenes.scenes import build

    build(request.data_dir, num_workers=request.num_workers)


def _entries() -> dict[str, Entry]:
    entries = {"scenes": Entry(False, _scenes_folder, _build_scenes)}
    for name, by in PUBLISHED:
        for config in (by, f"{by}_raw"):
            entries[f"{name}/{config}"] = Entry(
                True,
                functools.partial(_refer_folder, name, config),
                functools.partial(_build_refer, name, config),
            )
    return entries


DATASETS = _entries()
