"""Reads masks from image files, as they look.

What counts is what the file shows to a person, not which numbers it stores: its palette is applied, and
a TIFF that is white at zero is inverted. The region is found in this order:

1. A threshold that the dataset or the user states: the region has the levels (0..255) from it on.
2. Alpha, where it varies (cut-outs): the more opaque of two levels.
3. The brighter of exactly two levels or colours; 0 and 1 are two levels as well.
4. A mask of one level or colour is empty at zero, else it covers the whole image, which is noted.

Anything else (soft borders, maps of several objects) is refused, with the cure.
"""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from refseg_jax.images import orientation
from refseg_jax.images.decoding import MAX_PIXELS, ImageError
from refseg_jax.images.kinds import kind_of
from refseg_jax.images.png import check_png
from refseg_jax.images.samples import DepthError, is_deep, is_inverted, to_levels
from refseg_jax.images.tiff import check_tiff

#: Notes of a build.
EVERYTHING = "masks that cover the whole image"
CORNERS = "masks that cover all four corners of the image, as inverted ones do"

#: Formats that store masks exactly, except for a TIFF that holds a JPEG.
_MASKS = ("PNG", "BMP", "GIF", "TIFF")

#: Cures.
_WHITE = "save it white on black"
_CUT = (
    "save it black and white, or say from which level on (1 to 255) it counts: --mask_threshold=128 or "
    '"threshold": 128 in its line'
)
_EACH = ". Of several objects, write a mask each"

