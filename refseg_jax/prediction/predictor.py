"""Predicts masks for images and expressions, with nothing but a checkpoint or an export."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refseg_jax.checkpoints.folder import another_version
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds, of_config
from refseg_jax.images.decoding import MAX_PIXELS, Decoded
from refseg_jax.images.groups import group_rows
from refseg_jax.images.resize import check_resample
from refseg_jax.prediction.encoding import EncodedImages, ImageEncoder
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.explanations import Explanations
from refseg_jax.prediction.many import Answer, ManyPredictor
from refseg_jax.prediction.painting import Painter, Prediction
from refseg_jax.prediction.pictures import PictureLike, names_of
from refseg_jax.prediction.reader import open_model
from refseg_jax.prediction.texts import TextEncoder, Words
from refseg_jax.prediction.tiles import TiledPainter, Tiles
from refseg_jax.storage.hub import model_folder

#: Default number of expressions decoded at once: for an image of 4000 x 3000 pixels, their logits take
#: 400 MB.
EXPRESSIONS_AT_ONCE = 8


def decoded_at_once(images: int, pairs: int = EXPRESSIONS_AT_ONCE) -> int:
    """How many expressions are decoded at once for a row of images: at least one.

    Args:
        images: N, images of the row.
        pairs: `expressions_at_once` of the predictor, the most pairs of image and expression.
    """
    return max(1, pairs // images)


class Predictor(Explanations):
    """A model with its preprocessing, tokenizer, thresholds and way of resampling masks."""

    def __init__(
        self,
        model: Mapping[str, Any] | Engine,
        config: Mapping[str, Any],
        *,
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
        thresholds: Thresholds | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Sets up preprocessing, tokenizer, model, thresholds and resampling.

        Args:
            model: parameters of a model of this code (dotted path -> array), or an engine.
            config: the run's resolved config; its sections `model`, `data` and `eval` are read.
            expressions_at_once: how many expressions of an image are decoded at once, which bounds the
                memory for logits; of a group, as many pairs of image and expression, but at least one
                expression. Masks do not depend on it; scores do by rounding only.
            thresholds: by default those of the config.
            max_pixels: bound on height times width of a picture that is decoded.

        Raises:
            UserError: a value of the config or of `expressions_at_once` is invalid, or the tokenizer
                does not fit the model.
            KeyError, TypeError, ValueError: the config is of another version, or the parameters do
                not fit the model.
        """
        if expressions_at_once < 1:
            raise UserError(f"expressions_at_once={expressions_at_once} is less than 1")
        self._at_once = expressions_at_once
        given = isinstance(model, Mapping)
        self._engine: Engine = ParameterEngine(model, config["model"]) if given else model
        self._images = ImageEncoder(self._engine, config["data"]["resize"], max_pixels)
        self._texts = TextEncoder(self._engine, config["data"])
        self.thresholds = of_config(config["eval"]) if thresholds is None else thresholds
        # Early runs had only one way.
        resample: Any = config["eval"].get("resample", "logits")
        check_resample(resample)
        self._painter = Painter(self._engine.mask_stride, self.thresholds, resample)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        step: int | Literal["latest", "best"] = "latest",
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
        thresholds: Thresholds | str = "config",
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """Makes a predictor from a run, a checkpoint or an export.

        Args:
            path: a run's workdir, one step folder, or a folder that `tools.export` wrote; the first two
                on a disk or in a bucket, the last on a disk or on the hub (`hf://OWNER/NAME`).
            step: which checkpoint of a workdir, see `refseg_jax.checkpoints.params.load_params`; an
                exported folder has only one.
            expressions_at_once: as in `Predictor`.
            thresholds: those of the run's config; or `"calibrated"`, those that `tools.calibrate` chose
                on a validation split; or your own.
            max_pixels: as in `Predictor`.

        Raises:
            UserError: no usable checkpoint was found at `path`, a file is damaged, another version of
                the code wrote it, or it was never calibrated.
        """
        with another_version(path):
            opened = open_model(model_folder(path), step)
            chosen = opened.thresholds(thresholds)
            return cls(
                opened.model,
                opened.config,
                expressions_at_once=expressions_at_once,
                thresholds=chosen,
                max_pixels=max_pixels,
            )

    @property
    def group_size(self) -> int:
        """Images that are asked together, at most; 1 for a model that answers image by image."""
        return self._engine.group_size or 1

    def predict(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        maps: bool = False,
        tiles: Tiles | None = None,
    ) -> list[Prediction]:
        """Predicts a mask for each expression; the image is encoded once for all of them.

        For a model of groups, the image is a group of one.

        Args:
            image: path of a file, encoded bytes, an array u8 RGB `[H, W, 3]`, or a Pillow image.
            expressions: at least one.
            maps: whether to return `Prediction.soft_map` too.
            tiles: cuts an image that is larger than a tile, see `refseg_jax.prediction.tiles`.

        Returns:
            One prediction for each expression, in order.

        Raises:
            ImageError: the image cannot be used.
            ExpressionError: there is no expression, or one is empty or not text.
        """
        return list(self.predict_each(image, expressions, maps=maps, tiles=tiles))

    def predict_each(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        maps: bool = False,
        tiles: Tiles | None = None,
    ) -> Iterator[Prediction]:
        """As `predict`, one prediction after the other: of many, only a few are in memory at a time."""
        texts = self._texts.ids(expressions)
        parts = self._texts.parts(*texts, self._at_once)
        return self._each(self._images.rgb(image), parts, maps, tiles)

    def predict_many(
        self,
        images: Iterable[PictureLike],
        expressions: Sequence[str] | Sequence[Sequence[str]],
        *,
        maps: bool = False,
        tiles: Tiles | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Answer]:
        """Predicts many images, in batches over all devices of this process and in constant memory.

            for answer in predictor.predict_many(paths, ["the red car"]):
                for prediction in answer:
                    ...

        Images are decoded in threads, ahead of the devices. One that cannot be used costs itself alone:
        its answer has an `error`, which iterating it raises.

        Args:
            images: any number, as in `predict`; read one by one.
            expressions: at least one, for all images; or a list of them for each image.
            maps, tiles: as in `predict`.
            batch_size: images that are encoded at once, rounded up to a multiple of the devices. By
                default 1 on a CPU and 8 for each device of other kinds.

        Yields:
            An answer for each image, in order: an iterable of its predictions.

        Raises:
            ExpressionError: as in `predict`.
            UserError: `batch_size` is less than 1, or there is not a list for each image.
        """
        many = ManyPredictor(
            self._engine, self._images, self._texts, self._painter, self._at_once, batch_size
        )
        return many(images, expressions, maps, tiles)

    def read(self, image: PictureLike) -> Decoded:
        """Decodes an image as `predict` does, with notes of what was guessed; raises as it does."""
        return self._images.read(image)

    def encode(self, image: PictureLike) -> EncodedImages:
        """Encodes an image once, to ask it many times by `predict_words`; raises as `predict` does."""
        return self._images.encode_row([self._images.rgb(image)])

    def words(self, expressions: Sequence[str], *, images: int = 1) -> Words:
        """Encodes expressions once, to ask many images for them; raises as `predict` does.

        Args:
            expressions: at least one.
            images: how many images `predict_row` will be given, at most.
        """
        at_once = decoded_at_once(images, self._at_once)
        return Words(tuple(self._texts.parts(*self._texts.ids(expressions), at_once)))

    def predict_words(
        self,
        image: PictureLike | EncodedImages,
        words: Words,
        *,
        maps: bool = False,
        tiles: Tiles | None = None,
    ) -> Iterator[Prediction]:
        """As `predict_each`, for expressions, or an image as well, that this predictor has encoded.

        Args:
            image: as in `predict`, or what `encode` returned; that is not cut into tiles.
            words: what `words` returned.
            maps, tiles: as in `predict`.
        """
        if isinstance(image, EncodedImages):
            return self._of_encoded(image, words.parts, maps)
        return self._each(self._images.rgb(image), words.parts, maps, tiles)

    def predict_group(
        self,
        images: Sequence[PictureLike],
        expressions: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        maps: bool = False,
    ) -> list[list[Prediction]]:
        """Predicts which images of a group show what each expression means, and where.

        The images ask each other, if the model is one of groups. They are cut into rows by their names
        as an evaluation does it (`refseg_jax.images.groups.group_rows`), so that the order in which they
        are given changes no answer. Other models answer image by image.

        Args:
            images: at least one, as in `predict`.
            expressions: at least one.
            names: a name for each image, all different. By default paths as they are given; other
                images are named by their pixels.
            maps: as in `predict`.

        Returns:
            For each image, in the order given, one prediction for each expression.

        Raises:
            ImageError, ExpressionError: as in `predict`.
            UserError: there is no image, or the names do not tell the images apart.
        """
        rows = group_rows(names_of(images, names), self.group_size)
        words = self.words(expressions, images=min(len(images), self.group_size))
        found: list[list[Prediction]] = [[] for _ in images]
        for row in rows:
            answers = self.predict_row([images[i] for i in row.images], words, maps=maps)
            for image, answer in zip(row.images[row.reused :], answers[row.reused :], strict=True):
                found[image] = answer
        return found

    def predict_row(
        self, images: Sequence[PictureLike], words: Words, *, maps: bool = False
    ) -> list[list[Prediction]]:
        """Predicts the images of one row of a group, for expressions that this predictor has encoded.

        Args:
            images: as in `predict`: up to `group_size`, in the order of their names.
            words: what `words` returned.
            maps: as in `predict`.

        Returns:
            For each image, one prediction for each expression.
        """
        encoded = self._images.encode_row([self._images.rgb(image) for image in images])
        found: list[list[Prediction]] = [[] for _ in images]
        for count, part in words.parts:
            answers = self._predict(encoded, count, part, maps)
            for known, answer in zip(found, answers, strict=True):
                known += answer
        return found

    def _each(
        self,
        rgb: np.ndarray,
        parts: Iterable[tuple[int, Any]],
        maps: bool,
        tiles: Tiles | None = None,
    ) -> Iterator[Prediction]:
        """Predictions of encoded expressions in an image u8 `[H, W, 3]`."""
        if tiles is None or tiles.fits(*rgb.shape[:2]):
            yield from self._of_encoded(self._images.encode_row([rgb]), parts, maps)
            return
        painter = TiledPainter(self._engine, self._images, self._painter)
        for count, words in parts:
            yield from painter(rgb, count, words, tiles, maps)

    def _of_encoded(
        self, encoded: EncodedImages, parts: Iterable[tuple[int, Any]], maps: bool
    ) -> Iterator[Prediction]:
        for count, words in parts:
            yield from self._predict(encoded, count, words, maps)[0]

    def cut_short(self, expressions: Sequence[str]) -> list[str]:
        """Expressions with more tokens than `config.data.context_length`; the model misses their ends.

        An anti-expression has a token more: for a model that reads them, expressions with as many
        tokens as that are among them.

        Raises:
            ExpressionError: as in `predict`.
        """
        return self._texts.cut_short(expressions)

    def _predict(
        self, encoded: EncodedImages, count: int, words: Any, maps: bool
    ) -> list[list[Prediction]]:
        """Predictions of `count` expressions, whose text features may be padded, image by image."""
        logits = self._engine.decode(encoded.features, words)
        masks, head = logits["mask_logits"], logits.get("present_logits")
        if self._engine.group_size is None:
            (place,) = encoded.places
            return [self._painter(masks, head, count, *place, maps=maps)]
        return [
            self._painter(
                masks[:, n], None if head is None else head[:, n], count, *place, maps=maps
            )
            for n, place in enumerate(encoded.places)
        ]
