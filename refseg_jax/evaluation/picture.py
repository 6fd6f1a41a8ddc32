"""An evaluated pair, kept to be drawn."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Picture:
    """A pair as a person wants to see it.

    Attributes:
        image: u8 `[H', W', 3]`, the network's input.
        affine: f32 `[2, 3]`, native to network pixels.
        expression, granularity: words.
        target, predicted: bool `[H, W]` at native size.
        iou: of the two.
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
