"""Tells the format of a picture by its content, and which formats are not read here.

The name of a file counts nowhere: `.jfif` is a JPEG, and a `.jpg` of a phone may be a HEIC.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

#: Bytes at the beginning of a file that tell its format.
HEAD = 1024

_SAVE = "save it as PNG or JPEG"
_HEIF_EXTRA = "pip install 'refseg_jax[heif]', or save it as JPEG"
_AVIF_PILLOW = "install Pillow 11.3 or newer, or save it as PNG"
_UNPACK, _DOWNLOAD = "unpack it", "download the picture itself"
_ITSELF = "give the picture itself, as PNG or JPEG"

#: Name of a video among the formats.
VIDEO = "a video"

#: Suffixes of files that were meant to be pictures, whatever they contain.
_SUFFIXES = re.compile(
    r"\.(a?png|avif|bmp|dib|gif|hei[cf]|hif|j2k|jp2|jpe|jpe?g|jfif|jxl|p[bfgnp]m|tga|tiff?|webp)",
    re.IGNORECASE,
)

#: Brands of an ISO media file (ISO/IEC 23008-12, annex B; AVIF specification, section 6): coded by AV1,
#: by HEVC, and by either.
_AV1 = (b"avif", b"avis")
_HEVC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_EITHER = (b"mif1", b"mif2", b"msf1", b"miaf")


class Kind(NamedTuple):
    """A format of pictures.

    Attributes:
        name: as people call it.
        reader: Pillow's name of the format, `"JPEG"` for what simplejpeg reads, or `""` if it is not
            read here.
        cure: what to do where it is not read.
        is_picture: whether such a file is one; a web page may only have the name of one.
    """

    name: str
    reader: str
    cure: str = _SAVE
    is_picture: bool = True

    @property
    def unread(self) -> str:
        """The reason and the cure where it is not read."""
        return f"{self.name} is not read here; {self.cure}"


#: Beginning -> format, of those that a few bytes tell.
_READ = (
    (rb"\xff\xd8", Kind("JPEG", "JPEG")),
    (rb"\x89PNG\r\n\x1a\n", Kind("PNG", "PNG")),
    (rb"RIFF....WEBP", Kind("WebP", "WEBP")),
    # The size of the header behind that of the file.
    (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", Kind("BMP", "BMP")),
    (rb"GIF8[79]a", Kind("GIF", "GIF")),
    (rb"P[1-6fF]\s(#[^\n]*\n|\s)*[0-9]", Kind("PPM", "PPM")),
)
_NOT_READ = (
    (rb"II\*\0.{4}CR|II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|....ftypcrx ", "a camera's raw file"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"8BPS", "a Photoshop file"),
    (rb"gimp xcf ", "a GIMP file"),
    (rb"\0\0\x01\0[\x01-\x20]\0", "an icon"),
    (rb"qoif", "QOI"),
    (rb"DDS \x7c", "DDS"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb".{128}DICM", "DICOM"),
    (rb"SIMPLE  = ", "FITS"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"P7\s", "PAM"),
    (rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]", "PCX"),
    (rb"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI", "a PNG of an iPhone's app (CgBI)"),
    (rb"(\xef\xbb\xbf)?\s*<([?!].*<)?svg[\s>]", "SVG"),
)
_TIFF = re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+")
#: Beginning, name and cure of what stands in the place of a picture, or holds one in another way.
_NO_PICTURES = (
    (rb"(?i:version https://git-lfs)", "a Git LFS pointer", "run git lfs pull"),
    (rb"(?i:\s*<(!doctype\s+)?html)", "a web page", _DOWNLOAD),
    (rb"(\xef\xbb\xbf)?\s*<\?xml(?!.*<svg)", "XML", _ITSELF),
    (rb"\s*[\[{]\s*[\"\[{]", "JSON", _ITSELF),
    (rb"\x93NUMPY", "a NumPy array", _SAVE),
    (rb"MATLAB [57]\.", "a MAT-file", _SAVE),
    (rb"\x89HDF\r\n\x1a\n", "HDF5", _SAVE),
    (rb".{344}(n\+1|ni1)\0", "NIfTI", _SAVE),
    (rb"%PDF-", "a PDF", _SAVE),
    (rb"....ftyp(mp4|iso|qt  |M4V|avc1|3gp)|RIFF....AVI |\x1a\x45\xdf\xa3", VIDEO, _SAVE),
    (rb"PK\x03\x04", "a zip archive (perhaps NumPy's .npz)", _UNPACK),
    (rb"\x1f\x8b", "a file that gzip compressed", _UNPACK),
    (rb"BZh[1-9]1AY&SY", "a file that bzip2 compressed", _UNPACK),
    (rb"\xfd7zXZ\0", "a file that xz compressed", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a file that zstd compressed", _UNPACK),
    (rb"data:image/|iVBORw0KGgo|/9j/[24]|R0lGOD|UklGR", "base64", "decode it"),
    # Line ends were changed, or bytes replaced by U+FFFD.
    (
        rb"\x89PNG(\n\x1a\n|\r\r\n)|(\xef\xbf\xbd){2}|\xef\xbf\xbdPNG",
        "a picture that was copied as text",
        "copy it as binary",
    ),
    (rb"\0{256}", "a file of zeros (of a copy that was cut off)", "copy it again"),
)
_BY_START = (
    *(
        (re.compile(start, re.DOTALL), Kind(name, "", cure, False))
        for start, name, cure in _NO_PICTURES
    ),
    *((re.compile(start, re.DOTALL), Kind(name, "")) for start, name in _NOT_READ),
    (_TIFF, Kind("TIFF", "TIFF")),
    *((re.compile(start, re.DOTALL), kind) for start, kind in _READ),
)


def has_suffix(name: str) -> bool:
    """Whether a file's name ends like that of a picture."""
    return _SUFFIXES.fullmatch(PurePosixPath(name).suffix) is not None


def kind_of(data: bytes) -> Kind | None:
    """The format of a picture.

    Args:
        data: content of the file, or its first `HEAD` bytes.

    Returns:
        The format, or `None` if the content is of no known one.
    """
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in range(8, _length_of_brands(data), 4)}
        major = data[8:12]
        if major in _AV1 or (major in _EITHER and brands & {*_AV1}):
            return Kind("AVIF", "AVIF" if _is_there(_avif) else "", _AVIF_PILLOW)
        if major in _HEVC or (major in _EITHER and brands & {*_HEVC}):
            return Kind("HEIC", "HEIF" if _is_there(_heif) else "", _HEIF_EXTRA)
        if major in _EITHER:
            return Kind("HEIF of another codec than HEVC and AV1", "")
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return Kind("TGA", "")
    return next((kind for start, kind in _BY_START if start.match(data[:HEAD])), None)


def _length_of_brands(data: bytes) -> int:
    return min(int.from_bytes(data[:4], "big"), len(data), HEAD)


def _is_there(plugin: Callable[[], bool]) -> bool:
    try:
        return plugin()
    except ImportError:
        return False


def _avif() -> bool:
    return importlib.import_module("PIL.AvifImagePlugin").SUPPORTED


def _heif() -> bool:
    """Registers the reader with Pillow; not before the first such file, since others need it not."""
    importlib.import_module("pillow_heif").register_heif_opener()
    return True
