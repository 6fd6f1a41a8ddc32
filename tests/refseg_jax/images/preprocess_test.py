"""Decoding of good and bad files, and the two ways of resizing against slow formulas."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from input_pipeline.schema import Record
from input_pipeline.transforms import Decode, Example, Frame
from refseg_jax.images import preprocess
from refseg_jax.images.preprocess import ImageError, decode_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def _encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _smooth() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([2 * x + y, 3 * y, 255 - 2 * x - 2 * y], -1).clip(0, 255).astype(np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A sound PNG header and no pixels: whoever decodes before checking the size fails otherwise."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(_encode(NOISE, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _refusal(data: bytes, **options: int) -> str:
    """The message; it must be one line that begins with the name."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, name="cats/7.jpg", **options)
    message = str(caught.value)
    assert message.startswith("cats/7.jpg: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_files_give_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(_encode(NOISE, kind, **options), name=kind), NOISE)


def test_a_jpeg_is_rgb_and_close_to_its_original() -> None:
    found = decode_image(_encode(_smooth(), "JPEG", quality=95), name="x")
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - _smooth()).mean() < 3


def test_orientation_is_ignored_as_annotations_expect() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # A viewer would turn it by 90 degrees.
    for kind in ("JPEG", "PNG"):
        assert decode_image(_encode(NOISE, kind, exif=exif), name="x").shape == NOISE.shape


def test_other_modes_become_rgb() -> None:
    grey = NOISE[..., 0]
    expected = np.repeat(grey[..., None], 3, 2)
    alpha = np.dstack([NOISE, RNG.integers(0, 256, grey.shape, np.uint8)])
    palette = Image.fromarray(grey // 4, "L").convert("P")
    for found, wanted in [
        (_encode(grey, "PNG"), expected),
        (_encode(np.dstack([grey, alpha[..., 3]]), "PNG"), expected),
        (_encode(alpha, "PNG"), NOISE),
        (_encode(palette, "PNG"), expected // 4),
        (_encode(palette, "PNG", transparency=bytes(range(64))), expected // 4),
        (_encode(Image.fromarray(grey > 127), "PNG"), (expected > 127) * np.uint8(255)),
    ]:
        np.testing.assert_array_equal(decode_image(found, name="x"), wanted)
    for mode in ("L", "CMYK"):
        image = Image.fromarray(_smooth()).convert(mode)
        found = decode_image(_encode(image, "JPEG", quality=95), name="x").astype(int)
        assert np.abs(found - np.asarray(image.convert("RGB"))).mean() < 3


@pytest.mark.parametrize("brightest", [65535, 200])
def test_sixteen_bits_are_scaled_alike_in_bright_and_dark_images(brightest: int) -> None:
    grey = np.linspace(0, brightest, 2400).reshape(40, 60).astype(np.uint16)
    expected = np.round(grey / 65535 * 255)
    for kind in ("PNG", "TIFF"):
        found = decode_image(_encode(grey, kind), name="x")
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))


def test_numbers_that_no_pixel_can_have_are_clipped() -> None:
    values = np.array([[np.nan, -300.0, 1e9, 65535.0]], np.float32)
    found = decode_image(_encode(values, "TIFF"), name="x")
    assert found[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    data = _encode(NOISE, kind)
    assert "replace the file" in _refusal(data[: int(share * len(data))])


def test_a_jpeg_without_its_last_two_bytes_is_refused() -> None:
    assert "replace" in _refusal(_encode(NOISE, "JPEG")[:-2])


@pytest.mark.parametrize("seed", range(10))
def test_a_jpeg_with_rotten_bits_is_refused(seed: int) -> None:
    data = bytearray(_encode(NOISE, "JPEG"))
    rng = np.random.default_rng(seed)
    for place in rng.integers(data.index(b"\xff\xda") + 14, len(data) - 2, 30):
        data[place] ^= 1 << int(rng.integers(8))
    assert "damaged" in _refusal(bytes(data))


def test_any_single_flipped_bit_of_a_jpeg_gives_pixels_or_a_refusal() -> None:
    data = _encode(_smooth(), "JPEG")
    refused = 0
    for place in range(0, 8 * len(data), 37):
        rotten = bytearray(data)
        rotten[place // 8] ^= 1 << place % 8
        try:
            found = decode_image(bytes(rotten), name="x")
        except ImageError:
            refused += 1
        else:
            assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)
    assert refused


def test_any_single_flipped_bit_of_png_pixels_is_noticed() -> None:
    data = _encode(NOISE, "PNG")
    body = data.index(b"IDAT") + 4
    for place in range(8 * body, 8 * (len(data) - 16), 5003):
        rotten = bytearray(data)
        rotten[place // 8] ^= 1 << place % 8
        _refusal(bytes(rotten))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "no known format"),
        (b"<html><body>404</body></html>", "no known format"),
        (b"\xff\xd8", "damaged"),
        (b"\xff\xd8\xff" + bytes(1000), "damaged"),
        (_png_header(0, 5), "damaged"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    assert reason in _refusal(data)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (_png_header, 7_500),
        (_png_header, 10_000),  # Pillow warns.
        (_png_header, 50_000),  # Pillow raises.
        (_jpeg_claiming, 60_000),
    ],
)
def test_a_bomb_is_known_by_its_header(make: Callable[[int, int], bytes], side: int) -> None:
    message = _refusal(make(side, side))
    assert "pixels" in message
    assert message.endswith("scale the image down") or message.endswith("scale it down")


def test_the_bound_of_pixels_is_inclusive() -> None:
    for kind in ("PNG", "JPEG"):
        data = _encode(NOISE, kind)
        assert decode_image(data, name="x", max_pixels=2400).shape == (40, 60, 3)
        assert "60 x 40 pixels" in _refusal(data, max_pixels=2399)


def test_an_image_of_another_size_than_its_masks_is_refused() -> None:
    record = Record(_encode(NOISE, "PNG"), "7", "7.png", 60, 40, "pool/a", (), ())
    example = Example("0", (Frame(record, ()),), ())
    with pytest.raises(ImageError, match=r"7\.png.*60 x 40, its masks are 40 x 60") as caught:
        Decode()(example, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def _cris_affine(height: int, width: int, size: int) -> np.ndarray:
    """CRIS's `getTransformMat`: the map that takes these three points to those, by equations."""
    scale = min(size / height, size / width)
    new_height, new_width = height * scale, width * scale
    x, y = (size - new_width) / 2.0, (size - new_height) / 2.0
    source = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1]], np.float64)
    target = np.array([[x, y], [new_width + x, y], [x, new_height + y]], np.float64)
    return np.linalg.solve(source, target).T


