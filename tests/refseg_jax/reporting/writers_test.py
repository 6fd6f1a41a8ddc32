"""`metrics.jsonl`, event files read back by tensorboardX's own messages, and the progress line."""

import errno
import io
import json
import math
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from refseg_jax.errors import UserError
from refseg_jax.reporting import event_file, writers
from refseg_jax.reporting.writers import (
    FileWriter,
    NullWriter,
    ProgressLine,
    format_duration,
    make_writer,
)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[FileWriter]:
    writer = FileWriter(tmp_path)
    yield writer
    writer.close()


def _lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _events(workdir: Path) -> list[event_pb2.Event]:
    """All events in the order of the files; the checksums are compared."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, end = data[12 : 12 + length], 16 + length
            assert data[8:12] == event_file._masked_crc(data[:8])
            assert data[12 + length : end] == event_file._masked_crc(event)
            events.append(event_pb2.Event.FromString(event))
            data = data[end:]
    return events


def test_crc_of_rfc_3720() -> None:
    """Appendix B.4: 32 bytes of zeros, of ones, and ascending."""
    assert event_file.crc32c(bytes(32)) == 0x8A9136AA
    assert event_file.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert event_file.crc32c(bytes(range(32))) == 0x46DD794E
    # TensorFlow's own lib/hash/crc32c_test masks the same way: rotate by 15, add 0xa282ead8.
    assert event_file._masked_crc(b"") == struct.pack("<I", 0xA282EAD8)


def test_scalars(writer: FileWriter, tmp_path: Path) -> None:
    writer.scalars(20, {"loss": np.float32(0.5), "val/mIoU": 0.25})
    writer.scalars(2**40, {"loss": 1e300})
    writer.flush()
    first, second = _lines(tmp_path)
    assert first.pop("time") == pytest.approx(second.pop("time"), abs=60)
    assert first == {"step": 20, "loss": 0.5, "val/mIoU": 0.25}
    assert second == {"step": 2**40, "loss": 1e300}
    version, one, two = _events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert one.step == 20
    assert {v.tag: v.simple_value for v in one.summary.value} == {"loss": 0.5, "val/mIoU": 0.25}
    assert two.step == 2**40
    assert two.summary.value[0].simple_value == math.inf


def test_not_finite_stays_json(writer: FileWriter, tmp_path: Path) -> None:
    writer.scalars(1, {"a": math.nan, "b": -math.inf, "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads(text, parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)
    assert line["not_finite"] == {"a": "nan", "b": "-inf"}


@pytest.mark.parametrize("name", ["step", "time", "not_finite"])
def test_reserved_names(writer: FileWriter, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        writer.scalars(1, {name: 1.0})
    assert _lines(tmp_path) == []


def test_resume_drops_later_lines(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path)
    for step in (10, 20, 30, 40):
        writer.scalars(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    writer = FileWriter(tmp_path)
    writer.truncate_after(20)
    for step in (30, 40):
        writer.scalars(step, {"loss": -step})
    writer.close()
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [
        (10, 10),
        (20, 20),
        (30, -30),
        (40, -40),
    ]
    restart = [e for e in _events(tmp_path) if e.HasField("session_log")]
    assert [(e.step, e.session_log.status) for e in restart] == [(21, event_pb2.SessionLog.START)]


def test_half_a_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "los')
    writer = FileWriter(tmp_path)
    writer.scalars(3, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 3]


def test_lines_of_others_do_not_stop_a_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nnot json\n[1]\n{"x": 2}\n\xff\n')
    writer = FileWriter(tmp_path)
    writer.truncate_after(1)
    writer.close()
    assert _lines(tmp_path) == [{"step": 1}]


def test_images_and_text(writer: FileWriter, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    writer.images(3, {"overlay": image})
    writer.text(3, {"config": "größe: 1"})
    _, picture, text = _events(tmp_path)
    value = picture.summary.value[0]
    assert (value.tag, value.image.height, value.image.width) == ("overlay", 5, 7)
    encoded = np.frombuffer(value.image.encoded_image_string, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], image)
    value = text.summary.value[0]
    assert value.metadata.plugin_data.plugin_name == "text"
    assert [s.decode() for s in value.tensor.string_val] == ["größe: 1"]
    assert value.tensor.tensor_shape.dim[0].size == 1


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), "u1")],
)
def test_images_of_another_kind(writer: FileWriter, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'x' is"):
        writer.images(0, {"x": image})


def test_full_disk_is_one_line(
    writer: FileWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._events, "scalars", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        writer.scalars(1, {"loss": 1.0})
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    null = make_writer(tmp_path / "run")
    assert isinstance(null, NullWriter)
    null.scalars(1, {"loss": 1.0})
    null.images(1, {})
    null.text(1, {})
    null.truncate_after(0)
    null.flush()
    null.close()
    assert not (tmp_path / "run").exists()
    stream = io.StringIO()
    progress = ProgressLine(10, stream=stream)
    _update(progress, 1)
    progress.close()
    assert stream.getvalue() == ""


def test_imports_neither_tensorflow_nor_torch() -> None:
    code = (
        "import sys, refseg_jax.reporting.writers, refseg_jax.checkpoints.checkpointer\n"
        "assert not {'tensorflow', 'torch', 'tensorboardX'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _update(progress: ProgressLine, step: int, loss: float = 0.5, quarantined: int = 0) -> None:
    progress.update(
        step, loss=loss, images_per_second=12.34, data_wait_share=0.016, quarantined=quarantined
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    yield now


def test_log_gets_a_line_from_time_to_time(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = ProgressLine(100, stream=stream, every=10.0)
    for step in range(41, 101):
        _update(progress, step, quarantined=int(step == 100))
        clock[0] += 1.0
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == [
        f"step {s:3d}" for s in (41, 51, 61, 71, 81, 91, 100)
    ]
    assert lines[0] == ("step  41/100  41 %  loss 0.5  12.3 images/s  waiting for data 2 %  ETA ?")
    assert lines[1].endswith("ETA 0:49")
    assert lines[-1].endswith("ETA 0:00  1 quarantined")


def test_the_share_of_the_peak_stands_beside_the_speed() -> None:
    stream = io.StringIO()
    progress = ProgressLine(9, stream=stream)
    rates = {"images_per_second": 12.34, "data_wait_share": 0.0}
    progress.update(2, loss=0.5, peak_share=0.3456, **rates)
    assert "  12.3 images/s  34.6 % of peak  waiting for data 0 %  " in stream.getvalue()


def test_the_first_step_has_no_speed() -> None:
    stream = io.StringIO()
    progress = ProgressLine(9, stream=stream)
    progress.update(1, loss=0.5, images_per_second=0.0, data_wait_share=1.0)
    assert stream.getvalue() == "step 1/9  11 %  loss 0.5  compiled  ETA ?\n"


def test_terminal_line_is_rewritten(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = _Terminal()
    progress = ProgressLine(3, stream=stream)
    for step in (1, 2, 3):
        _update(progress, step, loss=math.nan)
        clock[0] += 0.15
    progress.close()
    text = stream.getvalue()
    assert text.count("\x1b[2K") == 2
    assert text.endswith("\r\n")
    pieces = [piece.strip("\r\n") for piece in text.split("\x1b[2K")[1:]]
    assert [piece[:8] for piece in pieces] == ["step 1/3", "step 3/3"]
    assert all(len(piece) <= 39 for piece in pieces)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (754, "12:34"),
        (3723, "1:02:03"),
        (183845, "2d 03:04:05"),
        (math.nan, "?"),
        (math.inf, "?"),
        (-1, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
