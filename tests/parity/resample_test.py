"""CRIS's and UniLSeg's resampling of masks with torch and OpenCV, and ours: a letterbox and back."""

import cv2
import numpy as np
import pytest

from refseg_jax.images.preprocess import letterbox_affine, prepare_mask
from refseg_jax.images.resize import Resample, logits_on_canvas

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.parity

#: OpenCV before version 5 rounds positions to 1/32 pixel.
ROUNDS = int(cv2.__version__.split(".")[0]) < 5


@pytest.mark.parametrize("shape", [(480, 640), (333, 500), (640, 427), (37, 91), (416, 416)])
@pytest.mark.parametrize(
    ("resample", "size", "stride"),
    [("cris", 416, 4), ("cris", 96, 2), ("cris", 416, 1), ("unilseg", 480, 4), ("unilseg", 480, 1)],
)
def test_masks_are_those_of_the_public_codes(
    shape: tuple[int, int], resample: Resample, size: int, stride: int
) -> None:
    height, width = shape
    rng = np.random.default_rng(0)
    cells = size // stride
    rough = rng.normal(0, 40, (cells, cells)).astype(np.float32)
    logits = cv2.GaussianBlur(rough, (0, 0), 3)
    likely = torch.from_numpy(logits)[None, None]
    if resample == "cris":
        likely = torch.sigmoid(likely)
    if stride > 1:
        mode = "bicubic" if resample == "cris" else "bilinear"
        likely = torch.nn.functional.interpolate(
            likely, size=(size, size), mode=mode, align_corners=True
        )
    if resample == "unilseg":
        likely = torch.sigmoid(likely)
    affine = letterbox_affine(height, width, size)
    back = cv2.invertAffineTransform(affine.astype(np.float64))
    full = likely[0, 0].numpy()
    theirs = cv2.warpAffine(full, back, (width, height), flags=cv2.INTER_CUBIC, borderValue=0.0)
    canvas = np.asarray(
        logits_on_canvas(logits[None, None, None], affine[None, None], stride, (640, 640), resample)
    )
    mine = 1.0 / (1.0 + np.exp(-canvas[0, 0, 0, :height, :width].astype(np.float64)))
    steepest = max(np.abs(np.diff(full, axis=axis)).max() for axis in (0, 1))
    bar = 2 * steepest / 64 if ROUNDS else 0.0
    np.testing.assert_allclose(mine, np.clip(theirs, 0, 1), atol=bar + 2e-4)
    differ = ((mine > 0.35) != (theirs > 0.35)).mean()
    assert differ <= (1e-2 if ROUNDS else 1e-4)
    assert 0.1 < (theirs > 0.35).mean() < 0.9


@pytest.mark.parametrize(("size", "stride"), [(416, 4), (96, 2), (480, 1)])
def test_nearest_targets_are_those_of_torch(size: int, stride: int) -> None:
    mask = (np.random.default_rng(1).random((300, 411)) < 0.5).astype(np.uint8)
    affine = letterbox_affine(300, 411, size)
    fine = torch.from_numpy(prepare_mask(mask, affine, size, 1).astype(np.float32))[None, None]
    theirs = torch.nn.functional.interpolate(fine, (size // stride,) * 2, mode="nearest")
    found = prepare_mask(mask, affine, size, stride, "nearest")
    np.testing.assert_array_equal(found, theirs[0, 0].numpy())
