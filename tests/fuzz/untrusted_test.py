"""Pickles and MAT-files of unknown origin: no code, no more work and memory than the file is worth."""

import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from input_pipeline.formats.matfile import MatError, load_mat
from refseg_jax.unpickling import PickleError, loads_pickle
from tests.fuzz.values import flipped, mutated
from tests.input_pipeline.formats.matfile_test import structs

pytestmark = pytest.mark.slow

#: Bytes of memory that a byte of a pickle may become, and the reader itself.
_A_BYTE, _READER = 400, 1 << 20

PLAIN: list[Any] = [
    [{"ref_id": 1, "sentences": [{"sent": "a dog", "tokens": ["a", "dog"]}], "split": "train"}],
    {(1, 2): [b"x", 1.5, None], "b": (True, -3)},
    {3: np.arange(6, dtype=np.uint8).reshape(2, 3), 4: [np.float32(0.5), np.int64(7)]},
]


def _read(data: bytes) -> bool:
    """Reads a pickle; whether it was read."""
    tracemalloc.start()
    try:
        loads_pickle(data, name="x.p", arrays=True)
    except PickleError as error:
        assert "\n" not in str(error)
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < _READER + _A_BYTE * len(data), (peak, len(data))
    return True


def test_pickles_with_changes() -> None:
    rng, read = random.Random(8), 0
    for _ in range(60_000):
        value = rng.choice(PLAIN)
        if rng.random() < 0.3 and value is not PLAIN[2]:
            value = mutated(value, rng)
        data = pickle.dumps(value, rng.randint(0, 5))
        read += _read(flipped(data, rng) if rng.random() < 0.8 else data)
    assert read > 12_000


#: Opcodes that repeat, copy and nest what is there, each with its arguments.
_PARTS = [
    *(b"(", b"0", b"1", b"2", b"]", b"}", b")", b"l", b"d", b"t", b"a", b"e", b"s", b"u", b"b"),
    *(b"\x85", b"\x86", b"\x87", b"R", b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\x7f", b"\x94"),
    *(b"G?\xf0\0\0\0\0\0\0", b"X\x06\0\0\0latin1", b"c_codecs\nencode\n", b"cnumpy\ndtype\n"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"),
    *(b"q%c" % n for n in range(4)),
    *(6 * [b"h%c" % n for n in range(4)]),
    b"U\x80" + 128 * b"x",
    b"X" + (4096).to_bytes(4, "little") + 4096 * b"y",
    b"B" + (4096).to_bytes(4, "little") + 4096 * b"z",
]


def test_programs_of_opcodes() -> None:
    rng = random.Random(9)
    for _ in range(150_000):
        program = b"".join(rng.choices(_PARTS, k=rng.randint(1, 60)))
        # Whatever a program has made is used once more, again and again.
        _read(program + rng.choice(_PARTS) * rng.randint(0, 50) + b".")


def test_mat_files(tmp_path: Path) -> None:
    mask = np.zeros((9, 12), np.uint8)
    parts = structs(["part_name", "mask"], ("lear", mask), ("tail", mask.astype(float)))
    stored = {"anno": structs(["objects", "text"], (parts, "größer")), "n": np.arange(9.0)}
    path, rng, read = tmp_path / "a.mat", random.Random(10), 0
    sound = []
    for compressed in (False, True):
        scipy.io.savemat(path, stored, do_compression=compressed)
        sound.append(path.read_bytes())
    for _ in range(8000):
        data = rng.choice(sound)
        head = data[:128] if rng.random() < 0.95 else flipped(data[:128], rng)
        path.write_bytes(head + flipped(data[128:], rng))
        tracemalloc.start()
        try:
            load_mat(path)
            read += 1
        except MatError as error:
            assert "\n" not in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        # Nested objects of nothing take 256 bytes for 8, and zlib makes 1032 of one.
        assert peak < _READER + 40 * 1032 * len(data)
    assert read > 200