@pytest.mark.parametrize("shape", [(480, 640), (640, 427), (37, 1000), (1, 1), (416, 416)])
def test_letterbox_is_the_map_of_cris(shape: tuple[int, int]) -> None:
    found = preprocess.letterbox_affine(*shape, 416)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _cris_affine(*shape, 416), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(480, 640), (3, 5)])
def test_stretch_takes_edges_to_edges(shape: tuple[int, int]) -> None:
    """A pixel is a square of side 1 around its index, so an image begins at -0.5."""
    affine = preprocess.stretch_affine(*shape, 416)
    corners = np.array([[-0.5, -0.5, 1], [shape[1] - 0.5, shape[0] - 0.5, 1]])
    np.testing.assert_allclose(corners @ affine.T, [[-0.5, -0.5], [415.5, 415.5]], atol=1e-4)


def test_another_way_of_resizing_is_an_error() -> None:
    with pytest.raises(ValueError, match="squeeze"):
        preprocess.make_affine(4, 4, 8, "squeeze")  # pyright: ignore[reportArgumentType]


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _warp(
    image: np.ndarray,
    affine: np.ndarray,
    size: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    border: np.ndarray,
) -> np.ndarray:
    """Every output pixel as the sum over all input pixels; beyond the image it is `border`."""
    pad = 2 * size
    height, width = image.shape[:2]
    wide = np.tile(border.astype(np.float64), (height + 2 * pad, width + 2 * pad, 1))
    wide[pad : pad + height, pad : pad + width] = image
    steps = np.arange(size)
    source_x = (steps - affine[0, 2]) / affine[0, 0]
    source_y = (steps - affine[1, 2]) / affine[1, 1]
    rows = kernel(source_y[:, None] - (np.arange(wide.shape[0]) - pad))
    columns = kernel(source_x[:, None] - (np.arange(wide.shape[1]) - pad))
    return np.einsum("yi,ijc,xj->yxc", rows, wide, columns, optimize=True)


def _waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * 5), np.cos(y / height * 6), np.sin((x + y) / (height + width) * 9)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(9, 16), (24, 10), (90, 120)])
def test_letterboxed_images_are_warped_bicubically(shape: tuple[int, int]) -> None:
    """OpenCV 4 rounds positions to 1/32 pixel, hence a smooth image and 3 levels; a shift of half a
    native pixel would be off by 4 to 77."""
    image = _waves(*shape)
    found, affine = preprocess.prepare_image(image, 64, "letterbox")
    mean = np.array([0.48145466, 0.4578275, 0.40821073]) * 255
    expected = _warp(image, preprocess.letterbox_affine(*shape, 64), 64, _cubic, mean)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    np.testing.assert_array_equal(affine, preprocess.letterbox_affine(*shape, 64))
    assert np.abs(found - expected.clip(0, 255)).max() < 3


