"""Measures how fast a run trains, apart from evaluation, saving and compilation."""

import contextlib
import time
from collections.abc import Iterator

import jax

from refseg_jax.training.goodput import Ledger


class Clock:
    """Counts images and arithmetic against the time spent on training alone.

    Spans under `paused` (evaluation, saving, compilation) do not count for the rates. Waiting for
    data does, and is also reported by itself.
    """

    def __init__(
        self, earlier: float = 0.0, *, ledger: Ledger | None = None, peak: float = 0.0
    ) -> None:
        """Starts the clock.

        Args:
            earlier: training time in seconds of the run's earlier calls.
            ledger: where all spans are booked.
            peak: arithmetic that all devices together can do, in FLOP/s; 0 if it is not known.
        """
        self._created = time.perf_counter() - earlier
        self._ledger = Ledger() if ledger is None else ledger
        self._peak = peak
        self.start_rates()

    def start_rates(self) -> None:
        """Resets the rates: images and seconds count from here on."""
        self._start = time.perf_counter()
        self._paused = self._waited = 0.0
        self._images = 0
        self._flops = 0.0

    def count(self, images: int, flops: float = 0.0) -> None:
        """Adds a finished step.

        Args:
            images: images of this process; each other process has as many.
            flops: arithmetic of all devices, in FLOP.
        """
        self._images += images * jax.process_count()
        self._flops += flops

    @contextlib.contextmanager
    def paused(self, kind: str) -> Iterator[None]:
        """The block is not training, but of a kind of `refseg_jax.training.goodput.KINDS`."""
        start = time.perf_counter()
        with self._ledger.spending(kind):
            yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        start = time.perf_counter()
        with self._ledger.spending("data"):
            yield
        self._waited += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """`images_per_second` over all processes, and `data_wait_share` in [0, 1].

        Where the devices' peak is known, also `peak_share`: the share of it that was reached.
        """
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        rates = {
            "images_per_second": self._images / seconds,
            "data_wait_share": self._waited / seconds,
        }
        if self._peak:
            rates["peak_share"] = self._flops / seconds / self._peak
        return rates

    def elapsed(self) -> float:
        """Seconds since the clock was made, everything included, plus those of earlier calls."""
        return time.perf_counter() - self._created

    def summary(self) -> dict[str, float]:
        """The rates, and `elapsed` as `train_seconds`."""
        return {"train_seconds": self.elapsed(), **self.rates()}
