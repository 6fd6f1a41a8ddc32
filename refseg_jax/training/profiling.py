"""A trace of some training steps, for xprof."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import logging

from refseg_jax.errors import UserError

#: Name of a step in the trace; its number stands beside it.
STEP = "train"


def check_steps(steps: tuple[int, ...], total: int | None = None) -> None:
    """Checks `config.loop.profile_steps`.

    Args:
        steps: the first and the last step to trace, counted from 1; empty for none.
        total: steps of the whole training, if that is known.

    Raises:
        UserError: one line that names the field.
    """
    if not steps:
        return
    numbers = len(steps) == 2 and all(type(step) is int for step in steps)
    if not numbers or not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"config.loop.profile_steps={steps}: give the first and the last step to trace, counted "
            "from 1, e.g. (10, 15), or () for none"
        )
    if total is not None and steps[1] > total:
        raise UserError(
            f"config.loop.profile_steps={steps}: the training ends with step {total}; give earlier "
            "steps, or () for none"
        )


class Profile:
    """A context that traces the steps from one to another, both included.

    Steps that are done already are left out. Of several processes the first one alone traces itself
    and its devices. A step that compiles is traced with its compilation.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        """Prepares to trace.

        Args:
            folder: where the trace goes, in `plugins/profile/<time>`.
            steps: see `check_steps`.
        """
        self._folder = folder
        self._first, self._last = steps if jax.process_index() == 0 and steps else (1, 0)
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        # A run that ends early leaves the steps that it did.
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int, settle: Callable[[], None]) -> Iterator[None]:
        """The block waits for a batch and dispatches the step of this number.

        Args:
            number: of the step, counted from 1.
            settle: waits until the devices have done all steps so far; the trace begins and ends there.
        """
        if not self._first <= number <= self._last:
            yield
            return
        if not self._tracing:
            settle()
            self._start()
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            yield
        if number == self._last:
            settle()
            self._stop()

    def _start(self) -> None:
        try:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        except RuntimeError as error:
            # Another trace of this process, e.g. one that a person asked for through a port.
            self._last = 0
            logging.warning("config.loop.profile_steps: nothing is traced (%s)", error)

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            logging.info("trace: %s (xprof --logdir=%s)", self._folder, self._folder)
        except (OSError, RuntimeError) as error:
            logging.warning("%s: the trace could not be written (%s)", self._folder, error)