def _triangle(length: int, size: int) -> np.ndarray:
    """Pillow's bilinear weights `[size, length]`: a triangle around the output pixel's centre, one
    input pixel wide on either side where the image grows, one output pixel where it shrinks."""
    ratio = length / size
    centres = (np.arange(size) + 0.5) * ratio
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None])
    weights = np.maximum(1 - distance / max(ratio, 1.0), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(9, 16), (24, 10), (90, 120), (300, 64), (1, 1)])
def test_stretched_images_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    """Noise, of which a kernel that skips pixels would keep the whole contrast. Pillow rounds after
    each axis: one level."""
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    found, affine = preprocess.prepare_image(image, 64, "stretch")
    rows, columns = _triangle(shape[0], 64), _triangle(shape[1], 64)
    expected = np.einsum("yi,ijc,xj->yxc", rows, image, columns, optimize=True)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    np.testing.assert_array_equal(affine, preprocess.stretch_affine(*shape, 64))
    assert np.abs(found - expected).max() <= 1.01


def test_letterbox_borders_have_the_mean_colour() -> None:
    found, _ = preprocess.prepare_image(np.zeros((10, 40, 3), np.uint8), 64, "letterbox")
    np.testing.assert_array_equal(found[:20], np.broadcast_to([123, 117, 104], (20, 64, 3)))
    assert not found[27:36, :62].any()


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("wide", [True, False])
def test_sides_may_exceed_16_bits(wide: bool, resize: preprocess.Resize) -> None:
    """OpenCV 4 warps nothing with a side above 32,766. The second half is white, in both axes."""
    image = np.zeros((600, 40_000, 3), np.uint8)
    image[:, 20_000:] = 255
    turned = image if wide else np.ascontiguousarray(image.transpose(1, 0, 2))
    found, affine = preprocess.prepare_image(turned, 64, resize)
    mask = preprocess.prepare_mask((turned[..., 0] > 0).astype(np.uint8), affine, 64, 1)
    across = found[32] if wide else found[:, 32]
    covered = mask[32] if wide else mask[:, 32]
    assert (across[:31] <= 1).all()
    assert (across[33:63] >= 254).all()
    assert not covered[:31].any()
    assert (covered[33:63] >= 250).all()


def test_an_image_of_the_right_size_is_left_alone() -> None:
    square = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    for resize in ("letterbox", "stretch"):
        found, affine = preprocess.prepare_image(square, 64, resize)
        np.testing.assert_array_equal(found, square)
        np.testing.assert_array_equal(affine, np.eye(2, 3))


@pytest.mark.parametrize("shape", [(9, 16), (50, 37), (64, 64)])
def test_a_nearest_mask_cell_holds_its_upper_left_pixel(shape: tuple[int, int]) -> None:
    mask = (RNG.random(shape) < 0.5).astype(np.uint8)
    affine = preprocess.letterbox_affine(*shape, 64)
    fine = preprocess.prepare_mask(mask, affine, 64, 1)
    found = preprocess.prepare_mask(mask, affine, 64, 4, "nearest")
    expected = [[fine[4 * i, 4 * j] for j in range(16)] for i in range(16)]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and found.dtype == np.uint8


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(9, 16), (50, 37), (64, 64)])
def test_a_mask_cell_holds_its_mean_coverage(
    shape: tuple[int, int], resize: preprocess.Resize
) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = ((x / shape[1] - 0.6) ** 2 + (y / shape[0] - 0.4) ** 2 < 0.1).astype(np.uint8)
    affine = preprocess.make_affine(*shape, 64, resize)
    found = preprocess.prepare_mask(mask, affine, 64, 4)
    full = _warp(255 * mask[..., None], affine, 64, _linear, np.zeros(1))[..., 0]
    expected = full.reshape(16, 4, 16, 4).mean((1, 3))
    assert (found.dtype, found.shape) == (np.uint8, (16, 16))
    assert np.abs(found - expected).max() < 6
    assert abs(found.mean() - expected.mean()) < 0.5


def test_masks_of_nothing_and_of_everything() -> None:
    affine = preprocess.letterbox_affine(32, 64, 64)
    assert not preprocess.prepare_mask(np.zeros((32, 64), np.uint8), affine, 64, 4).any()
    found = preprocess.prepare_mask(np.ones((32, 64), np.uint8), affine, 64, 4)
    np.testing.assert_array_equal(found[4:12], 255)
    assert not found[:4].any()
    assert not found[12:].any()


def test_a_format_that_runs_programs_is_not_opened():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "EPS")
    with pytest.raises(preprocess.ImageError, match=r"x\.eps: .*no known format"):
        preprocess.decode_image(buffer.getvalue(), name="x.eps")
