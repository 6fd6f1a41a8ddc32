"""Finds the images that a mixture must not train on, because an evaluation set holds them.

Datasets share images: a training image of RefCOCO may be a test image of RefCOCOg. Images are the same
if their `Record.image_id` is (bare digits are COCO's ids; other pools have a prefix). So no member of a
mixture trains on an image of any evaluation split of any dataset built in `data_dir`, except for the
sets that it names in `keep_held_out`. An evaluation split is one whose name does not begin with
`train`. RefCOCO unc, RefCOCO+ unc and RefCOCOg umd together exclude 6,549 images, and with RefCOCOg
google's val 10,113, which is the published list of PolyFormer (`data/val_test_files.p` of
amazon-science/polygon-transformer).
"""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.schema import HELD_OUT
from input_pipeline.sources import (
    DatasetError,
    ExpressionTable,
    RecordSource,
    built_datasets,
    has_records,
    keep_beside,
    split_names,
)
from refseg_jax import naming
from refseg_jax.errors import UserError
from refseg_jax.storage import buckets


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """What a member of a mixture leaves out.

    Attributes:
        dataset, split: what the member trains on.
        images: number of images with an expression of the member's granularities, before any is left
            out.
        expressions: number of expressions of these granularities, before any is left out.
        image_ids: sorted ids of the images that are left out.
        expressions_left_out: number of expressions of these images.
        by: evaluation set (`"<dataset>/<split>"`) -> number of the left-out images that it holds.
        kept: evaluation sets that share images with the split, which the member trains on all the same
            because `keep_held_out` names them.
    """

    dataset: str
    split: str
    images: int
    expressions: int
    image_ids: tuple[str, ...] = ()
    expressions_left_out: int = 0
    by: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for the log."""
        text = (
            f"{self.dataset} {self.split}: {len(self.image_ids):,} of {self.images:,} images and "
            f"{self.expressions_left_out:,} of {self.expressions:,} expressions left out"
        )
        sets = ", ".join(f"{name} {count:,}" for name, count in self.by.items())
        kept = f"; keeps images of {', '.join(self.kept)}" if self.kept else ""
        return text + (f" (images of {sets})" if sets else "") + kept

    def records(self, table: ExpressionTable) -> np.ndarray:
        """Which records of the split are left out, bool `[R]`."""
        return np.isin(table.image, _encoded(self.image_ids))

    def keep(self, folder: Path) -> None:
        """Writes it into the dataset's folder if anything is left out; the name has its digest."""
        if self.image_ids:
            text = json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"
            digest = hashlib.sha256(text).hexdigest()[:16]
            path = folder / f"leakage-{self.split}-{digest}.json"
            if not path.exists():
                keep_beside(path, lambda file: file.write(text))


def evaluation_images(data_dir: str) -> dict[str, frozenset[str]]:
    """Image ids of every evaluation split of every dataset in a folder, by `"<dataset>/<split>"`.

    They come from a dataset's `held_out.json`, else from its records. Datasets of other programs in
    the folder have neither and are left out.

    Raises:
        DatasetError: a dataset is damaged, so that its image ids cannot be read.
    """
    return {
        f"{dataset}/{split}": ids
        for dataset, folder in built_datasets(data_dir).items()
        for split, ids in _held_out(data_dir, dataset, folder).items()
    }


def find_leaks(
    table: ExpressionTable,
    sets: Mapping[str, Collection[str]],
    *,
    dataset: str,
    split: str,
    keep: Sequence[str] = (),
) -> Exclusion:
    """Finds the images of a split that evaluation sets hold.

    Args:
        table: the expressions to train on.
        sets: evaluation set -> image ids, from `evaluation_images`.
        dataset, split: names of the table's dataset and split.
        keep: evaluation sets to ignore: `"<dataset>/<split>"`, `"<dataset>"` for all its splits, or a
            pattern with `*`.

    Raises:
        UserError: an entry of `keep` matches no set.
    """
    kept = {name for entry in keep for name in _named(entry, sets)}
    own = {name.decode() for name in table.image[np.unique(table.record)]}
    by = {name: own.intersection(ids) for name, ids in sets.items() if name not in kept}
    out = tuple(sorted(frozenset().union(*by.values())))
    touched = np.isin(table.image, _encoded(out))[table.record]
    return Exclusion(
        dataset=dataset,
        split=split,
        images=len(own),
        expressions=len(table),
        image_ids=out,
        expressions_left_out=int(touched.sum()),
        by={name: len(ids) for name, ids in by.items() if ids},
        kept=tuple(sorted(name for name in kept if own.intersection(sets[name]))),
    )


def check_remains(found: Exclusion) -> None:
    """Raises a `UserError` if all images are left out."""
    if found.image_ids and len(found.image_ids) == found.images:
        raise UserError(
            f"{found.dataset} {found.split}: all {found.images} images are in evaluation sets "
            f"({', '.join(found.by)}); leave the member out, or set its keep_held_out to the sets "
            "that it may train on"
        )


def write_report(path: Path, exclusions: Mapping[str, Exclusion]) -> None:
    """Writes the exclusions of a run, by member, as JSON; complete or not at all. Makes the folder."""
    members = {name: dataclasses.asdict(found) for name, found in exclusions.items()}
    if not buckets.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    buckets.write(path, json.dumps(members, indent=1).encode() + b"\n")


def read_report(path: Path) -> dict[str, Exclusion]:
    """Reads a file of `write_report`, `{}` if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        members: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {
            name: naming.construct(Exclusion, found, what=name) for name, found in members.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if buckets.is_remote(path) and (reason := buckets.trouble(error)):
            raise UserError(f"{path}: {reason}") from error
        raise UserError(
            f"{path}: {error}; it says what the run leaves out, without it the run cannot go on: "
            "restore the file, or begin again in another --workdir"
        ) from None


def _held_out(data_dir: str, dataset: str, folder: Path) -> dict[str, frozenset[str]]:
    path = folder / HELD_OUT
    if not path.exists():
        if not has_records(folder):
            return {}
        splits = [split for split in split_names(folder) if not split.startswith("train")]
        return {split: _image_ids(RecordSource(data_dir, dataset, split)) for split in splits}
    try:
        stored: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        if any(isinstance(ids, str) for ids in stored.values()):
            raise ValueError("image ids are no list")
        return {split: frozenset(ids) for split, ids in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: {error}; build the dataset again") from None


def _image_ids(source: RecordSource) -> frozenset[str]:
    images = ExpressionTable.of(source).image
    damaged = np.flatnonzero(images == b"")
    if len(damaged):
        source[int(damaged[0])]
    return frozenset(name.decode() for name in images)


def _named(entry: str, sets: Mapping[str, Any]) -> list[str]:
    """The evaluation sets that an entry of `keep` matches."""
    found = [n for n in sets if any(fnmatch.fnmatchcase(n, p) for p in (entry, f"{entry}/*"))]
    if not found:
        raise UserError(f"keep_held_out: {naming.unknown('evaluation set', entry, sets)}")
    return found


def _encoded(names: Collection[str]) -> np.ndarray:
    return np.array([name.encode() for name in names], np.bytes_)
