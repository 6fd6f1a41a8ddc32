"""The protocol of salient object detection, and of co-saliency: `sod`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Reads, Sums
from refseg_jax.evaluation.protocols.saliency import saliency_entry, saliency_scores, saliency_sums


@dataclasses.dataclass(frozen=True)
class Sod(Protocol):
    """Scores of soft maps as PySODMetrics computes them: `refseg_jax.evaluation.protocols.saliency`.

    A pair is scored by its map of 256 grey values at the size of the reference. Without a map, the
    mask is taken as one of 0 and 255.
    """

    name: ClassVar[str] = "sod"
    comparable: ClassVar[str] = (
        "tables made with PySODMetrics; GRSer's on CoCA (MAE, Fmax, Sm, Em) up to its toolbox; "
        "UniLSeg's F_mean is Fmean, or Fadp as F3Net names it: its paper does not say"
    )
    reads: ClassVar[tuple[Reads, ...]] = ("map",)
    columns: ClassVar[tuple[str, ...]] = ("MAE", "Fmax", "Fmean", "Sm", "Em")

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """See `saliency_sums`."""
        return saliency_sums(saliency_entry(pair.regions.soft_map(), pair.regions.target()))

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`MAE`, `Fmax`, `Fmean`, `Fadp`, `Sm`, `Emax`, `Em`."""
        return saliency_scores(sums[""])
