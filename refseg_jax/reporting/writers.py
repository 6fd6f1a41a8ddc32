"""What a run tells: `metrics.jsonl`, TensorBoard, and the line that a person sees."""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.reporting.event_file import EventFile

_RESERVED = frozenset({"step", "time", "not_finite"})

#: A terminal line is rewritten at most this often, in seconds.
_TERMINAL_SECONDS = 0.2


class MetricWriter(Protocol):
    """Takes what a run has to tell. Steps count updates done."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Named pictures, u8 `[H, W, 3]` RGB."""
        ...

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Named texts, Markdown."""
        ...

    def truncate_after(self, step: int) -> None:
        """Forgets later steps: on resuming they are done again."""
        ...

    def flush(self) -> None:
        """Makes everything visible to readers."""
        ...

    def close(self) -> None:
        """Flushes; nothing may be written afterwards."""
        ...


def make_writer(workdir: Path) -> MetricWriter:
    """The first process writes; the others have nothing to add."""
    return FileWriter(workdir) if jax.process_index() == 0 else NullWriter()


class NullWriter:
    """Writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Nothing."""

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Nothing."""

    def truncate_after(self, step: int) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class FileWriter:
    """Writes `<workdir>/metrics.jsonl` and event files in `<workdir>/tensorboard`.

    A line of `metrics.jsonl` is a flat JSON object: `step`, `time` (seconds since 1970) and the
    values. JSON has no NaN: such a value is `null`, and `not_finite` says what it was. A line is
    handed over in one piece, so that a killed process loses none and leaves no half; a half that a
    full disk or a power cut has left is removed at the next start.
    """

    def __init__(self, workdir: Path) -> None:
        """Opens both for appending.

        Raises:
            UserError: the folder cannot be written.
        """
        self._path = workdir / "metrics.jsonl"
        with self._explained():
            workdir.mkdir(parents=True, exist_ok=True)
            _drop_half_line(self._path)
            self._lines = self._path.open("ab", buffering=0)
            self._events = EventFile(workdir / "tensorboard")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line, and one point for each name.

        Raises:
            ValueError: a name that the line needs for itself (`step`, `time`, `not_finite`).
            UserError: the disk is full, or the like.
        """
        if reserved := _RESERVED & values.keys():
            raise ValueError(f"{min(reserved)!r} cannot be the name of a metric")
        numbers = {name: float(value) for name, value in values.items()}
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        if odd := {name: str(v) for name, v in numbers.items() if not math.isfinite(v)}:
            line["not_finite"] = odd
        with self._explained():
            self._lines.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._events.scalars(step, numbers)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures to TensorBoard.

        Raises:
            ValueError: not u8 `[H, W, 3]`.
            UserError: the disk is full, or the like.
        """
        for name, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                kind = f"{image.dtype}{list(image.shape)}"
                raise ValueError(f"picture {name!r} is {kind}, not u8[H, W, 3]")
            with self._explained():
                self._events.image(step, name, image)
        self.flush()

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts to TensorBoard.

        Raises:
            UserError: the disk is full, or the like.
        """
        with self._explained():
            for name, text in texts.items():
                self._events.text(step, name, text)
        self.flush()

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, so that steps never go back; TensorBoard is told.

        Raises:
            UserError: the disk is full, or the like.
        """
        with self._explained():
            kept = [line for line in self._path.read_bytes().splitlines() if _step(line) <= step]
            partial = self._path.with_suffix(".partial")
            partial.write_bytes(b"".join(line + b"\n" for line in kept))
            self._lines.close()
            partial.replace(self._path)
            self._lines = self._path.open("ab", buffering=0)
            self._events.restart_at(step + 1)

    def flush(self) -> None:
        """Lines are there at once; this is for the event file."""
        with self._explained():
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        with self._explained():
            self._events.close()
            self._lines.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path.parent}: metrics cannot be written ({error.strerror}): make room "
                "there or choose another --workdir, then give the same command again"
            ) from error


class ProgressLine:
    """Step, share, loss, speed and the time that is left; printed by the first process only.

    On a terminal one line that is rewritten; elsewhere (a log file) a plain line from time to time.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        """`total` steps; seconds between two plain lines; `stream` is stderr unless given."""
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._silence = _TERMINAL_SECONDS if self._terminal else every
        self._silent = jax.process_index() != 0
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf
        self._unprinted = ""

    def update(
        self,
        step: int,
        *,
        loss: float,
        images_per_second: float,
        data_wait_share: float,
        quarantined: int = 0,
    ) -> None:
        """Notes a step, and prints it if it is time.

        Args:
            step: updates done.
            loss: of this step.
            images_per_second: over all processes; 0 while only the first step, which is compiled and
                does not count, is done.
            data_wait_share: share of the time in which training waits for data, in [0, 1].
            quarantined: damaged records so far.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        width = len(str(self._total))
        parts = [
            f"step {step:{width}d}/{self._total} {100 * step / max(self._total, 1):3.0f} %",
            f"loss {loss:.4g}",
        ]
        if images_per_second:
            parts.append(f"{images_per_second:.1f} images/s")
            parts.append(f"waiting for data {100 * data_wait_share:.0f} %")
        else:
            parts.append("compiled")
        parts.append(f"ETA {format_duration(self._seconds_left(step, now))}")
        if quarantined:
            parts.append(f"{quarantined} quarantined")
        self._unprinted = "  ".join(parts)
        if now - self._printed >= self._silence:
            self._print(now)

    def close(self) -> None:
        """Prints the last step, if it has not been, and ends the line."""
        if self._unprinted:
            self._print(time.monotonic())
        if self._terminal and not self._silent:
            self._stream.write("\n")
            self._stream.flush()

    def _seconds_left(self, step: int, now: float) -> float:
        """From the mean over this process's steps but the first (which compiles)."""
        assert self._first is not None
        first, since = self._first
        if step >= self._total:
            return 0.0
        return (self._total - step) * (now - since) / (step - first) if step > first else math.nan

    def _print(self, now: float) -> None:
        if not self._silent:
            if self._terminal:
                # The cursor goes back to the start, so that a line of the log covers this one.
                width = max(shutil.get_terminal_size().columns - 1, 20)
                self._stream.write(f"\x1b[2K{self._unprinted[:width]}\r")
            else:
                self._stream.write(self._unprinted + "\n")
            self._stream.flush()
        self._printed, self._unprinted = now, ""


def format_duration(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`, `2d 03:04:05`; `?` for what is not a duration."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _drop_half_line(path: Path) -> None:
    """Shortens a file to its last whole line."""
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _step(line: bytes) -> float:
    """A line's step; a line that is not ours counts as later than all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
