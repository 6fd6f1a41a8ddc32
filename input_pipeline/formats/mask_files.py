"""Masks that are image files of their own."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from refseg_jax.images.preprocess import MAX_PIXELS, ImageError

#: Formats that keep every pixel of a mask as it was (a TIFF may hold a JPEG, which does not).
_MASKS = ("PNG", "BMP", "GIF", "TIFF")


def read_mask(data: bytes, *, name: str) -> np.ndarray:
    """bool `[H, W]`, true where a mask's file is not zero (its palette and its alpha do not count).

    Raises:
        ImageError: it is damaged, too large, or of a format whose compression smears zeros.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_MASKS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels are too many")
            if "jpeg" in str(image.info.get("compression", "")):
                raise ImageError(f"{name}: a JPEG keeps no exact mask; save it as PNG")
            values = np.asarray(image)
            if image.mode in ("LA", "RGBA"):
                values = values[..., :-1]
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: damaged, or no {', '.join(_MASKS)}, which keep masks exactly; save it as PNG"
        ) from None
    except Exception as error:  # Pillow raises whatever it likes on damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ImageError(f"{name}: the mask is damaged ({reason}); replace the file") from None
    return np.asarray(values.any(-1) if values.ndim == 3 else values != 0)
