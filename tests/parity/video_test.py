"""J and F of each frame against vos-benchmark, which carries DAVIS 2017's evaluation."""

import numpy as np
import pytest

from refseg_jax.evaluation.protocols import video

benchmark = pytest.importorskip("vos_benchmark.evaluator", reason="vos-benchmark is not installed")

pytestmark = pytest.mark.parity


def _video(rng: np.random.Generator, size: tuple[int, int], frames: int) -> np.ndarray:
    """Boxes that grow, wander, leave the image, fill it and go: bool `[frames, h, w]`."""
    masks = np.zeros((frames, *size), bool)
    for mask in masks[:-2]:
        top, left = (int(rng.integers(-5, length)) for length in size)
        mask[max(top, 0) : top + size[0] // 2, max(left, 0) : left + size[1] // 2] = True
        mask &= rng.random(size) < rng.choice([1.0, 0.98])
    masks[-2] = True
    return masks


def _frames(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first, second = _video(rng, size, 16), _video(rng, size, 16)
    near = np.roll(first, 2, axis=1)
    return np.concatenate([first, first, first]), np.concatenate([second, near, first[::-1]])


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (5, 7), (40, 31), (120, 214), (300, 420)])
def test_frames_have_the_published_numbers(size: tuple[int, int]) -> None:
    for seed in range(max(2, 40 // max(size))):
        targets, predictions = _frames(seed, size)
        evaluator = benchmark.Evaluator()
        # It does not know of an object before it is seen: the first frame shows it.
        targets[0, 0, 0] = True
        for prediction, target in zip(predictions, targets, strict=True):
            evaluator.feed_frame(prediction.astype(np.uint8), target.astype(np.uint8))
        pairs = list(zip(predictions, targets, strict=True))
        j, f = (
            [measure(*pair) for pair in pairs]
            for measure in (video.region_similarity, video.contour_accuracy)
        )
        np.testing.assert_allclose(j, evaluator.object_iou[1], rtol=0, atol=1e-9)
        np.testing.assert_allclose(f, evaluator.boundary_f[1], rtol=0, atol=1e-9)
        published = [score[1] / 100 for score in evaluator.conclude()]
        added = [video.video_sums(*pair) for pair in pairs]
        sums = {name: sum(one[name] for one in added) for name in ("J", "F")}
        scores = video.video_scores({"video/0": {**sums, "count": len(pairs)}})
        expected = {"J": published[0], "F": published[1], "JF": sum(published) / 2}
        assert scores == pytest.approx(expected, rel=0, abs=1e-9)
