"""TensorBoard event files, written without TensorFlow.

`tensorboardX` would do the same but imports torch if that is installed, so this module encodes the few
messages that are needed. An event file is a sequence of records (length, its masked CRC-32C, protocol
buffer, its masked CRC-32C). The fields are those of `event.proto` in TensorFlow's `core/util` and of
`summary.proto` in its `core/framework`.
"""

import os
import socket
import struct
import time
from pathlib import Path

import cv2
import numpy as np

_FLUSH_SECONDS = 10.0
_RGB = 3
_DT_STRING = 7
_SESSION_START = 1


class EventFile:
    """One event file, new in every process. Writing flushes it every 10 s."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder and the file.

        Raises:
            OSError: they cannot be created.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        number = len(list(folder.glob(f"{name}.*")))
        self._file = (folder / f"{name}.{number}").open("xb")
        self._flushed = time.monotonic()
        self._write(_text(3, "brain.Event:2"), step=0)
        self.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point for each name."""
        self._summary(step, [_text(1, tag) + _float(2, v) for tag, v in values.items()])

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Adds a picture, u8 `[H, W, 3]` RGB."""
        _, png = cv2.imencode(".png", image[..., ::-1])
        height, width = image.shape[:2]
        message = _varint(1, height) + _varint(2, width) + _varint(3, _RGB)
        self._summary(step, [_text(1, tag) + _bytes(4, message + _bytes(4, png.tobytes()))])

    def text(self, step: int, tag: str, text: str) -> None:
        """Adds a text in Markdown."""
        metadata = _bytes(1, _text(1, "text"))
        shape = _bytes(2, _varint(1, 1))
        tensor = _varint(1, _DT_STRING) + _bytes(2, shape) + _text(8, text)
        self._summary(step, [_text(1, tag) + _bytes(8, tensor) + _bytes(9, metadata)])

    def restart_at(self, step: int) -> None:
        """Tells TensorBoard to drop this step and later ones of earlier files."""
        self._write(_bytes(7, _varint(1, _SESSION_START)), step=step)
        self.flush()

    def flush(self) -> None:
        """Passes all events to the operating system."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()

    def _summary(self, step: int, values: list[bytes]) -> None:
        self._write(_bytes(5, b"".join(_bytes(1, value) for value in values)), step=step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _write(self, what: bytes, *, step: int) -> None:
        event = _double(1, time.time()) + _varint(2, step) + what
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _varint_bytes(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(field: int, value: int) -> bytes:
    return _varint_bytes(field << 3) + _varint_bytes(value)


def _double(field: int, value: float) -> bytes:
    return _varint_bytes(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint_bytes(field << 3 | 2) + _varint_bytes(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _float(field: int, value: float) -> bytes:
    # numpy turns numbers that are too large for f32 into infinity; struct would raise.
    with np.errstate(over="ignore"):
        return _varint_bytes(field << 3 | 5) + np.float32(value).tobytes()


def _crc_table() -> tuple[int, ...]:
    """Remainders of every byte for CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    """The CRC, rotated and with a constant added, as the format demands: data may contain CRCs."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