#: Alpha of this level and more cannot be told from opaque.
_OPAQUE = 250
#: Colours whose channels differ by at most this are grey; greys up to it are black.
_GREY = 24
#: Brightness by which the brighter of two colours must differ, neither of which is black.
_APART = 64


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask that was read.

    Attributes:
        region: bool `[H, W]`.
        levels: levels (0..255) that occur in the map, if it was cut at a threshold; else empty.
        notes: notes of a build.
    """

    region: np.ndarray
    levels: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read_mask(
    data: bytes,
    *,
    name: str,
    threshold: int | None = None,
    brightness: bool = False,
    cure: str = "",
) -> Mask:
    """Reads a mask; the module describes how.

    Args:
        data: content of the file.
        name: its name, for errors.
        threshold: least level that belongs to the region, 1..255; 1 takes what is not zero. `None`
            finds the region by its look.
        brightness: whether the threshold is of the brightness even where alpha varies. Alpha then
            counts only where the brightness says nothing.
        cure: what to do about a wrong file, for messages; `""` for a cure of each kind.

    Raises:
        ImageError: the file is damaged, too large, of a format with lossy compression (for which a
            threshold above 1 is needed), or its region cannot be told.
    """
    lossy = threshold is not None and threshold > 1
    kind = kind_of(data)
    try:
        if kind is not None and not kind.reader:
            raise UnidentifiedImageError
        with Image.open(io.BytesIO(data), formats=(*_MASKS, *("JPEG",) * lossy)) as image:
            _check(image, name, cure, lossy)
            check_png(data)
            check_tiff(image, data)
            shown, alpha, depth = _channels(image, data, name, cure, exact=threshold is None)
            flag = orientation.exif_orientation(image.info.get("exif", b""))
    except ImageError:
        raise
    except UnidentifiedImageError:
        other = "damaged, or" if kind is None or kind.reader in _MASKS else f"is {kind.name},"
        what = f"{other} no {', '.join(_MASKS)}, which keep masks exactly"
        if kind is not None and kind.name == "JPEG":
            what = "a JPEG keeps no exact mask"
        own = kind.cure if kind is not None and "PNG" not in kind.cure else "save it as PNG"
        raise ImageError(f"{name}: {what}; {cure or own}") from None
    except DepthError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:  # Pillow raises many types of errors for damaged bytes.
        reason = " ".join(str(error).split())[:120]
        raise ImageError(
            f"{name}: the mask is damaged ({reason}); {cure or 'replace the file'}"
        ) from None
    values = _deciding(shown, alpha, name, cure, brightness=brightness)
    if threshold is None:
        mask = Mask(_brighter(values, name, cure))
    else:
        mask = _cut(values, threshold, name, cure)
    notes = (*_extent(mask.region), *(depth,) * bool(depth))
    return Mask(orientation.turn(mask.region, flag), mask.levels, notes)


def _extent(region: np.ndarray) -> tuple[str, ...]:
    """A note about a region that covers everything, or all corners."""
    if not region[:: max(len(region) - 1, 1), :: max(region.shape[1] - 1, 1)].all():
        return ()
    return (EVERYTHING,) if region.all() else (CORNERS,)


def _check(image: Image.Image, name: str, cure: str, lossy: bool) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels are too many; {cure or 'scale it down'}"
        )
    if not lossy and "jpeg" in str(image.info.get("compression", "")):
        raise ImageError(f"{name}: a JPEG keeps no exact mask; {cure or 'save it as PNG'}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{name}: has {frames} pictures, a mask is one; {cure or 'save it alone'}")


def _channels(
    image: Image.Image, data: bytes, name: str, cure: str, *, exact: bool
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """What a file shows, `[H, W]` or u8 `[H, W, 3]`, its alpha `[H, W]` or `None`, and a note.

    Args:
        exact: whether deep samples stay as they are, instead of becoming 8 bits.
    """
    clear: Any = image.info.get("transparency")
    if is_deep(image):
        samples = np.asarray(image) if exact or clear is not None else None
        alpha = None if clear is None or samples is None else samples != clear
        if not exact or samples is None:
            levels, note = to_levels(image, data, MAX_PIXELS)
            return levels, alpha, note
        if not np.isfinite(samples).all() or samples.min() < 0:
            raise ImageError(
                f"{name}: has values below zero or none at all (NaN); "
                f"{cure or 'save it black and white, with 8 bits'}"
            )
        # Only the order of the values counts here. All white is 0 where white is zero.
        shown = (samples.max() or 1) - samples if is_inverted(image) else samples
        return shown, alpha, ""
    if image.mode in ("1", "L") and clear is None:
        return np.asarray(image.convert("L")), None, ""
    pixels, note = to_levels(image, data, MAX_PIXELS)
    # Where two levels are wanted, their scale does not count.
    note = "" if exact else note
    if image.mode == "P" and clear is None and (pixels == pixels[0, 0]).all():
        # A palette of one colour shows nothing, and leaves the stored numbers.
        stored = np.asarray(image)
        return (stored if stored.any() and not stored.all() else pixels.max(-1)), None, ""
    has_alpha = clear is not None or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if has_alpha else None
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., 0], alpha, note
    return pixels, alpha, note


def _deciding(
    shown: np.ndarray, alpha: np.ndarray | None, name: str, cure: str, *, brightness: bool
) -> np.ndarray:
    """The channel that has the region: alpha where it varies, else what is shown."""
    if alpha is None or alpha.min() == alpha.max() or alpha.min() >= _OPAQUE:
        nothing = alpha is not None and not alpha.any() and not brightness
        return np.zeros_like(shown) if nothing else shown
    codes = _codes(shown)
    visible = codes[alpha > 0]
    low, high = visible.min(), visible.max()
    if brightness:
        return shown if shown.ndim == 2 and low < high else alpha
    if low < high and ((visible == low) | (visible == high)).all():
        opaque = alpha == alpha.max()
        if not any(np.array_equal((codes == c) & (alpha > 0), opaque) for c in (low, high)):
            raise ImageError(
                f"{name}: its alpha shows one region and its colours another; "
                f"{cure or _WHITE + ', without alpha'}"
            )
    return alpha


def _codes(values: np.ndarray) -> np.ndarray:
    """Levels or colours as one number a pixel, `[H, W]`."""
    if values.ndim == 2:
        return values
    codes = values[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= 8
        codes |= values[..., channel]
    return codes


def _cut(values: np.ndarray, threshold: int, name: str, cure: str) -> Mask:
    if values.ndim == 3:
        if threshold > 1:
            raise ImageError(f"{name}: is in colour, such a map is grey; {cure or 'save it grey'}")
        values = values.max(-1)
    levels = values.astype(np.uint8) * 255 if values.dtype == bool else values
    occurring = tuple(np.flatnonzero(np.bincount(levels.ravel(), minlength=256)).tolist())
    if threshold > 1 and occurring[-1] == 1:
        raise ImageError(
            f"{name}: holds 0 and 1 instead of 0..255; {cure or 'leave the threshold out'}"
        )
    return Mask(levels >= threshold, occurring)


def _brighter(values: np.ndarray, name: str, cure: str) -> np.ndarray:
    """The brighter of two levels or colours; of one, nothing at zero and else everything."""
    codes, coloured = _codes(values), values.ndim == 3
    low, high = codes.min(), codes.max()
    if low == high:
        return np.full(codes.shape, bool(high > 0))
    is_high = codes == high
    if not (is_high | (codes == low)).all():
        number = str(len(np.unique(codes))) if codes.size < 1 << 22 else "many"
        what, own = ("colours", _WHITE) if coloured else ("levels", _CUT)
        raise ImageError(f"{name}: shows {number} {what}, a mask two; {cure or own + _EACH}")
    if not coloured:
        return is_high
    first = _is_brighter(*(tuple(values[codes == code][0].tolist()) for code in (high, low)))
    if first is None:
        raise ImageError(
            f"{name}: shows two colours, and not which of them is the background; {cure or _WHITE}"
        )
    return is_high if first else ~is_high


def _is_brighter(one: tuple[int, ...], other: tuple[int, ...]) -> bool | None:
    """Whether the first of two colours is clearly the brighter; `None` if that cannot be told.

    A colour on white, or on grey, is not: people draw so with the colour as the region.
    """
    brightness = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (one, other)]
    first = brightness[0] > brightness[1]
    bright, dark = (one, other) if first else (other, one)
    is_grey = [max(colour) - min(colour) <= _GREY for colour in (bright, dark)]
    if brightness[0] == brightness[1]:
        return None
    if all(is_grey) or max(dark) <= _GREY:
        return first
    if is_grey[0] or abs(brightness[0] - brightness[1]) < _APART:
        return None
    return first
