import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from input_pipeline.formats import matfile
from input_pipeline.formats.matfile import MatError, load_mat

MASK = np.arange(12, dtype=np.uint8).reshape(3, 4) % 2


def structs(fields: list[str], *rows: tuple[Any, ...]) -> np.ndarray:
    """A struct array of one row, as MATLAB has it."""
    array: Any = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for number, row in enumerate(rows):
        array[0, number] = row
    return array


@pytest.mark.parametrize("compressed", [False, True])
def test_what_matlab_writes_comes_back(tmp_path, compressed):
    parts = structs(["part_name", "mask"], ("lear", MASK), ("tail", 1 - MASK))
    objects = structs(["class", "class_ind", "parts"], ("dog", 12.0, parts), ("cat", 8, []))
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = "größer", np.array([[1.5, -2]], np.float32)
    stored: dict[str, Any] = {
        "anno": structs(["imname", "objects"], ("2008_000002", objects)),
        "cells": cells,
        "large": np.arange(24, dtype=np.int32).reshape(2, 3, 4) - 70_000,
        "doubles": np.array([[0.25, 1e300]]),
        "logical": MASK.astype(bool),
        "nothing": np.zeros((0, 0)),
        "text": "",
    }
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, stored, do_compression=compressed)
    read = load_mat(path)
    assert read.keys() == stored.keys()
    (anno,) = read["anno"]
    assert anno["imname"] == "2008_000002"
    dog, cat = anno["objects"]
    assert (dog["class"], dog["class_ind"].item(), cat["class"]) == ("dog", 12, "cat")
    assert [part["part_name"] for part in dog["parts"]] == ["lear", "tail"]
    np.testing.assert_array_equal(dog["parts"][1]["mask"], 1 - MASK)
    assert len(cat["parts"]) == 0
    assert read["cells"][0] == "größer"
    np.testing.assert_array_equal(read["cells"][1], cells[0, 1])
    for name in ("large", "doubles", "logical", "nothing"):
        np.testing.assert_array_equal(read[name], stored[name])
    assert read["large"].dtype == np.int32
    assert read["text"] == ""


def matrix(kind: int, shape: list[int], *elements: bytes, order: str = "<") -> bytes:
    """An array of a MAT-file, byte by byte."""
    body = element(6, struct.pack(f"{order}II", kind, 0), order)
    body += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + element(
        1, b"x", order
    )
    return element(14, body + b"".join(elements), order)


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat(*variables: bytes, mark: bytes = b"\0\1IM") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + mark + b"".join(variables)


def test_the_other_byte_order(tmp_path):
    values = element(4, struct.pack(">4H", 1, 2, 3, 65535), ">")
    path = tmp_path / "a.mat"
    path.write_bytes(mat(matrix(6, [2, 2], values, order=">"), mark=b"\1\0MI"))
    np.testing.assert_array_equal(load_mat(path)["x"], [[1.0, 3], [2, 65535]])


def test_numbers_in_the_tag_and_texts_of_every_width(tmp_path):
    small = struct.pack("<HH4s", 2, 2, b"\x07\x08\0\0")
    texts = [
        matrix(4, [1, 2], element(kind, data)).replace(b"x", name)
        for kind, data, name in (
            (4, "äb".encode("utf-16-le"), b"p"),
            (16, "äb".encode(), b"q"),
            (17, "äb".encode("utf-16-le"), b"r"),
            (18, "äb".encode("utf-32-le"), b"s"),
            (2, "äb".encode("latin-1"), b"t"),
        )
    ]
    path = tmp_path / "a.mat"
    path.write_bytes(mat(matrix(9, [1, 2], small), *texts))
    read = dict(load_mat(path))
    np.testing.assert_array_equal(read.pop("x"), np.array([[7, 8]], np.uint8))
    assert list(read.values()) == ["äb"] * 5


