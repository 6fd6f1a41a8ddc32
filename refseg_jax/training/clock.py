"""Time of training, and of what is not training."""

import contextlib
import time
from collections.abc import Iterator

import jax


class Clock:
    """Counts images against the time of training alone.

    Paused spans (evaluation, saving) and the first step (compilation) do not count for the rates;
    waiting for data does, and is kept apart as well.
    """

    def __init__(self, earlier: float = 0.0) -> None:
        """`earlier`: seconds of the calls that this one goes on from."""
        self._created = time.perf_counter() - earlier
        self.start_rates()

    def start_rates(self) -> None:
        """Counts from here on."""
        self._start = time.perf_counter()
        self._paused = self._waited = 0.0
        self._images = 0

    def count(self, images: int) -> None:
        """Adds a step that is done: `images` on this process, as many on the others."""
        self._images += images * jax.process_count()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A span that is not training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A span in which training waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """`images_per_second`, and `data_wait_share` in [0, 1]."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        return {
            "images_per_second": self._images / seconds,
            "data_wait_share": self._waited / seconds,
        }

    def elapsed(self) -> float:
        """Seconds since the clock was made, everything included, and those of earlier calls."""
        return time.perf_counter() - self._created

    def summary(self) -> dict[str, float]:
        """The rates, and `elapsed` as `train_seconds`."""
        return {"train_seconds": self.elapsed(), **self.rates()}
