"""What a model draws of itself beside its masks; needs its parameters, not an exported graph."""

from collections.abc import Sequence

import numpy as np

from refseg_jax.errors import UserError
from refseg_jax.models.heat_maps import HeatMap, heat_map
from refseg_jax.models.region_maps import RegionMap, highest_regions
from refseg_jax.prediction.encoding import ImageEncoder
from refseg_jax.prediction.engines import Engine, ParameterEngine
from refseg_jax.prediction.pictures import PictureLike
from refseg_jax.prediction.texts import TextEncoder, Words, padded


class Explanations:
    """Draws the maps of a model's parts; base of `refseg_jax.prediction.predictor.Predictor`."""

    _engine: Engine
    _images: ImageEncoder
    _texts: TextEncoder
    _at_once: int

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
        network, _ = self._images.prepare(self._images.rgb(image))
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
        network, place = self._images.prepare(self._images.rgb(image))
        found = []
        for start in range(0, len(ids), self._at_once):
            part = slice(start, start + self._at_once)
            maps = engine.region_maps(network, *padded(ids[part], valid[part], self._at_once))
            if maps is None:
                raise UserError(
                    "the model has no regions, so that there are no maps of them; leave out "
                    "--region_maps (UniRES has --group_maps)"
                )
            found += highest_regions(maps, regions, place.affine, engine.image_size, place.size)
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
        encoded = self._images.encode_row([self._images.rgb(image) for image in images])
        found: list[list[HeatMap]] = [[] for _ in images]
        for count, part in words.parts:
            maps = engine.heat_maps(encoded.features, part)
            if maps is None:
                raise UserError(
                    "the model has no heatmaps: its images do not ask each other; leave out --heatmaps"
                )
            for n, (known, place) in enumerate(zip(found, encoded.places, strict=True)):
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
