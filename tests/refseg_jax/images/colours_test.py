import jax.numpy as jnp
import numpy as np

from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalise


def test_normalise_is_torchvisions() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), np.uint8)
    for mean, std in [
        (CLIP_MEAN, CLIP_STD),
        (IMAGENET_MEAN, IMAGENET_STD),
    ]:
        found = normalise(jnp.asarray(image), mean, std)
        expected = (image.astype(np.float64) / 255 - mean) / std
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
