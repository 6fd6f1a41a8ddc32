"""Frames of files whose distances vary, and of files that were cut off."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli.frames import RATES, Frame, open_video
from refseg_jax.cli.video import write_overlay
from refseg_jax.images.decoding import Decoded, ImageError

WIDTH, HEIGHT = 48, 32


def _element(ident: str, *content: bytes) -> bytes:
    data = b"".join(content)
    return bytes.fromhex(ident) + struct.pack(">Q", len(data) | 1 << 56) + data


def _number(ident: str, value: int) -> bytes:
    return _element(ident, struct.pack(">Q", value))


def matroska(times: Sequence[int], duration: int) -> bytes:
    """A Matroska file (RFC 9559) of JPEG pictures that are shown at these times, in milliseconds."""
    head = _element(
        "1A45DFA3", _element("4282", b"matroska"), _number("4287", 4), _number("4285", 2)
    )
    info = _element(
        "1549A966", _number("2AD7B1", 1_000_000), _element("4489", struct.pack(">d", duration))
    )
    shape = _element("E0", _number("B0", WIDTH), _number("BA", HEIGHT))
    kind = (_number("D7", 1), _number("73C5", 1), _number("83", 1), _element("86", b"V_MJPEG"))
    clusters = []
    for number, time in enumerate(times):
        file = io.BytesIO()
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 5 * number, np.uint8)).save(file, "JPEG")
        block = _element("A3", b"\x81\0\0\x80", file.getvalue())
        clusters.append(_element("1F43B675", _number("E7", time), block))
    track = _element("1654AE6B", _element("AE", *kind, shape))
    return head + _element("18538067", info, track, *clusters)


def frames_of(path: Path) -> list[str]:
    """The names of the frames that can be read."""
    names = []
    for frame in open_video(path):
        assert frame.read().pixels.shape == (HEIGHT, WIDTH, 3)
        names.append(frame.name)
    return names


def test_folders_among_the_frames_are_named_without_a_flag_that_videos_have_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "0.png")
    assert open_video(tmp_path).notes == [f"note: {tmp_path}/out: not entered"]


@pytest.mark.parametrize("rate", RATES)
def test_the_rates_that_are_allowed_can_be_written(tmp_path: Path, rate: float) -> None:
    decoded = Decoded(np.zeros((HEIGHT, WIDTH, 3), np.uint8), False, ())
    path, frame = tmp_path / "o.mp4", Frame("0", lambda: decoded)
    write_overlay(path, [frame] * 3, lambda _: [np.ones((HEIGHT, WIDTH), bool)], rate)
    assert len(frames_of(path)) == 3


def test_frames_at_varying_distances_are_all_of_a_file(tmp_path: Path) -> None:
    """OpenCV states 151 frames: six seconds of 25 a second."""
    path = tmp_path / "screen.mkv"
    path.write_bytes(matroska([0, 40, 80, 1000, 3000, 3040, 6000], 6040))
    assert frames_of(path) == [f"{number:06d}" for number in range(7)]


@pytest.mark.parametrize("times", [range(0, 2000, 40), [0, 40, 80, 1000, 1200, 1900, 1960]])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, times: Sequence[int]) -> None:
    path = tmp_path / "clip.mkv"
    whole = matroska(times, 2000)
    path.write_bytes(whole)
    assert len(frames_of(path)) == len(times)
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(ImageError, match=r"clip\.mkv: ends after \d+ of 50 frames; it was cut off"):
        frames_of(path)
