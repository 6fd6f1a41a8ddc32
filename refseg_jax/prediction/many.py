"""Predicts many images: decoded in threads, encoded in batches over all devices, in constant memory.

All batches have one shape; the last one is padded. So what is computed for an image depends neither on
its place in a batch nor on its neighbours. In memory are the images of a few batches, the answers of two
batches on the network's grid and, at full size, a few answers of one image.
"""

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.images.decoding import ImageError
from refseg_jax.prediction.encoding import ImageEncoder, Prepared
from refseg_jax.prediction.engines import Engine, over_local_devices
from refseg_jax.prediction.painting import Painter, Prediction
from refseg_jax.prediction.pictures import PictureLike, unusable
from refseg_jax.prediction.texts import TextEncoder
from refseg_jax.prediction.tiles import TiledPainter, Tiles

#: Images of a batch for each device that is no CPU. A CPU is no faster with more than one.
_IMAGES = 8

#: Threads that decode pictures, at most; more would only wait for the devices.
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class ReadImage:
    """A picture that a thread has decoded and brought to the network's size."""

    pixels: np.ndarray
    notes: tuple[str, ...]
    prepared: Prepared | None


class Logits(NamedTuple):
    """Answers on the network's grid to a part of the expressions, of one image.

    Attributes:
        count: number of expressions; what follows is padding.
        masks: f32 `[1, k, h, w]`.
        present: f32 `[1, k]`, or `None` without a presence head.
    """

    count: int
    masks: np.ndarray
    present: np.ndarray | None


class Answer:
    """The predictions of one image: iterate over them, one for each expression.

    They are painted while they are read, so that of many only a few are in memory. An answer can be read
    once for all, or several times.

    Attributes:
        image: as it was given.
        expressions: those asked.
        pixels: u8 `[H, W, 3]`, RGB, as a person sees it; empty (`[0, 0, 3]`) if it cannot be used.
        notes: what had to be guessed of it.
        error: why the image cannot be used; iterating raises it.
    """

    def __init__(
        self, image: PictureLike, expressions: Sequence[str], read: ReadImage | ImageError
    ) -> None:
        self.image, self.expressions = image, expressions
        self.error = read if isinstance(read, ImageError) else None
        self.pixels = np.zeros((0, 0, 3), np.uint8)
        self.notes: tuple[str, ...] = ()
        if not isinstance(read, ImageError):
            self.pixels, self.notes = read.pixels, read.notes
        self._paint: Any = None

    def __iter__(self) -> Iterator[Prediction]:
        """The predictions, in the order of the expressions.

        Raises:
            ImageError: the image cannot be used.
        """
        if self.error is not None:
            raise self.error
        yield from self._paint()

    def __len__(self) -> int:
        """The number of expressions."""
        return len(self.expressions)


