"""How much memory a picture takes while it is decoded, measured in a process of its own."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.images.kinds import kind_of

if not Path("/proc/self/status").is_file():
    pytest.skip("memory is read from /proc", allow_module_level=True)

HEIGHT, WIDTH = 4000, 5000

_MEASURE = """
import sys
from pathlib import Path
from refseg_jax.images.decoding import decode_image

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

data = Path(sys.argv[1]).read_bytes()
decode_image(b"P5 1 1 255\\n\\0", name="warm")
before = status("VmRSS")
pixels = decode_image(data, name="x")
print((status("VmHWM") - before) / (pixels.shape[0] * pixels.shape[1]))
"""


def _picture(kind: str) -> bytes:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = ((x // 16 + y // 16) % 200).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, options = {
        "JPEG": (np.dstack([grey] * 3), {"exif": exif}),
        "PNG": (np.dstack([grey] * 3), {"compress_level": 1}),
        "16 bits": (grey * np.uint16(16), {"compress_level": 1}),
        "floats": ((grey / 255).astype(np.float32), {"compression": "tiff_adobe_deflate"}),
        "WEBP": (np.dstack([grey] * 3), {"quality": 10, "method": 0}),
        "AVIF": (np.dstack([grey] * 3), {"quality": 20, "speed": 10}),
        "HEIF": (np.dstack([grey] * 3), {"quality": 20, "enc_params": {"preset": "ultrafast"}}),
    }[kind]
    buffer = io.BytesIO()
    form = {"16 bits": "PNG", "floats": "TIFF"}.get(kind, kind)
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        *(("JPEG", 8), ("PNG", 8), ("16 bits", 8), ("floats", 8)),
        *(("WEBP", 16), ("AVIF", 16), ("HEIF", 16)),
    ],
)
def test_a_picture_takes_few_bytes_a_pixel(kind: str, bound: float, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not kind_of(b"\0\0\0\x0cftypavif").reader:
        pytest.skip("this Pillow reads no AVIF")
    file.write_bytes(_picture(kind))
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(file)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    # Pages and the decoders' own buffers add a little.
    assert float(run.stdout) < bound + 1
