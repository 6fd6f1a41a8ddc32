"""The contracts that every package of the code base shares.

Every task is one product: `N` images times `K` expressions give `N * K` masks, each with an answer
to "does the image contain the referent at all?". Axis names used everywhere:

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

#: Forms of absence, why nothing in an image matches an expression: the kind is not there ("the bird");
#: or it is there without the attribute ("the red bird"), without the part ("the hat of the bird"), not
#: in the relation ("the bird left of the tree") or place ("the bird on the left"), in another number
#: ("the three birds"), or only with what is excluded ("the bird without a hat").
ABSENCES = ("kind", "attribute", "part", "relation", "place", "number", "negation")

#: Names by which scores are told apart, in the order in which tables print them.
SCOPES = (*GRANULARITIES, *(f"none/{form}" for form in ABSENCES))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The arrays of one batch, on the host (numpy) or on devices (jax).

    Attributes:
        image: u8 `[B, N, H, W, 3]`, RGB; the model normalises it on the device.
        text: i32 `[B, K, L]` token ids, zero-padded.
        text_valid: bool `[B, K, L]`, true from SOS to EOS.
        mask: u8 `[B, N, K, h, w]`, the covered share of each mask cell, scaled to 0..255.
        present: bool `[B, N, K]`, true where the image contains a referent of the expression.
        valid: bool `[B, N, K]`, false for padding, quarantined rows and pairs that were left out.
        size: i32 `[B, N, 2]`, native height and width in pixels.
        affine: f32 `[B, N, 2, 3]`, maps native pixels (x, y, 1) to network pixels (x, y). The
            coordinate of a pixel is its index.
        native: u8 `[B, N, K, Hc, Wc]` of 0/1, the mask at native size in the upper left corner of
            the canvas; evaluation only.
        anti_text: i32 `[B, K, L]`, token ids of the anti-expression (GRSer only), valid at one position
            more than `text`, see `refseg_jax.text.anti.anti_text`.
        labels: i16 `[B, N, Hc, Wc]`, the class of each pixel as an index of `ClassList`, in the upper
            left corner of the canvas; -1 where there is none. Only where every image is asked for every
            class; texts and masks are then empty.
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
    labels: Array | None = None


@dataclasses.dataclass(frozen=True)
class ClassList:
    """The classes that every image of a benchmark is asked for, in the benchmark's order.

    Attributes:
        names: `C` texts, e.g. `"all wall"`.
        granularity: `"category"` or `"part"`.
        text: i32 `[C, L]` token ids, zero-padded.
        text_valid: bool `[C, L]`, true from SOS to EOS.
    """

    names: tuple[str, ...]
    granularity: str
    text: np.ndarray
    text_valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowMeta:
    """Ids and texts of one row; they stay on the host.

    Lists of length `N * K` are ordered image by image: the entries of image `n` start at `n * K`.
    Padding is `""` everywhere.

    Attributes:
        key: the row's position in its source, `"<split>/<row index>"`, the same in every epoch; in
            a mixture, the name of the member and a `/` come first.
        image_ids: `N` image ids.
        pair_ids: `N * K` expression ids, unique in the dataset.
        expressions: `K` texts.
        granularities: `N * K` names out of `GRANULARITIES`.
        error: why the row was quarantined (all its pairs are then invalid), or `""`.
        groups: `N * K` names of the group of images (or frames) that share the expression, `""`
            where there is no group; empty for a row of padding or a quarantined one.
        categories: `N * K` names of the category that the expression asks for, `""` where it is
            unknown; empty for a row of padding or a quarantined one.
        forms: `N * K` names out of `ABSENCES`: why nothing matches, or the absence with which a match
            is compared; `""` where it is unknown; empty as `categories` is.
        left_out: why single pairs, or images of a group, were left out of the row; they are padding.
        reused: indices of the images that fill a row of a group up. They are valid, because the model
            compares the images of a row; but another row has them as well, so that an evaluation does
            not score their pairs here.
    """

    key: str
    image_ids: tuple[str, ...]
    pair_ids: tuple[str, ...]
    expressions: tuple[str, ...]
    granularities: tuple[str, ...]
    error: str = ""
    groups: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    reused: tuple[int, ...] = ()


class HostBatch(NamedTuple):
    """One item of the input pipeline: the arrays of `B` rows and their metadata.

    In a mixture, all rows of a batch come from the member `name`, which is the same on every
    process; without a mixture, `name` is `""`.
    """

    batch: Batch
    meta: tuple[RowMeta, ...]
    name: str = ""


class Interrupted(Exception):
    """The wait for a batch was given up, because this process is asked to stop (SIGTERM)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegOutput:
    """The output of every model.

    Attributes:
        mask_logits: f32 `[B, N, K, h, w]`.
        present_logits: f32 `[B, N, K]`, or `None` for a model without a presence head.
        aux: additional arrays that only the model's own objective reads.
    """

    mask_logits: Array
    present_logits: Array | None = None
    aux: dict[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a loss, worth `coefficient * sum / weight`.

    `sum` and `weight` are scalars that are first added up over all microbatches and devices, and
    only then divided, so that accumulation, padding and sharding never change the loss. `weight`
    may depend on the batch, but never on the parameters. The one exception is accumulation over batch
    normalisation, see `refseg_jax.training.optim.OptimConfig.microbatch_statistics`.
    """

    sum: Array
    weight: Array
    coefficient: Array | float = 1.0


class Objective(Protocol):
    """A function that maps a model's output and its batch to the named terms of the loss."""

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> Mapping[str, Term]:
        """Returns the terms by name; `progress` in [0, 1] is the completed share of training."""
        ...


class Model(Protocol):
    """A system that maps `N` images times `K` expressions to `N * K` masks.

    A call without `rngs` is inference: nothing is dropped, and batch normalisation uses its running
    averages. With `rngs`, its statistics are those of the pairs of the batch that are `valid`.
    """

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        """Runs the whole model."""
        ...


class SeparableModel(Model, Protocol):
    """A model whose image tower does not depend on the text: an image is encoded once for all K."""

    def encode_image(self, image: Array, *, rngs: Any = None) -> Any:
        """u8 `[B, N, H, W, 3]` to image features (a pytree with leading axes `[B, N]`)."""
        ...

    def encode_text(self, text: Array, text_valid: Array, *, rngs: Any = None) -> Any:
        """i32 and bool `[B, K, L]` to text features (a pytree with leading axes `[B, K]`)."""
        ...

    def decode(self, image_features: Any, text_features: Any, *, rngs: Any = None) -> SegOutput:
        """Features of N images and K expressions to the `N * K` masks of each row."""
        ...


class GroupModel(Model, Protocol):
    """A model in which the images of a row ask each other: who shares a row decides the answers.

    It works on any number N of images, which lie in the order of their names, and needs `anti_text`. Its
    parts are those of a `SeparableModel` but for that.

    Attributes:
        group_size: N of the rows that a prediction makes of a group (`group_rows`); that of an
            evaluation is `config.data.images`.
    """

    group_size: int

    def encode_image(self, image: Array, *, rngs: Any = None) -> Any:
        """As in `SeparableModel`."""
        ...

    def encode_text(
        self, text: Array, text_valid: Array, anti_text: Array, *, rngs: Any = None
    ) -> Any:
        """i32, bool and i32 `[B, K, L]` to text features (a pytree with leading axes `[B, K]`)."""
        ...

    def decode(self, image_features: Any, text_features: Any, *, rngs: Any = None) -> SegOutput:
        """As in `SeparableModel`."""
        ...
