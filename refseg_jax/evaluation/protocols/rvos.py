"""The protocol of referring video segmentation: `rvos`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from refseg_jax.evaluation.protocols.base import Pair, Protocol, Reads, Sums
from refseg_jax.evaluation.protocols.video import video_scores, video_sums


@dataclasses.dataclass(frozen=True)
class Rvos(Protocol):
    """J, F and J&F as DAVIS defines them: `refseg_jax.evaluation.protocols.video`.

    A pair is a frame; `group` names the expression of the video that it belongs to. J and F are
    averaged over the frames of a group, then over the groups. A pair without a group is a group by
    itself.
    """

    name: ClassVar[str] = "rvos"
    comparable: ClassVar[str] = (
        "Ref-YouTube-VOS, Ref-DAVIS and MeViS (J, F, J&F), where group is the expression of a video "
        "and every frame that the dataset lists is there"
    )
    reads: ClassVar[tuple[Reads, ...]] = ("masks",)
    columns: ClassVar[tuple[str, ...]] = ("JF", "J", "F")

    def bucket(self, pair: Pair) -> str:
        """The expression of the video, or the pair itself."""
        return f"group {pair.group}" if pair.group else f"pair {pair.id}"

    def measure(self, pair: Pair) -> Mapping[str, int]:
        """See `video_sums`."""
        return video_sums(pair.regions.prediction(), pair.regions.target())

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """`J`, `F`, `JF`."""
        return video_scores(sums)
