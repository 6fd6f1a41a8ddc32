"""Answers the questions of the page: encodes each picture once, and asks only what is new."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from refseg_jax.cli.demo.answers import COLOURS, Asked, Times, digest_of, drawing
from refseg_jax.cli.demo.batching import Worker
from refseg_jax.cli.demo.limits import Limits
from refseg_jax.cli.demo.models import Model
from refseg_jax.cli.demo.sessions import Sessions
from refseg_jax.errors import UserError
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor

T = TypeVar("T")


class Upload(NamedTuple):
    """A file that a browser has sent: its bytes, and what the browser calls it."""

    name: str
    data: bytes


class Member(NamedTuple):
    """A picture of a group and its answer.

    Attributes:
        name: of the picture.
        drawn: u8 `[h, w, 3]`, the picture with its region.
        found: whether the region has any pixel.
        score: as in `Prediction`.
    """

    name: str
    drawn: np.ndarray
    found: bool
    score: float


class Desk:
    """Answers questions; many threads may ask at once.

    Attributes:
        sessions: what is kept for the next question.
    """

    def __init__(self, models: Mapping[str, Model], worker: Worker, limits: Limits) -> None:
        self._models, self._worker, self._limits = models, worker, limits
        self.sessions = Sessions(limits.cached_megabytes * 2**20)

    def ask(
        self, token: str | None, model: str, picture: Upload, texts: Sequence[str]
    ) -> tuple[str, Asked, Times]:
        """Answers expressions of a picture.

        Args:
            token: of the user, `None` for a new one.
            model: its name.
            picture: the picture.
            texts: at most as many expressions as there are colours.

        Returns:
            The user's token, all that was found, and how long it took.

        Raises:
            UserError: a limit, a picture that cannot be used, or too many requests.
        """
        self._limits.check_picture(picture.data, picture.name)
        self._limits.check_expressions(texts, len(COLOURS))
        predictor, digest = self._predictor(model), digest_of(picture.data)
        known = self.sessions.get(token)
        if known is not None and (known.model, known.digest) != (model, digest):
            known = None

        def work() -> tuple[Asked, Times]:
            began = time.perf_counter()
            if known is None:
                pixels = predictor.read(picture.data).pixels
                encoded = predictor.encode(pixels)
                # JAX returns before it is done.
                jax.block_until_ready(encoded.features)
            else:
                pixels, encoded = known.pixels, known.encoded
            middle = time.perf_counter()
            found = {} if known is None else {t: known.found[t] for t in texts if t in known.found}
            new = [text for text in texts if text not in found]
            if new:
                answers = predictor.predict_words(encoded, predictor.words(new), maps=True)
                found |= zip(new, answers, strict=True)
            end = time.perf_counter()
            # In the order of the question.
            found = {text: found[text] for text in texts}
            asked = Asked(model, picture.name, digest, pixels, encoded, found)
            first = middle - began if known is None else None
            return asked, Times(first, end - middle, len(new))

        asked, times = self._done(work)
        return self.sessions.keep(token, asked), asked, times

    def ask_group(self, model: str, pictures: Sequence[Upload], text: str) -> list[Member]:
        """Answers which pictures of a group show what an expression means.

        Returns:
            The pictures, those that show it first, the highest score first.

        Raises:
            UserError: as `ask`; or there are too many pictures, or none.
        """
        if not 0 < len(pictures) <= self._limits.pictures:
            raise UserError(
                f"pictures: {len(pictures)} are given; give at least 1 and at most "
                f"{self._limits.pictures}"
            )
        for picture in pictures:
            self._limits.check_picture(picture.data, picture.name)
        self._limits.check_expressions([text])
        predictor = self._predictor(model)
        names = _told_apart([picture.name for picture in pictures])

        def work() -> list[Member]:
            images = [picture.data for picture in pictures]
            answers = predictor.predict_group(images, [text], names=names)
            return [
                _member(name, predictor.read(image).pixels, answer)
                for name, image, (answer,) in zip(names, images, answers, strict=True)
            ]

        members = self._done(work)
        return sorted(members, key=lambda one: (not one.found, -one.score, one.name))

    def _predictor(self, model: str) -> Predictor:
        if model not in self._models:
            raise UserError("there is no such model; load the page anew")
        return self._models[model].predictor

    def _done(self, work: Callable[[], T]) -> T:
        try:
            return self._worker.call(work).result()
        except CancelledError:
            raise UserError("the server ends; ask again later") from None


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names with a number where one comes again."""
    told: list[str] = []
    for name in names:
        again, number = name, 1
        while again in told:
            number += 1
            again = f"{name} ({number})"
        told.append(again)
    return told


def _member(name: str, pixels: np.ndarray, one: Prediction) -> Member:
    drawn = drawing(pixels, [one])
    return Member(name, drawn, bool(one.mask.any()), one.score)
