"""Reads masks from image files."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from refseg_jax.images.decoding import MAX_PIXELS, ImageError

#: Formats that store masks exactly, except for a TIFF that holds a JPEG.
_MASKS = ("PNG", "BMP", "GIF", "TIFF")


def read_mask(data: bytes, *, name: str) -> np.ndarray:
    """Reads a mask, bool `[H, W]`: true where the stored value is not zero.

    Only stored values count: the palette of the file is not applied, and its alpha is ignored.

    Args:
        data: content of the file.
        name: its name, for errors.

    Raises:
        ImageError: the file is damaged, too large, or of a format with lossy compression.
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
    except Exception as error:  # Pillow raises many types of errors for damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ImageError(f"{name}: the mask is damaged ({reason}); replace the file") from None
    return np.asarray(values.any(-1) if values.ndim == 3 else values != 0)
