"""What a core delivers, in figures and as text."""

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from refseg_jax.errors import UserError
from tools.feed.timing import STAGES, TimedRows


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one core needs for the training rows of a split.

    Attributes:
        name: the split, and the name of the member of a mixture if there is one.
        shape: (images, pairs) of a row; both are places, of which padding may fill some.
        how: way of resizing and side of the network's square.
        rows: rows that were made.
        pairs: pairs in them, without padding.
        stages: stage -> seconds of the core; all rows together.
        waited: seconds that passed beside those of the core.
        native: mean number of pixels, and mean number of bytes, of an image that was read.
        failed: rows that could not be made, and the reason of the first.
    """

    name: str
    shape: tuple[int, int]
    how: str
    rows: int
    pairs: int
    stages: Mapping[str, float]
    waited: float
    native: tuple[float, float]
    failed: tuple[int, str]

    @property
    def seconds(self) -> float:
        """Seconds of the core."""
        return sum(self.stages.values())

    @property
    def images(self) -> int:
        """Images that a device takes in these rows: all places, as `tools.compile` counts them."""
        return self.rows * self.shape[0]


def measure(rows: TimedRows, batch_size: int, seed: int, seconds: float) -> Figures:
    """Makes whole batches of the training pipeline on one core, until it has worked long enough.

    Args:
        rows: the rows.
        batch_size: rows of a batch.
        seed: seed of their order, as in training.
        seconds: seconds of the core after which no batch begins.

    Raises:
        UserError: there are no rows, or none of them can be made.
    """
    config, watch = rows.config, rows.watch
    dataset = rows.dataset(batch_size=batch_size, seed=seed)
    threads = cv2.getNumThreads()
    # OpenCV's own threads would work beside the one that is timed.
    cv2.setNumThreads(1)
    try:
        # Opens the files and the tokenizer.
        rows.make(0, np.random.default_rng(seed))
        watch.restart()
        began, metas, pairs, count = time.perf_counter(), [], 0, 0
        while not count or watch.total < seconds:
            host: Any = dataset[count]
            watch.stop()
            count += 1
            pairs += int(host.batch.valid.sum())
            metas += host.meta
        passed = time.perf_counter() - began
    finally:
        cv2.setNumThreads(threads)
    failed = [meta.error for meta in metas if meta.error]
    if len(failed) == len(metas):
        raise UserError(f"{config.dataset} {config.split}: no row can be made: {failed[0]}")
    read = max(watch.images, 1)
    return Figures(
        name=" ".join(filter(None, (rows.name, config.dataset, config.split))),
        shape=(config.images, config.pairs),
        how=f"{config.resize} to {config.image_size}",
        rows=len(metas),
        pairs=pairs,
        stages={stage: watch.seconds[stage] for stage in STAGES if watch.seconds[stage]},
        waited=max(0.0, passed - watch.total),
        native=(watch.pixels / read, watch.stored / read),
        failed=(len(failed), failed[0] if failed else ""),
    )


def table(one: Figures) -> str:
    """The figures of one split as lines."""
    images, pairs = one.shape
    pixels, stored = one.native
    lines = [
        f"{one.name}: {one.rows} rows of {images} x {pairs} (images x expressions), {one.how}",
        f"pictures of {pixels / 1e6:.3f} megapixels and {stored / 1e3:.0f} kB on average",
        f"{'':<7}{'ms an image':>12}{'share':>7}",
    ]
    for stage, seconds in {**one.stages, "total": one.seconds}.items():
        cost = f"{1e3 * seconds / one.images:>12.3f}{100 * seconds / one.seconds:>5.0f} %"
        lines.append(f"{stage:<7}{cost}  {STAGES.get(stage, '')}".rstrip())
    lines.append(
        f"one core: {one.images / one.seconds:.1f} images/s, {one.pairs / one.seconds:.1f} pairs/s"
    )
    if one.waited > 0.2 * one.seconds:
        lines.append(
            f"the clock ran {1 + one.waited / one.seconds:.1f} times as long as the core worked: it "
            "waited for the disk, or other programs had it"
        )
    number, reason = one.failed
    if number:
        lines.append(f"{number} rows could not be made, e.g. {reason}")
    return "\n".join(lines)


def rate_of(figures: Sequence[Figures], batches: Sequence[float]) -> float:
    """Images/s of one core over all members of a mixture.

    Args:
        figures: figures of the members.
        batches: for each, the number of rows of its batches times its share of the batches.
    """
    images = sum(rows * one.shape[0] for one, rows in zip(figures, batches, strict=True))
    seconds = sum(rows * one.seconds / one.rows for one, rows in zip(figures, batches, strict=True))
    return images / seconds


def own_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def verdict(rate: float, wanted: float, cores: int) -> str:
    """The line on whether a machine can feed its devices.

    Args:
        rate: images/s of one core.
        wanted: images/s that the devices of the machine take.
        cores: cores of the machine.
    """
    needed = wanted / rate
    told = f"--images_per_second={wanted:g} takes {needed:.1f} cores, this machine has {cores}: "
    if needed <= cores:
        return told + "they suffice if nothing else runs on them"
    return told + f"{math.ceil(needed - cores)} are short"
