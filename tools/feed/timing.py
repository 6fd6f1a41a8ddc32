"""Times the stages of the training pipeline, without a change in what it makes."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np

from input_pipeline import transforms
from input_pipeline.making import MakeRow
from input_pipeline.pipeline import TrainRows
from input_pipeline.schema import Expression
from input_pipeline.transforms import Example, Frame, Transform
from refseg_jax.batch import Batch, HostBatch
from refseg_jax.text.tokenizers import Tokenizer

#: Stages in the order of the table -> what they do.
STAGES = {
    "read": "records out of ArrayRecord, and which of them a row has",
    "JPEG": "pictures to pixels",
    "flip": "mirrored pictures and words",
    "warp": "pictures to the network's size",
    "hide": "hidden patches",
    "masks": "RLE to cells of the network's masks",
    "words": "choice of expressions, prompts, tokens",
    "row": "arrays of a row, and what is left",
    "batch": "rows stacked, the order of the rows, grain's own work",
}
_OF_STEP: dict[type, str] = {
    transforms.Decode: "JPEG",
    transforms.HorizontalFlip: "flip",
    transforms.ResizeImage: "warp",
    transforms.HideAndSeek: "hide",
    transforms.SampleExpressions: "words",
    transforms.PadExpressions: "words",
    transforms.PromptParts: "words",
}


class Stopwatch:
    """Seconds of each stage. A stage inside another one counts for itself alone.

    Attributes:
        seconds: stage -> seconds.
        images, pixels, stored: number of the images that were read, of their pixels and of their bytes.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """Begins at once, with the stage "batch".

        Args:
            clock: tells the seconds. That of a thread stands still while other programs have the core.
        """
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forgets all, and begins again."""
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.images = self.pixels = self.stored = 0
        self._open = ["batch"]
        self._since = self._clock()

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def stage(self, name: str) -> "_Stage":
        """A context in which seconds count for a stage."""
        return _Stage(self, name)

    def stop(self) -> None:
        """Counts the seconds up to now."""
        self.change(self._open[-1])

    def change(self, stage: str) -> None:
        """Counts the seconds up to now for `stage`."""
        now = self._clock()
        self.seconds[stage] += now - self._since
        self._since = now

    def enter(self, stage: str) -> None:
        """A stage begins."""
        self.change(self._open[-1])
        self._open.append(stage)

    def leave(self) -> None:
        """The newest stage ends."""
        self.change(self._open.pop())


class _Stage:
    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._watch.enter(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.leave()


@dataclasses.dataclass(frozen=True)
class _TimedStep:
    """A transform, timed."""

    step: Transform
    watch: Stopwatch

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        with self.watch.stage(_OF_STEP.get(type(self.step), "row")):
            return self.step(example, rng)


@dataclasses.dataclass(frozen=True)
class _TimedRow(MakeRow):
    """Makes rows as its base does, timed."""

    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    def __call__(self, row: int, rng: np.random.Generator) -> HostBatch:
        with self.watch.stage("row"):
            return super().__call__(row, rng)

    def read(self, key: str, row: int, rng: np.random.Generator, left_out: list[str]) -> Example:
        with self.watch.stage("read"):
            example = super().read(key, row, rng, left_out)
        for frame in example.frames:
            self.watch.images += 1
            self.watch.pixels += frame.record.height * frame.record.width
            self.watch.stored += len(frame.record.image)
        return example

    def pack_words(
        self, batch: Batch, example: Example, tokenizer: Tokenizer, left_out: list[str]
    ) -> Example:
        with self.watch.stage("words"):
            return super().pack_words(batch, example, tokenizer, left_out)

    def pack_mask(
        self, batch: Batch, place: tuple[int, int, int], frame: Frame, expression: Expression
    ) -> None:
        with self.watch.stage("masks"):
            super().pack_mask(batch, place, frame, expression)


@dataclasses.dataclass(frozen=True)
class TimedRows(TrainRows):
    """Rows to train on whose making is timed."""

    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    @classmethod
    def of(cls, rows: TrainRows) -> "TimedRows":
        """Times these rows."""
        return cls(rows.config, rows.source, rows.table, rows.name)

    @functools.cached_property
    def make(self) -> MakeRow:
        """See `TrainRows.make`."""
        made = super().make
        fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        steps = tuple(_TimedStep(step, self.watch) for step in made.steps)
        return _TimedRow(**{**fields, "steps": steps}, watch=self.watch)
