"""Regions drawn over pictures."""

import cv2
import numpy as np

TARGET_COLOUR = (40, 170, 90)


PREDICTED_COLOUR = (235, 80, 40)


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """An image with a mask tinted and outlined.

    Args:
        image: u8 `[H, W, 3]`, RGB.
        mask: bool `[H, W]`.
        colour: RGB.

    Returns:
        u8 `[H, W, 3]`; the input is left alone.
    """
    result = image.copy()
    inside = mask.astype(bool)
    tint = np.array(colour, np.float32)
    result[inside] = (0.5 * result[inside] + 0.5 * tint).astype(np.uint8)
    edges, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(image.shape[:2]) / 250))
    return cv2.drawContours(result, edges, -1, colour, thickness)
