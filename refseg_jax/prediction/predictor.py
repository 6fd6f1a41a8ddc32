"""Predicts masks for images and expressions, with nothing but a checkpoint or an export."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from refseg_jax.checkpoints.folder import another_version
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.exports.folder import is_export
from refseg_jax.images import preprocess
from refseg_jax.images.groups import group_rows
from refseg_jax.images.resize import check_resample
from refseg_jax.models.heat_maps import HeatMap, heat_map
from refseg_jax.models.region_maps import RegionMap, highest_regions
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.painting import Painter, Prediction
from refseg_jax.prediction.pictures import PictureLike, names_of, to_rgb
from refseg_jax.prediction.reader import read_engine
from refseg_jax.prediction.texts import TextEncoder, Words, padded
from refseg_jax.storage.buckets import located

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


class _Place(NamedTuple):
    """Where an image lies in the network's square: affine f32 `[2, 3]`, native height and width."""

    affine: np.ndarray
    size: tuple[int, int]


class Predictor:
    """A model with its preprocessing, tokenizer, threshold and way of resampling masks."""

    def __init__(
        self,
        model: Mapping[str, Any] | Engine,
        config: Mapping[str, Any],
        *,
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
    ) -> None:
        """Sets up preprocessing, tokenizer, model, threshold and resampling.

        Args:
            model: parameters of a model of this code (dotted path -> array), or an engine.
            config: the run's resolved config; its sections `model`, `data` and `eval` are read.
            expressions_at_once: how many expressions of an image are decoded at once, which bounds the
                memory for logits; of a group, as many pairs of image and expression, but at least one
                expression. Masks do not depend on it; scores do by rounding only.

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
        self._resize = config["data"]["resize"]
        self._texts = TextEncoder(self._engine, config["data"])
        preprocess.check_resize(self._resize)
        threshold = float(config["eval"]["threshold"])
        if not 0.0 < threshold < 1.0:
            raise UserError(f"config.eval.threshold={threshold} is not between 0 and 1")
        # Early runs had only one way.
        resample: Any = config["eval"].get("resample", "logits")
        check_resample(resample)
        self._painter = Painter(self._engine.mask_stride, threshold, resample)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        step: int | Literal["latest", "best"] = "latest",
        expressions_at_once: int = EXPRESSIONS_AT_ONCE,
        threshold: float | None = None,
    ) -> "Predictor":
        """Makes a predictor from a run, a checkpoint or an export.

        Args:
            path: a run's workdir, one step folder, or a folder that `tools.export` wrote; the first two
                on a disk or in a bucket.
            step: which checkpoint of a workdir, see `refseg_jax.checkpoints.params.load_params`; an
                exported folder has only one.
            expressions_at_once: as in `Predictor`.
            threshold: a pixel is in the mask where its probability is larger; by default that of the
                run (`config.eval.threshold`).

        Raises:
            UserError: no usable checkpoint was found at `path`, a file is damaged, or another version
                of the code wrote it.
        """
        with another_version(path):
            folder = located(path)
            if is_export(folder):
                model, config = read_engine(folder, step)
            else:
                model, config = load_params(folder, step=step)
            if threshold is not None:
                config = {**config, "eval": {**config["eval"], "threshold": threshold}}
            return cls(model, config, expressions_at_once=expressions_at_once)

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
    ) -> list[Prediction]:
        """Predicts a mask for each expression; the image is encoded once for all of them.

        For a model of groups, the image is a group of one.

        Args:
            image: path of a file, encoded bytes, an array u8 RGB `[H, W, 3]`, or a Pillow image.
            expressions: at least one.
            maps: whether to return `Prediction.soft_map` too.

        Returns:
            One prediction for each expression, in order.

        Raises:
            ImageError: the image cannot be used.
            ExpressionError: there is no expression, or one is empty or not text.
        """
        return list(self.predict_each(image, expressions, maps=maps))

    def predict_each(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        maps: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict`, one prediction after the other: of many, only a few are in memory at a time."""
        texts = self._texts.ids(expressions)
        return self._each(to_rgb(image), self._texts.parts(*texts, self._at_once), maps)

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
        image: PictureLike,
        words: Words,
        *,
        maps: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict_each`, for expressions that this predictor has encoded."""
        return self._each(to_rgb(image), words.parts, maps)

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
        features, places = self._see([to_rgb(image) for image in images])
        found: list[list[Prediction]] = [[] for _ in images]
        for count, part in words.parts:
            answers = self._predict(features, count, part, places, maps)
            for known, answer in zip(found, answers, strict=True):
                known += answer
        return found

    def _each(
        self, rgb: np.ndarray, parts: Iterable[tuple[int, Any]], maps: bool
    ) -> Iterator[Prediction]:
        """Predictions of encoded expressions in an image u8 `[H, W, 3]`."""
        features, places = self._see([rgb])
        for count, words in parts:
            yield from self._predict(features, count, words, places, maps)[0]

    def _see(self, pictures: Sequence[np.ndarray]) -> tuple[Any, list[_Place]]:
        """Features of the images of a row, u8 `[H, W, 3]` each, and their places."""
        size = self._engine.image_size
        prepared = [preprocess.prepare_image(rgb, size, self._resize) for rgb in pictures]
        networks = np.stack([network for network, _ in prepared])
        features = self._engine.encode_image(
            networks if self._engine.group_size is None else networks[None]
        )
        places = [
            _Place(affine, (rgb.shape[0], rgb.shape[1]))
            for rgb, (_, affine) in zip(pictures, prepared, strict=True)
        ]
        return features, places

    def group_assignment(self, image: PictureLike) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Similarities of group tokens and patches, for the maps of UniRES's Figure 5.

        Args:
            image: as in `predict`.

        Returns:
            The network's input, u8 `[S, S, 3]`, and for each level that has tokens (`low`, `high`) the
            similarity of tokens and patches, f32 `[T, grid, grid]` (see `assign_groups`).
            `refseg_jax.reporting.pictures.assignment_map` draws them.

        Raises:
            ImageError: the image cannot be used.
            UserError: the model has no group tokens, or the engine runs exported graphs.
        """
        engine = self._parameters("group tokens")
        network, _ = preprocess.prepare_image(to_rgb(image), engine.image_size, self._resize)
        levels = engine.group_assignment(network)
        if not levels:
            raise UserError(
                "the model has no group tokens, so that there are no maps of them; leave out "
                "--group_maps (ReLA has --region_maps)"
            )
        return network, levels

    def region_maps(
        self,
        image: PictureLike,
        expressions: Sequence[str],
        *,
        regions: int = 4,
    ) -> list[RegionMap]:
        """Minimap, region masks and presence for each expression: ReLA's Figure 7.

        Args:
            image, expressions: as in `predict`.
            regions: number of region masks to return: those of the regions that are highest in the
                minimap.

        Returns:
            One map for each expression, which `refseg_jax.reporting.pictures.region_panel` draws.

        Raises:
            ImageError, ExpressionError: as in `predict`.
            UserError: the model has no regions, or the engine runs exported graphs.
        """
        engine = self._parameters("regions")
        ids, valid = self._texts.ids(expressions)
        rgb = to_rgb(image)
        network, affine = preprocess.prepare_image(rgb, engine.image_size, self._resize)
        height, width, _ = rgb.shape
        found = []
        for start in range(0, len(ids), self._at_once):
            part = slice(start, start + self._at_once)
            maps = engine.region_maps(network, *padded(ids[part], valid[part], self._at_once))
            if maps is None:
                raise UserError(
                    "the model has no regions, so that there are no maps of them; leave out "
                    "--region_maps (UniRES has --group_maps)"
                )
            found += highest_regions(maps, regions, affine, engine.image_size, (height, width))
        return found[: len(ids)]

    def heat_maps(self, images: Sequence[PictureLike], words: Words) -> list[list[HeatMap]]:
        """Heatmaps of the images of one row of a group: GRSer's Figure 4.

        Args:
            images, words: as in `predict_row`.

        Returns:
            For each image one map for each expression, which `refseg_jax.reporting.pictures.heat_panel`
            draws.

        Raises:
            ImageError: an image cannot be used.
            UserError: the model has no heatmaps, or the engine runs exported graphs.
        """
        engine = self._parameters("heat")
        features, places = self._see([to_rgb(image) for image in images])
        found: list[list[HeatMap]] = [[] for _ in images]
        for count, part in words.parts:
            maps = engine.heat_maps(features, part)
            if maps is None:
                raise UserError(
                    "the model has no heatmaps: its images do not ask each other; leave out --heatmaps"
                )
            for n, (known, place) in enumerate(zip(found, places, strict=True)):
                known += [heat_map(maps, (n, k), engine.image_size, *place) for k in range(count)]
        return found

    def _parameters(self, of: str) -> ParameterEngine:
        """The engine; raises a `UserError` if it runs exported graphs."""
        if not isinstance(self._engine, ParameterEngine):
            raise UserError(
                f"exported graphs give no maps of {of}; use the run's checkpoint, or export "
                "it with --format=safetensors"
            )
        return self._engine

    def cut_short(self, expressions: Sequence[str]) -> list[str]:
        """Expressions with more tokens than `config.data.context_length`; the model misses their ends.

        An anti-expression has a token more: for a model that reads them, expressions with as many
        tokens as that are among them.

        Raises:
            ExpressionError: as in `predict`.
        """
        return self._texts.cut_short(expressions)

    def _predict(
        self, features: Any, count: int, words: Any, places: Sequence[_Place], maps: bool
    ) -> list[list[Prediction]]:
        """Predictions of `count` expressions, whose text features may be padded, image by image."""
        logits = self._engine.decode(features, words)
        masks, head = logits["mask_logits"], logits.get("present_logits")
        if self._engine.group_size is None:
            (place,) = places
            return [self._painter(masks, head, count, *place, maps=maps)]
        return [
            self._painter(
                masks[:, n], None if head is None else head[:, n], count, *place, maps=maps
            )
            for n, place in enumerate(places)
        ]
