"""One thread owns the models; requests that come together are answered in one batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from refseg_jax.errors import UserError
from refseg_jax.prediction.many import Answer
from refseg_jax.prediction.predictor import Predictor

T = TypeVar("T")

#: How long a request waits for others: a fraction of what a model takes, seconds.
_PATIENCE = 0.004
#: Requests of a batch.
_AT_ONCE = 32


class BusyError(UserError):
    """Too many requests wait."""


class Question(NamedTuple, Generic[T]):
    """A picture, what it is asked, and what becomes of the answer.

    Attributes:
        model: its name.
        picture: an encoded picture.
        expressions: at least one, none of them empty.
        maps: whether the answer needs soft maps.
        made: turns the answer into what is returned, in the thread of the models: an answer is painted
            while it is read, so that the full-size masks of all requests are never in memory at once.
    """

    model: str
    picture: bytes
    expressions: tuple[str, ...]
    maps: bool
    made: Callable[[Answer], T]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Questions of one kind share a batch.

        The number of expressions, padded to a power of two, is part of it, so that no neighbour changes
        the shapes by which a question is computed.
        """
        return self.model, self.maps, (len(self.expressions) - 1).bit_length()


class _Job(NamedTuple):
    question: Question[Any] | None
    work: Callable[[], Any] | None
    future: Future[Any]


class Worker:
    """Answers questions in the order in which they came, those of one kind together.

    Attributes:
        predictors: name -> model.
        bound: jobs that may wait.
        most: the largest number that has waited.
        batches: how many batches of questions were answered.
        jobs: how many questions and other jobs have come.
    """

    def __init__(self, predictors: Mapping[str, Predictor], bound: int) -> None:
        """Starts the thread, which ends with `close` or with the process."""
        self.predictors, self.bound = predictors, bound
        self.most = self.batches = self.jobs = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="demo models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait now."""
        return len(self._jobs)

    def ask(self, question: Question[T]) -> Future[T]:
        """Puts a question into the queue.

        Raises:
            BusyError: too many wait already.
        """
        return self._put(_Job(question, None, Future()))

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Puts any other work with a model into the queue, which is done alone; raises as `ask`."""
        return self._put(_Job(None, work, Future()))

    def close(self) -> None:
        """Ends the thread; what waits is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _put(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._closed or len(self._jobs) >= self.bound:
                raise BusyError(f"{len(self._jobs)} requests wait already; try again in a while")
            self._jobs.append(job)
            self.jobs += 1
            self.most = max(self.most, len(self._jobs))
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        while jobs := self._next():
            # Of clients who have left.
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._do(jobs)

    def _next(self) -> list[_Job]:
        """The next job and those that are done with it; none after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                for job in self._jobs:
                    job.future.cancel()
                return []
            first = self._jobs.popleft()
            found, end = [first], time.monotonic() + _PATIENCE
            if first.question is None:
                return found
            while True:
                found += self._taken(first.question.kind, _AT_ONCE - len(found))
                left = end - time.monotonic()
                # Who waits for another kind should not wait for longer.
                if self._jobs or self._closed or len(found) == _AT_ONCE or left <= 0:
                    return found
                self._changed.wait(left)

    def _taken(self, kind: tuple[Any, ...], most: int) -> list[_Job]:
        """Takes questions of a kind out of the queue."""
        found: list[_Job] = []
        kept: deque[_Job] = deque()
        for job in self._jobs:
            fits = job.question is not None and job.question.kind == kind and len(found) < most
            (found if fits else kept).append(job)
        self._jobs = kept
        return found

    def _do(self, jobs: list[_Job]) -> None:
        if jobs[0].work is not None:
            _settle(jobs[0].future, jobs[0].work)
            return
        self.batches += 1
        left = deque(jobs)
        try:
            for answer in self._answers([job.question for job in jobs if job.question]):
                job = left.popleft()
                assert job.question is not None
                made = job.question.made
                _settle(job.future, lambda made=made, answer=answer: made(answer))
        except Exception as error:
            if len(jobs) == 1:
                for job in left:
                    job.future.set_exception(error)
                return
            # What one of them does should not be the end of all.
            for job in left:
                self._do([job])

    def _answers(self, questions: list[Question[Any]]) -> Any:
        predictor = self.predictors[questions[0].model]
        return predictor.predict_many(
            [question.picture for question in questions],
            [question.expressions for question in questions],
            maps=questions[0].maps,
        )


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
