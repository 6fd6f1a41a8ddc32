"""A feature pyramid (Lin et al. 2017), which joins coarse maps with finer ones."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from refseg_jax.layers.batch_norm import NormKind, make_norm
from refseg_jax.layers.convolution import Conv3x3, UpsampleConv3x3
from refseg_jax.layers.rows import repeat_rows


class FeaturePyramid(nnx.Module):
    """From maps of one width to the mask features at the finest of their strides.

        p = coarsest map
        p = relu(norm(conv3x3(map) + conv3x3(upsampled(p)))), for each finer map

    The last step has `mask_width` channels. The UniLSeg paper (section 3.1) says "a FPN-like
    structure". Not stated in the paper: all of the above but that maps are added. Norm and ReLU are
    those of the public code, which has one convolution for both maps. Two let a map that does not
    depend on the words be convolved once for all expressions of an image.
    """

    def __init__(
        self,
        levels: int,
        width: int,
        mask_width: int,
        *,
        norm: NormKind,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the steps.

        Args:
            levels: number of maps.
            width: channels of the maps.
            mask_width: channels of the mask features.
            norm: a kind of `make_norm`.
            dtype: compute type.
            rngs: random streams for the parameters.
        """
        outputs = [*[width] * (levels - 2), mask_width]
        self.fine = nnx.List([Conv3x3(width, w, dtype=dtype, rngs=rngs) for w in outputs])
        self.coarse = nnx.List([UpsampleConv3x3(width, w, dtype=dtype, rngs=rngs) for w in outputs])
        self.norms = nnx.List([make_norm(norm, w, dtype=dtype, rngs=rngs) for w in outputs])

    def __call__(
        self, maps: Sequence[jax.Array], valid: jax.Array | None = None, *, training: bool = False
    ) -> jax.Array:
        """Joins the maps.

        Args:
            maps: `[G, h, w, width]` each, the finest first; a map has half the size of the one before,
                rounded up. Finer maps may have a row for each image, `[I, h, w, width]`.
            valid: bool `[G]`, the rows that count for batch statistics; all do if absent.
            training: whether batch statistics are those of this call.

        Returns:
            `[G, h, w, mask_width]` at the size of the finest map.
        """
        *finer, joined = maps
        steps = zip(self.fine, self.coarse, self.norms, reversed(finer), strict=True)
        for fine, coarse, norm, level in steps:
            height, width = level.shape[1:3]
            # A backbone rounds sizes up: it fills a map below and on the right.
            wide = coarse(joined)[:, :height, :width]
            own = repeat_rows(fine(level), wide.shape[0] // level.shape[0])
            joined = jax.nn.relu(norm(own + wide, valid, training=training))
        return joined
