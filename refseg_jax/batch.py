"""The contracts that every room of the code base shares.

Every task is one product: `N` images times `K` expressions give `N * K` masks, each with an answer
to "is it there at all". Axis names used everywhere:

    B  rows of the batch             h, w  mask grid of the network (network pixels / mask stride)
    N  images of a row               Hc, Wc  static canvas that holds every native image size
    K  expressions of a row          L  text positions, SOS and EOS included
    H, W  network input              C  channels
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray

#: Granularities in the order in which tables print them.
GRANULARITIES = ("object", "part", "multi", "none", "category", "salient", "group")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Numbers of one batch, on the host (numpy) or on devices (jax).

    Attributes:
        image: u8 `[B, N, H, W, 3]`, RGB; normalised on the device by the model.
        text: i32 `[B, K, L]` token ids, zero-padded.
        text_valid: bool `[B, K, L]`, true from SOS to EOS.
        mask: u8 `[B, N, K, h, w]`, soft coverage of a mask cell as 0..255.
        present: bool `[B, N, K]`, the image contains something that the expression means.
        valid: bool `[B, N, K]`, false for padding and for quarantined rows.
        size: i32 `[B, N, 2]`, native height and width.
        affine: f32 `[B, N, 2, 3]`, native pixel (x, y, 1) -> network pixel (x, y); a pixel's index
            is its coordinate.
        native: u8 `[B, N, K, Hc, Wc]` of 0/1, the mask at native size in the canvas's upper left
            corner; evaluation only.
        anti_text: i32 `[B, K, L]`, the anti-expression (GRSer only).
    """

    image: Array
    text: Array
    text_valid: Array
    mask: Array
    present: Array
    valid: Array
    size: Array
    affine: Array
    native: Array | None = None
    anti_text: Array | None = None


@dataclasses.dataclass(frozen=True)
class RowMeta:
    """What a row is in words; stays on the host.

    Attributes:
        key: position of the row in its epoch-free source, `"<split>/<row index>"`, with the name of
            the member and a `/` before it in a mixture.
        image_ids: `N` image ids; `""` for padding.
        pair_ids: `N * K` expression ids, unique in the dataset, image by image: those of image `n`
            begin at `n * K`; `""` for padding.
        expressions: `K` texts; `""` for padding.
        granularities: `N * K` names out of `GRANULARITIES`, image by image; `""` for padding.
        error: why the row was quarantined (its pairs are then all invalid), or `""`.
        groups: `N * K` names of the group of images (or frames) that share the expression, image by
            image, `""` where there is none; or nothing at all.
        categories: `N * K` names of the kind that is asked for, image by image, `""` where it is not
            known; or nothing at all.
    """

    key: str
    image_ids: tuple[str, ...]
    pair_ids: tuple[str, ...]
    expressions: tuple[str, ...]
    granularities: tuple[str, ...]
    error: str = ""
    groups: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


class HostBatch(NamedTuple):
    """What the input pipeline yields: numbers, and the words that belong to them (`B` rows).

    All rows are of the member `name` of a mixture (`""` without one), the same on every process.
    """

    batch: Batch
    meta: tuple[RowMeta, ...]
    name: str = ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegOutput:
    """What every model returns.

    Attributes:
        mask_logits: f32 `[B, N, K, h, w]`.
        present_logits: f32 `[B, N, K]`, or `None` for a model without a presence head.
        aux: whatever the model's own objective (and nobody else) reads.
    """

    mask_logits: Array
    present_logits: Array | None = None
    aux: dict[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a loss: `coefficient * sum / weight` once both are added up over everything.

    Sums and denominators travel apart, so that accumulation, padding and sharding never change the
    loss. `weight` may depend on the batch only, never on the parameters.
    """

    sum: Array
    weight: Array
    coefficient: Array | float = 1.0


class Objective(Protocol):
    """Maps outputs and batch to named terms."""

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> Mapping[str, Term]:
        """Returns the terms; `progress` in [0, 1] is the share of training that is done."""
        ...


class Model(Protocol):
    """A system: `N` images times `K` expressions to `N * K` masks.

    Without `rngs` a call is inference (no dropout).
    """

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        """Runs the whole model."""
        ...


class SeparableModel(Model, Protocol):
    """A model whose image tower does not look at the text: an image is encoded once for all K."""

    def encode_image(self, image: Array, *, rngs: Any = None) -> Any:
        """u8 `[B, N, H, W, 3]` to image features (a pytree with leading `[B, N]`)."""
        ...

    def encode_text(self, text: Array, text_valid: Array, *, rngs: Any = None) -> Any:
        """i32 `[B, K, L]` and bool `[B, K, L]` to text features (a pytree, leading `[B, K]`)."""
        ...

    def decode(self, image_features: Any, text_features: Any, *, rngs: Any = None) -> SegOutput:
        """Features to masks."""
        ...