class ManyPredictor:
    """Predicts images in batches; `refseg_jax.prediction.predictor.Predictor.predict_many` uses it."""

    def __init__(
        self,
        engine: Engine,
        images: ImageEncoder,
        texts: TextEncoder,
        painter: Painter,
        at_once: int,
        batch_size: int | None,
    ) -> None:
        """Lays the parameters out over this process's devices.

        Raises:
            UserError: `batch_size` is less than 1.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} is less than 1")
        self._single, self._images, self._texts = engine, images, texts
        self._painter, self._at_once = painter, at_once
        self._engine, devices = over_local_devices(engine)
        each = 1 if jax.local_devices()[0].platform == "cpu" else _IMAGES
        wanted = devices * each if batch_size is None else batch_size
        #: Rounded up, so that each device has as many.
        self.batch_size = -(-wanted // devices) * devices

    def __call__(
        self,
        images: Iterable[PictureLike],
        expressions: Sequence[str] | Sequence[Sequence[str]],
        maps: bool,
        tiles: Tiles | None,
    ) -> Iterator[Answer]:
        """See `Predictor.predict_many`."""
        asked = _Asked.of(expressions, self._texts, self._at_once)
        waiting: deque[Answer] = deque()
        for answers, network in self._batches(images, asked, tiles):
            self._start(answers, network, asked, maps, tiles)
            # The devices work on this batch while the one before is painted.
            yield from waiting
            waiting = deque(answers)
        yield from waiting

    def _batches(
        self, images: Iterable[PictureLike], asked: "_Asked", tiles: Tiles | None
    ) -> Iterator[tuple[list[Answer], list[Prepared]]]:
        """Answers without predictions, and the prepared images of those that go to the devices."""
        answers: list[Answer] = []
        networks: list[Prepared] = []
        number = 0
        for number, (image, read) in enumerate(self._read(images, tiles), 1):
            answers.append(Answer(image, asked.expressions(number - 1), read))
            if isinstance(read, ReadImage) and read.prepared is not None:
                networks.append(read.prepared)
            if len(networks) == self.batch_size or len(answers) == 2 * self.batch_size:
                yield answers, networks
                answers, networks = [], []
        asked.check(number)
        if answers:
            yield answers, networks

    def _read(
        self, images: Iterable[PictureLike], tiles: Tiles | None
    ) -> Iterator[tuple[PictureLike, ReadImage | ImageError]]:
        """Reads images in threads, in order, a batch and a few ahead."""
        threads = min(_THREADS, os.cpu_count() or 1)
        coming = iter(images)
        with ThreadPoolExecutor(threads) as pool:
            started: deque[tuple[PictureLike, Future[ReadImage | ImageError]]] = deque()
            try:
                while True:
                    room = self.batch_size + threads - len(started)
                    for image in itertools.islice(coming, room):
                        started.append((image, pool.submit(self._read_one, image, tiles)))
                    if not started:
                        return
                    image, future = started.popleft()
                    yield image, future.result()
            finally:
                for _, future in started:
                    future.cancel()

    def _read_one(self, image: PictureLike, tiles: Tiles | None) -> ReadImage | ImageError:
        try:
            picture = self._images.read(image)
            height, width, _ = picture.pixels.shape
            whole = tiles is None or tiles.fits(height, width)
            prepared = self._images.prepare(picture.pixels) if whole else None
        except ImageError as error:
            return error
        except UserError:
            raise
        except Exception as error:
            return unusable(_name(image), error)
        return ReadImage(picture.pixels, picture.notes, prepared)

    def _start(
        self,
        answers: Sequence[Answer],
        networks: Sequence[Prepared],
        asked: "_Asked",
        maps: bool,
        tiles: Tiles | None,
    ) -> None:
        """Hands a batch to the devices, and tells each answer how to be painted."""
        sound = [answer for answer in answers if answer.error is None]
        whole = [a for a in sound if tiles is None or tiles.fits(*a.pixels.shape[:2])]
        for answer in sound:
            if tiles is not None and not tiles.fits(*answer.pixels.shape[:2]):
                answer._paint = self._tiled(answer, tiles, maps)
        if not whole:
            return
        try:
            parts = self._decoded(networks, [answer.expressions for answer in whole], asked)
        except UserError:
            raise
        except Exception as error:  # The model may raise anything; other batches may be well.
            for answer in whole:
                answer.error = unusable(_name(answer.image), error)
            return
        for row, (answer, one) in enumerate(zip(whole, networks, strict=True)):
            answer._paint = _Painting(self._painter, parts, row, one, maps)

    def _decoded(
        self, networks: Sequence[Prepared], expressions: Sequence[Sequence[str]], asked: "_Asked"
    ) -> list["_Part"]:
        images = np.stack([one.network for one in networks])
        images = _padded_rows(images, self.batch_size)
        grouped = self._engine.group_size is not None
        features = self._engine.encode_image(images[:, None] if grouped else images)
        found = []
        for counts, words in asked.parts(expressions, self.batch_size):
            logits = self._engine.decode(features, words)
            found.append(_Part(counts, logits, grouped))
        return found

    def _tiled(self, answer: Answer, tiles: Tiles, maps: bool) -> Any:
        def paint() -> Iterator[Prediction]:
            painter = TiledPainter(self._single, self._images, self._painter)
            ids = self._texts.ids(answer.expressions)
            for count, words in self._texts.parts(*ids, self._at_once):
                yield from painter(answer.pixels, count, words, tiles, maps)

        return paint


class _Part:
    """Logits of a batch for a part of its expressions, on the devices until the first is read."""

    def __init__(self, counts: Sequence[int], logits: Mapping[str, Any], grouped: bool) -> None:
        self._counts, self._grouped = counts, grouped
        self._logits: Mapping[str, Any] = logits

    def of(self, row: int) -> Logits:
        """The logits of one image."""
        self._logits = {name: np.asarray(array) for name, array in self._logits.items()}
        masks, present = self._logits["mask_logits"], self._logits.get("present_logits")
        if self._grouped:
            masks, present = masks[:, 0], None if present is None else present[:, 0]
        one = slice(row, row + 1)
        return Logits(self._counts[row], masks[one], None if present is None else present[one])


@dataclasses.dataclass(frozen=True)
class _Painting:
    """Paints the predictions of one image of a batch."""

    painter: Painter
    parts: Sequence[_Part]
    row: int
    prepared: Prepared
    maps: bool

    def __call__(self) -> Iterator[Prediction]:
        for part in self.parts:
            logits = part.of(self.row)
            if logits.count:
                yield from self.painter(
                    logits.masks,
                    logits.present,
                    logits.count,
                    *self.prepared.place,
                    maps=self.maps,
                )


class _Asked:
    """The expressions of all images, the same for all or a list for each."""

    def __init__(
        self, lists: Sequence[Sequence[str]] | None, texts: TextEncoder, at_once: int
    ) -> None:
        self._lists, self._texts, self._at_once = lists, texts, at_once

    @classmethod
    def of(
        cls,
        expressions: Sequence[str] | Sequence[Sequence[str]],
        texts: TextEncoder,
        at_once: int,
    ) -> "_Asked":
        given: Any = expressions
        if isinstance(given, str) or not len(given) or isinstance(given[0], str):
            return _Shared(given, texts, at_once)
        return _Asked(given, texts, at_once)

    def expressions(self, number: int) -> Sequence[str]:
        """Those of an image.

        Raises:
            UserError: there are more images than lists.
        """
        assert self._lists is not None
        if number >= len(self._lists):
            raise UserError(
                f"expressions: {len(self._lists)} lists for more images; give one list for each image"
            )
        return self._lists[number]

    def check(self, images: int) -> None:
        """Checks that there was an image for each list, at the end.

        Raises:
            UserError: there are more lists than images.
        """
        if self._lists is not None and images < len(self._lists):
            raise UserError(
                f"expressions: {len(self._lists)} lists for {images} images; give one list for each"
            )

    def parts(
        self, expressions: Sequence[Sequence[str]], batch: int
    ) -> Iterator[tuple[list[int], Any]]:
        """Numbers of expressions of each image of a batch, and their text features `[batch, k, ...]`.

        Every part has the same k, whatever the lists of this batch, so that no neighbour changes the
        shape.
        """
        assert self._lists is not None
        most = min(self._at_once, max(map(len, self._lists)))
        k = min(1 << (most - 1).bit_length(), self._at_once)
        ids = [self._texts.ids(texts) for texts in expressions]
        for start in range(0, max(len(texts) for texts in expressions), k):
            rows = [_window(one, start, k) for one in ids]
            rows += [rows[-1]] * (batch - len(rows))
            counts = [max(0, min(k, len(texts) - start)) for texts in expressions]
            text, valid = (np.stack(arrays) for arrays in zip(*rows, strict=True))
            yield counts, self._texts.features(text, valid)


class _Shared(_Asked):
    """The same expressions for all images, encoded once."""

    def __init__(self, texts: Sequence[str], encoder: TextEncoder, at_once: int) -> None:
        super().__init__(None, encoder, at_once)
        self._same = texts
        self._parts = list(encoder.parts(*encoder.ids(texts), at_once))
        self._repeated: list[Any] | None = None

    def expressions(self, number: int) -> Sequence[str]:
        """See `_Asked`."""
        return self._same

    def parts(
        self, expressions: Sequence[Sequence[str]], batch: int
    ) -> Iterator[tuple[list[int], Any]]:
        """See `_Asked`."""
        if self._repeated is None:
            self._repeated = [_repeated(features, batch) for _, features in self._parts]
        for (count, _), features in zip(self._parts, self._repeated, strict=True):
            yield [count] * len(expressions), features


def _name(image: PictureLike) -> str:
    return str(image) if isinstance(image, str | Path) else "image"


def _window(
    ids: tuple[np.ndarray, np.ndarray], start: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`k` expressions from `start` on, i32 and bool `[k, L]`; beyond the end, the last one again."""
    wanted = np.minimum(np.arange(start, start + k), len(ids[0]) - 1)
    return ids[0][wanted], ids[1][wanted]


def _padded_rows(images: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the last image up to `rows`."""
    return np.pad(images, ((0, rows - len(images)), *((0, 0),) * (images.ndim - 1)), mode="edge")


def _repeated(features: Any, rows: int) -> Any:
    """Features of one row, for `rows` of them; in the kind of arrays that they are."""
    return jax.tree.map(
        lambda x: (np if isinstance(x, np.ndarray) else jnp).repeat(x, rows, axis=0), features
    )
