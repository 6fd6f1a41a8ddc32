"""The three functions of a separable model that exports and predictors share.

Their names and shapes are the same everywhere. Features are flat dicts of arrays. Each row holds one
image (the axis N of `refseg_jax.batch` is left out) and K expressions.

    encode_image  image u8 [b, S, S, 3]                         -> patches, groups.0, ... [b, ...]
    encode_text   text i32 [b, k, L], text_valid bool [b, k, L] -> words, sentence, valid [b, k, ...]
    decode        the features of both                          -> mask_logits f32 [b, k, h, w],
                                                                   present_logits f32 [b, k]

The names of the features are those of UniRES here. A model without a presence head returns no
`present_logits`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refseg_jax.batch import Array
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward

Features = dict[str, Array]


#: Names of the three functions, and of the files of an export.
GRAPHS = ("encode_image", "encode_text", "decode")


class Graphs:
    """The three functions of a separable model; pure, so that they can be jitted and exported."""

    def __init__(self, forward: Forward[Any]) -> None:
        self.forward = forward
        model = forward.model
        size: int = model.image_size
        image = jax.ShapeDtypeStruct((1, 1, size, size, 3), np.uint8)
        words = jax.ShapeDtypeStruct((1, 1, 2), np.int32)
        valid = jax.ShapeDtypeStruct((1, 1, 2), np.bool_)
        # The structure of the features, which flat dicts do not keep.
        self._image = jax.tree.structure(
            jax.eval_shape(forward.encode_image, forward.shapes, image)
        )
        self._text = jax.tree.structure(
            jax.eval_shape(forward.encode_text, forward.shapes, words, valid)
        )

    def encode_image(self, params: Mapping[str, Any], image: Array) -> Features:
        """u8 `[b, S, S, 3]` to image features."""
        features = self.forward.encode_image(params, jnp.asarray(image)[:, None])
        return {name: leaf[:, 0] for name, leaf in _named(features).items()}

    def encode_text(self, params: Mapping[str, Any], text: Array, text_valid: Array) -> Features:
        """i32 and bool `[b, k, L]` to text features."""
        return _named(self.forward.encode_text(params, jnp.asarray(text), jnp.asarray(text_valid)))

    def decode(
        self, params: Mapping[str, Any], image_features: Features, text_features: Features
    ) -> Features:
        """Features to `mask_logits` f32 `[b, k, h, w]`; with a presence head also `present_logits`."""
        image = self._unnamed(self._image, {n: x[:, None] for n, x in image_features.items()})
        output = self.forward.decode(params, image, self._unnamed(self._text, text_features))
        logits = {"mask_logits": output.mask_logits[:, 0]}
        if output.present_logits is not None:
            logits["present_logits"] = output.present_logits[:, 0]
        return logits

    def inputs(self, batch: Any, count: Any, length: int) -> dict[str, tuple[Any, ...]]:
        """The abstract arguments of each function (without the parameters), by its name.

        Args:
            batch: number b of images, which may be symbolic.
            count: number k of expressions, which may be symbolic.
            length: L, length of the texts.
        """
        size = self.forward.model.image_size
        image = (jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),)
        text = tuple(jax.ShapeDtypeStruct((batch, count, length), t) for t in (np.int32, np.bool_))
        features = (
            jax.eval_shape(self.encode_image, self.forward.shapes, *image),
            jax.eval_shape(self.encode_text, self.forward.shapes, *text),
        )
        return {"encode_image": image, "encode_text": text, "decode": features}

    def _unnamed(self, structure: Any, features: Features) -> Any:
        blank = jax.tree.unflatten(structure, range(structure.num_leaves))
        return jax.tree.unflatten(structure, [features[name] for name in _named(blank)])


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
