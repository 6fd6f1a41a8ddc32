"""Writes a run's metrics to `metrics.jsonl` and TensorBoard, and its progress to the screen."""

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
    """Takes the metrics, pictures and texts of a run. A step is the number of updates done."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes named numbers."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes named pictures, u8 `[H, W, 3]` RGB."""
        ...

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts in Markdown."""
        ...

    def truncate_after(self, step: int) -> None:
        """Drops all later steps, which a resumed run does again."""
        ...

    def flush(self) -> None:
        """Makes everything visible to readers."""
        ...

    def close(self) -> None:
        """Flushes; nothing may be written afterwards."""
        ...


def make_writer(workdir: Path) -> MetricWriter:
    """A `FileWriter` on the first process, and a `NullWriter` on the others."""
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

    A line of `metrics.jsonl` is a JSON object with `step`, `time` (seconds since 1970) and the values.
    JSON has neither NaN nor infinity: such a value is `null`, and `not_finite` maps its name to its
    text. Each line is one unbuffered write, so that a killed process neither loses a line nor leaves
    a partial one. A partial line from a full disk or a power cut is removed at the next start.
    """

    def __init__(self, workdir: Path) -> None:
        """Opens `metrics.jsonl` for appending, and a new event file.

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
        """Appends one line to `metrics.jsonl`, and one point for each name to the event file.

        Raises:
            ValueError: a metric is called `step`, `time` or `not_finite`, which are keys of the line.
            UserError: the files cannot be written (full disk).
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
            ValueError: a picture is not u8 `[H, W, 3]`.
            UserError: the file cannot be written (full disk).
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
            UserError: the file cannot be written (full disk).
        """
        with self._explained():
            for name, text in texts.items():
                self._events.text(step, name, text)
        self.flush()

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, and tells TensorBoard to drop them too.

        Raises:
            UserError: the files cannot be written (full disk).
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
        """Flushes the event file; lines of `metrics.jsonl` are not buffered."""
        with self._explained():
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
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
    """Prints step, share, loss, speed and remaining time, on the first process only.

    On a terminal it rewrites one line; elsewhere (a log file) it prints a plain line now and then.
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        """Prints nothing yet.

        Args:
            total: steps of the whole training.
            stream: where to print; `None` is stderr.
            every: seconds between two plain lines.
        """
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
        peak_share: float | None = None,
        quarantined: int = 0,
    ) -> None:
        """Takes a step, and prints it if the last line is old enough.

        Args:
            step: number of updates done.
            loss: loss of this step.
            images_per_second: over all processes; 0 after the first step, which is compilation and
                does not count.
            data_wait_share: share of training time spent waiting for data, in [0, 1].
            peak_share: share of the devices' peak, in [0, 1]; `None` if that is not known.
            quarantined: number of damaged records so far.
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
            if peak_share is not None:
                parts.append(f"{100 * peak_share:.1f} % of peak")
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
        """Prints the last step if that is not done yet, and ends the line."""
        if self._unprinted:
            self._print(time.monotonic())
        if self._terminal and not self._silent:
            self._stream.write("\n")
            self._stream.flush()

    def _seconds_left(self, step: int, now: float) -> float:
        """Remaining seconds, from the mean over this process's steps except the first (compilation)."""
        assert self._first is not None
        first, since = self._first
        if step >= self._total:
            return 0.0
        return (self._total - step) * (now - since) / (step - first) if step > first else math.nan

    def _print(self, now: float) -> None:
        if not self._silent:
            if self._terminal:
                # The cursor returns to the start, so that a line of the log overwrites this one.
                width = max(shutil.get_terminal_size().columns - 1, 20)
                self._stream.write(f"\x1b[2K{self._unprinted[:width]}\r")
            else:
                self._stream.write(self._unprinted + "\n")
            self._stream.flush()
        self._printed, self._unprinted = now, ""


def format_duration(seconds: float) -> str:
    """Seconds as `0:07`, `12:34`, `1:02:03` or `2d 03:04:05`; `?` if negative or not finite."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _drop_half_line(path: Path) -> None:
    """Truncates a file after its last complete line."""
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _step(line: bytes) -> float:
    """The step of a line; infinity for a line that `FileWriter` did not write, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
