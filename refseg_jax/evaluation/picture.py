"""An evaluated pair with all that is needed to draw it."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Picture:
    """An evaluated pair, to be drawn.

    Attributes:
        image: u8 `[H', W', 3]`, RGB, the network's input.
        affine: f32 `[2, 3]`, native to network pixels, as in `Batch`.
        expression: the words.
        granularity: name out of `GRANULARITIES`.
        target: bool `[H, W]` at native size.
        predicted: bool `[H, W]`, empty where the system says that nothing is present.
        iou: intersection over union of `target` and `predicted`, in [0, 1].
    """

    image: np.ndarray
    affine: np.ndarray
    expression: str
    granularity: str
    target: np.ndarray
    predicted: np.ndarray
    iou: float

    def native_image(self) -> np.ndarray:
        """The image warped back to its native size, u8 `[H, W, 3]`."""
        height, width = self.target.shape
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(self.image, self.affine, (width, height), flags=flags)
