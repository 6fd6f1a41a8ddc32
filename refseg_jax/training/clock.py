"""Measures how fast a run trains, apart from evaluation, saving and compilation."""

import contextlib
import time
from collections.abc import Iterator

import jax


class Clock:
    """Counts images against the time spent on training alone.

    Spans under `paused` (evaluation, saving, compilation) do not count for the rates. Waiting for
    data does, and is also reported by itself.
    """

    def __init__(self, earlier: float = 0.0) -> None:
        """Starts the clock; `earlier` is the training time in seconds of the run's earlier calls."""
        self._created = time.perf_counter() - earlier
        self.start_rates()

    def start_rates(self) -> None:
        """Resets the rates: images and seconds count from here on."""
        self._start = time.perf_counter()
        self._paused = self._waited = 0.0
        self._images = 0

    def count(self, images: int) -> None:
        """Adds a finished step: `images` of this process, and as many of each other process."""
        self._images += images * jax.process_count()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The block is not training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """`images_per_second` over all processes, and `data_wait_share` in [0, 1]."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        return {
            "images_per_second": self._images / seconds,
            "data_wait_share": self._waited / seconds,
        }

    def elapsed(self) -> float:
        """Seconds since the clock was made, everything included, plus those of earlier calls."""
        return time.perf_counter() - self._created

    def summary(self) -> dict[str, float]:
        """The rates, and `elapsed` as `train_seconds`."""
        return {"train_seconds": self.elapsed(), **self.rates()}