def deep() -> bytes:
    inner = matrix(1, [1, 1], element(14, b""))
    for _ in range(60):
        inner = matrix(1, [1, 1], inner)
    return inner


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin like one"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "version 7.3"),
        (mat(mark=b"\0\2IM"), "version 7.3"),
        (mat(b"\x0e\0"), "unpack_from requires"),
        (mat(matrix(9, [2, 2], element(2, b"ab"))), "2 numbers for the shape"),
        (mat(matrix(9, [-1, -2], element(2, b"ab"))), "an array of the shape"),
        (mat(matrix(1, [1 << 30, 4])), "elements in 0 bytes"),
        (mat(matrix(2, [1 << 30, 4], element(5, b"\x08\0\0\0"), element(1, b""))), "elements in 0"),
        (mat(matrix(2, [1, 1], element(5, bytes(4)), element(1, b"a"))), "a struct without names"),
        (mat(matrix(16, [1, 1])), "a function"),
        (mat(matrix(3, [1, 1])), "an object"),
        (mat(matrix(5, [1, 1])), "a sparse array"),
        (mat(matrix(6 | 0x800, [1, 1], element(9, bytes(8)))), "complex numbers"),
        (mat(matrix(4, [1, 1], element(9, bytes(8)))), "a text of the type 9"),
        (mat(element(2, b"ab")), "a variable of the type 2"),
        (mat(deep()), "structs within structs"),
        (mat(struct.pack("<II", 14, 1 << 31)), "it is truncated"),
        (mat(struct.pack("<HHI", 2, 9, 0)), "a small element of more than 4 bytes"),
        (mat(struct.pack("<II", 15, 4) + b"abcd"), "incorrect header check"),
    ],
)
def test_what_is_no_plain_data_is_one_line(tmp_path, data, reason):
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with pytest.raises(MatError) as caught:
        load_mat(path)
    assert str(caught.value).startswith(f"{path}: no MAT-file of plain data (")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def packed(*variables: bytes) -> bytes:
    """Compressed variables."""
    bodies = [zlib.compress(variable, 9) for variable in variables]
    return mat(*(struct.pack("<II", 15, len(body)) + body for body in bodies))


BOMBS = {
    "bytes": lambda n: packed(matrix(9, [1, n], element(2, bytes(n)))),
    # Doubles, stored as bytes.
    "numbers": lambda n: packed(matrix(6, [1, n // 8], element(2, bytes(n // 8)))),
    "cells": lambda n: packed(matrix(1, [1, n // 256], (n // 256) * element(14, b""))),
    "structs": lambda n: packed(
        matrix(
            2,
            [1, n // 256],
            element(5, b"\1\0\0\0"),
            element(1, b"a"),
            (n // 256) * element(14, b""),
        )
    ),
    "fields": lambda n: packed(
        matrix(2, [0, 0], element(5, b"\1\0\0\0"), element(1, bytes(n // 128)))
    ),
    "text": lambda n: packed(matrix(4, [1, n // 4], element(2, bytes(n // 4)))),
    "axes": lambda n: packed(matrix(9, [1] * (n // 4), element(2, b"a"))),
    "many": lambda n: packed(*8 * [matrix(9, [1, n // 8], element(2, bytes(n // 8)))]),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(matfile, "_LARGEST", 1 << 22)
    path = tmp_path / "a.mat"
    tracemalloc.start()
    try:
        for size in (1 << 23, 1 << 26):
            path.write_bytes(BOMBS[kind](size))
            assert path.stat().st_size < 1 << 19
            tracemalloc.reset_peak()
            with pytest.raises(MatError, match=r"its content takes more than|of the shape"):
                load_mat(path)
            # What is allowed, a decompressed piece in three copies, and the file.
            assert tracemalloc.get_traced_memory()[1] < (1 << 22) + (4 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", BOMBS)
def test_what_is_counted_is_at_least_what_is_taken(tmp_path, monkeypatch, kind):
    if kind == "axes":
        return
    room = matfile._Room(1 << 40)
    monkeypatch.setattr(matfile, "_Room", lambda left: room)
    path = tmp_path / "a.mat"
    path.write_bytes(BOMBS[kind](1 << 24))
    tracemalloc.start()
    try:
        read = load_mat(path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read
    # A stream grows by an eighth more than it needs.
    assert taken < 1.2 * ((1 << 40) - room.left) + (4 << 20)


def test_the_masks_of_an_image_are_no_bomb(tmp_path):
    """500 masks of 500 x 500 pixels, nearly empty, as PASCAL-Part has them."""
    mask = np.zeros((500, 500), np.uint8)
    mask[9, 9] = 1
    parts = structs(["part_name", "mask"], *[("lear", mask) for _ in range(500)])
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"anno": parts}, do_compression=True)
    assert path.stat().st_size < 1 << 19
    read = load_mat(path)["anno"]
    assert sum(part["mask"].sum() for part in read) == 500


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(MatError, match=r"a\.mat: No such file or directory; check the path"):
        load_mat(tmp_path / "a.mat")


def test_damaged_bytes_are_an_error_or_read_but_nothing_else(tmp_path):
    """A thousand files with some bytes changed."""
    path = tmp_path / "a.mat"
    parts = structs(["part_name", "mask"], ("lear", MASK), ("tail", MASK))
    scipy.io.savemat(path, {"anno": structs(["objects"], (parts,))})
    sound, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        data = bytearray(sound)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(120, len(data))] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        try:
            load_mat(path)
        except MatError:
            refused += 1
    assert refused > 500
