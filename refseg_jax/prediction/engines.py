"""Engines compute the logits of a predictor, from parameters or from exported graphs.

All have the three functions of `refseg_jax.models.graphs`, with its names and shapes: `b` images of side
`S`, and `k` expressions of `L` positions for each.

    encode_image  image u8 [b, S, S, 3]                       -> image features
    encode_text   text i32, text_valid bool, both [b, k, L]   -> text features
    decode        image features, text features               -> mask_logits f32 [b, k, h, w]
                                                                 (present_logits f32 [b, k])

Only a model with a presence head has `present_logits`. The images of a model of groups have an axis n
more: `image` u8 `[b, n, S, S, 3]`, and logits `[b, n, k, ...]`.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from refseg_jax import sharding
from refseg_jax.batch import Array
from refseg_jax.models.graphs import Features, Graphs, check_params, forward_of
from refseg_jax.models.heat_maps import HeatMaps
from refseg_jax.models.region_maps import RegionMaps


class Engine(Protocol):
    """Computes logits. The type of the features is up to the engine.

    Attributes:
        image_size: side of the square network input in pixels.
        mask_stride: network pixels per mask cell.
        config: has the fields that `refseg_jax.text.tokenizers.check_tokenizer` reads.
        group_size: see `refseg_jax.batch.GroupModel`; `None` for a model that answers image by image.
    """

    image_size: int
    mask_stride: int
    config: Any
    group_size: int | None

    def encode_image(self, image: Array) -> Any:
        """u8 `[b, S, S, 3]`, of a group `[b, n, S, S, 3]`, to image features."""
        ...

    def encode_text(self, text: Array, text_valid: Array, *anti_text: Array) -> Any:
        """i32 and bool `[b, k, L]` to text features; a group's model takes `anti_text` i32 as well."""
        ...

    def decode(self, image_features: Any, text_features: Any) -> Features:
        """`mask_logits` f32 `[b, k, h, w]`, and `present_logits` f32 `[b, k]` if the model has them.

        Those of a group are `[b, n, k, h, w]` and `[b, n, k]`.
        """
        ...


class ParameterEngine:
    """Runs a model of this code with its parameters."""

    def __init__(self, params: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        """Builds the model.

        Args:
            params: dotted path -> parameter.
            model: `config.model` of the run.

        Raises:
            KeyError, TypeError, ValueError: the config is of another version, or the parameters do
                not fit the model.
        """
        self.forward = forward_of(model)
        check_params(params, self.forward.shapes)
        self.params = jax.device_put(dict(params))
        self.image_size: int = self.forward.model.image_size
        self.mask_stride: int = self.forward.model.mask_stride
        self.config: Any = self.forward.model.config
        self._graphs = graphs = Graphs(self.forward)
        self.group_size: int | None = graphs.group_size
        self._mesh: Mesh | None = None
        self._encode_image = jax.jit(graphs.encode_image)
        self._encode_text = jax.jit(graphs.encode_text)
        self._decode = jax.jit(graphs.decode)
        self._assign = jax.jit(
            lambda params, image: self.forward.bind(params).group_assignment(image)
        )
        self._regions = jax.jit(
            lambda params, *inputs: self.forward.bind(params).region_maps(*inputs)
        )
        self._heat = jax.jit(
            lambda params, *features: HeatMaps.of(graphs.decoded(params, *features).aux)
        )

    def encode_image(self, image: Array) -> Features:
        """See `Engine`."""
        return self._encode_image(self.params, self._cut(image))

    def encode_text(self, text: Array, text_valid: Array, *anti_text: Array) -> Features:
        """See `Engine`."""
        return self._encode_text(self.params, text, text_valid, *anti_text)

    def decode(self, image_features: Features, text_features: Features) -> Features:
        """See `Engine`."""
        return self._decode(self.params, image_features, self._cut(text_features))

    def over(self, mesh: Mesh) -> "ParameterEngine":
        """This engine with its parameters on all devices of a mesh, over which it cuts its rows.

        Texts are encoded as before, on one device: `decode` cuts their features.

        Args:
            mesh: its axes cut rows; their number must be a multiple of its devices.
        """
        other = copy.copy(self)
        other._mesh = mesh
        other.params = jax.device_put(self.params, sharding.replicated(mesh))
        for name in ("encode_image", "decode"):
            traced = sharding.tracing_over(mesh)(getattr(self._graphs, name))
            setattr(other, f"_{name}", jax.jit(traced))
        return other

    @functools.cached_property
    def over_all(self) -> "ParameterEngine":
        """`over` all devices of this process; kept, because its functions keep what they compiled."""
        devices = np.array(jax.local_devices()).reshape(-1, 1, 1)
        return self.over(Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3))

    def _cut(self, tree: Any) -> Any:
        """Rows over the devices of the mesh."""
        if self._mesh is None:
            return tree
        return jax.device_put(tree, sharding.batch_sharding(self._mesh))

    def group_assignment(self, image: Array) -> dict[str, np.ndarray]:
        """Similarities of group tokens and patches of an image, see `UniRES.group_assignment`.

        Args:
            image: u8 `[S, S, 3]`.

        Returns:
            Level -> f32 `[T, grid, grid]`; empty if the model has no group tokens.
        """
        if not hasattr(self.forward.model, "group_assignment"):
            return {}
        levels = self._assign(self.params, image[None, None])
        return {name: np.asarray(similarity)[0, 0] for name, similarity in levels.items()}

    def region_maps(self, image: Array, text: Array, text_valid: Array) -> RegionMaps | None:
        """Minimaps and region masks of an image, see `ReLA.region_maps`.

        Args:
            image: u8 `[S, S, 3]`.
            text: i32 `[k, L]`.
            text_valid: bool `[k, L]`.

        Returns:
            Arrays f32 `[k, ...]` on the host, or `None` if the model has no regions.
        """
        if not hasattr(self.forward.model, "region_maps"):
            return None
        found = self._regions(self.params, image[None, None], text[None], text_valid[None])
        return RegionMaps(*(np.asarray(x)[0, 0] for x in found))

    def heat_maps(self, image_features: Features, text_features: Features) -> HeatMaps | None:
        """The heatmaps that the images of a row draw for each other, see `HeatMaps`.

        Args:
            image_features, text_features: as in `decode`, of one row.

        Returns:
            Arrays `[n, k, ...]` on the host, or `None` if the model has no heatmaps.
        """
        if self.group_size is None:
            return None
        found = self._heat(self.params, image_features, text_features)
        return HeatMaps(*(np.asarray(x)[0] for x in found))


def over_local_devices(engine: Engine) -> tuple[Engine, int]:
    """An engine that uses all devices of this process, and their number; exported graphs use one."""
    devices = jax.local_devices()
    if not isinstance(engine, ParameterEngine) or len(devices) == 1:
        return engine, 1
    return engine.over_all, len(devices)
