"""The three functions of a separable model that exports and predictors share.

Their names and shapes are the same everywhere. Features are flat dicts of arrays. Each row holds one
image (the axis N of `refseg_jax.batch` is left out) and K expressions.

    encode_image  image u8 [b, S, S, 3]                         -> patches, groups.0, ... [b, ...]
    encode_text   text i32 [b, k, L], text_valid bool [b, k, L] -> words, sentence, valid [b, k, ...]
    decode        the features of both                          -> mask_logits f32 [b, k, h, w],
                                                                   present_logits f32 [b, k]

The names of the features are those of UniRES here. A model without a presence head returns no
`present_logits`. Rows of a `refseg_jax.batch.GroupModel` hold N images: its graphs keep the axis, and
read anti-expressions.

    encode_image  image u8 [b, n, S, S, 3]                       -> [b, n, ...]
    encode_text   text, anti_text i32 and text_valid [b, k, L]   -> [b, k, ...]
    decode        the features of both                           -> [b, n, k, h, w] and [b, n, k]
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Array, SegOutput
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward

Features = dict[str, Array]


#: Names of the three functions, and of the files of an export.
GRAPHS = ("encode_image", "encode_text", "decode")


class Graphs:
    """The three functions of a separable model; pure, so that they can be jitted and exported.

    Attributes:
        forward: the model.
        group_size: see `refseg_jax.batch.GroupModel`; `None` for other models.
    """

    def __init__(self, forward: Forward[Any]) -> None:
        self.forward = forward
        self.group_size = group_size_of(forward.model)
        inputs = self._encoder_inputs(1, 1, 2, 1)
        # The structure of the features, which flat dicts do not keep.
        self._image = jax.tree.structure(
            jax.eval_shape(self._encoded_image, forward.shapes, *inputs["encode_image"])
        )
        self._text = jax.tree.structure(
            jax.eval_shape(forward.encode_text, forward.shapes, *inputs["encode_text"])
        )

    @property
    def arguments(self) -> dict[str, tuple[str, ...]]:
        """The names of each function's arguments (without the parameters), by its name."""
        texts = ("text", "text_valid")
        return {
            "encode_image": ("image",),
            "encode_text": texts if self.group_size is None else (*texts, "anti_text"),
            "decode": ("image_features", "text_features"),
        }

    def encode_image(self, params: Mapping[str, Any], image: Array) -> Features:
        """u8 `[b, S, S, 3]`, of a group `[b, n, S, S, 3]`, to image features."""
        features = _named(self._encoded_image(params, image))
        return {name: self._without_images(leaf) for name, leaf in features.items()}

    def encode_text(
        self,
        params: Mapping[str, Any],
        text: Array,
        text_valid: Array,
        anti_text: Array | None = None,
    ) -> Features:
        """i32, bool and i32 `[b, k, L]` to text features; `anti_text` is that of a group alone."""
        anti = None if anti_text is None else jnp.asarray(anti_text)
        texts = jnp.asarray(text), jnp.asarray(text_valid), anti
        return _named(self.forward.encode_text(params, *texts))

    def decode(
        self, params: Mapping[str, Any], image_features: Features, text_features: Features
    ) -> Features:
        """Features to `mask_logits` f32 `[b, k, h, w]`; with a presence head also `present_logits`."""
        output = self.decoded(params, image_features, text_features)
        logits = {"mask_logits": self._without_images(output.mask_logits)}
        if output.present_logits is not None:
            logits["present_logits"] = self._without_images(output.present_logits)
        return logits

    def decoded(
        self, params: Mapping[str, Any], image_features: Features, text_features: Features
    ) -> SegOutput:
        """The whole output of `decode`, with the axis N and what only some models have in `aux`."""
        seen = {name: self._with_images(leaf) for name, leaf in image_features.items()}
        image = self._unnamed(self._image, seen)
        return self.forward.decode(params, image, self._unnamed(self._text, text_features))

    def inputs(
        self, batch: Any, count: Any, length: int, images: Any = 1
    ) -> dict[str, tuple[Any, ...]]:
        """The abstract arguments of each function (without the parameters), by its name.

        Args:
            batch: number b of images, or of groups; may be symbolic, as `count` and `images`.
            count: number k of expressions.
            length: L, length of the texts.
            images: number n of images of a group.
        """
        found = self._encoder_inputs(batch, count, length, images)
        found["decode"] = (
            jax.eval_shape(self.encode_image, self.forward.shapes, *found["encode_image"]),
            jax.eval_shape(self.encode_text, self.forward.shapes, *found["encode_text"]),
        )
        return found

    def _encoder_inputs(
        self, batch: Any, count: Any, length: int, images: Any
    ) -> dict[str, tuple[Any, ...]]:
        size = self.forward.model.image_size
        rows = (batch,) if self.group_size is None else (batch, images)
        text = jax.ShapeDtypeStruct((batch, count, length), np.int32)
        texts = {"text_valid": jax.ShapeDtypeStruct(text.shape, np.bool_)}
        return {
            "encode_image": (jax.ShapeDtypeStruct((*rows, size, size, 3), np.uint8),),
            "encode_text": tuple(texts.get(n, text) for n in self.arguments["encode_text"]),
        }

    def _encoded_image(self, params: Mapping[str, Any], image: Array) -> Any:
        return self.forward.encode_image(params, self._with_images(jnp.asarray(image)))

    def _with_images(self, x: Any) -> Any:
        return x[:, None] if self.group_size is None else x

    def _without_images(self, x: Any) -> Any:
        return x[:, 0] if self.group_size is None else x

    def _unnamed(self, structure: Any, features: Features) -> Any:
        blank = jax.tree.unflatten(structure, range(structure.num_leaves))
        return jax.tree.unflatten(structure, [features[name] for name in _named(blank)])


def group_size_of(model: Any) -> int | None:
    """`group_size` of a `refseg_jax.batch.GroupModel`, `None` of other models."""
    return getattr(model, "group_size", None)


def forward_of(model: Mapping[str, Any]) -> Forward[Any]:
    """The model of a run's `config.model`, without parameters.

    Raises:
        KeyError, TypeError, ValueError: the config was written by another version of the code.
    """
    return Forward(functools.partial(_build, dict(model)))


def check_params(params: Mapping[str, Any], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Checks that parameters are those of a model, in names and shapes.

    Args:
        params: path -> array.
        shapes: path -> shape of every parameter of the model.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; the message names the first.
    """
    odd = sorted(params.keys() ^ shapes.keys())
    if odd:
        where = "only in the model" if odd[0] in shapes else "not in the model"
        raise ValueError(f"parameter {odd[0]!r} is {where}")
    for path, leaf in shapes.items():
        if params[path].shape != leaf.shape:
            found = tuple(params[path].shape)
            raise ValueError(f"parameter {path!r} is {found}, the model's is {leaf.shape}")


def _build(model: Mapping[str, Any], rngs: Any) -> Any:
    return build_model(model, rngs=rngs)


def described(tree: Any) -> Any:
    """`[dtype, shape]` of an array, or a dict of them for a dict of arrays; symbolic sizes are text."""
    if isinstance(tree, dict):
        return {name: described(leaf) for name, leaf in tree.items()}
    return [str(np.dtype(tree.dtype)), dimensions(tree)]


def dimensions(leaf: Any) -> list[int | str]:
    """The shape of an array, with symbolic sizes as text."""
    return [size if isinstance(size, int) else str(size) for size in leaf.shape]


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
