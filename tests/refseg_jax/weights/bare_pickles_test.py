"""Weights in bare pickles (torch before 1.6, detectron2), and numpy's arrays in torch's archives."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.weights.readers import open_weights
from tests.refseg_jax.weights.bare_pickles import before_1_6, detectron2, pickled_tensors
from tests.refseg_jax.weights.torch_archive import Call, Global, TorchPickler, torch_archive

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv1.weight": RNG.standard_normal((4, 3, 2, 2), np.float32),
    "turned": np.asfortranarray(RNG.standard_normal((40, 30))),
    "half": RNG.standard_normal((5, 3), np.float32).astype(np.float16),
    "scale": np.full((), 4.6, np.float32),
    "ids": np.arange(600),
}
SHORT = {"short": RNG.standard_normal(7, np.float32).astype(ml_dtypes.bfloat16)}

#: File name -> its bytes, and what is read from it.
FILES: dict[str, tuple[Callable[[], bytes], dict[str, np.ndarray]]] = {
    "old.pth": (lambda: before_1_6(ARRAYS | SHORT), ARRAYS | SHORT),
    "wrapped.pth": (
        lambda: before_1_6(ARRAYS, wrap=lambda state: {"model": state, "epoch": 3}),
        ARRAYS,
    ),
    "pytorch_model.bin": (lambda: before_1_6(ARRAYS), ARRAYS),
    "swin_base.pkl": (lambda: pickled_tensors(ARRAYS | SHORT), ARRAYS | SHORT),
    **{
        f"protocol{n}.pkl": (lambda n=n: detectron2(ARRAYS, n), ARRAYS)
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "alone.pkl": (lambda: pickle.dumps(ARRAYS), ARRAYS),
}


def write(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(FILES[name][0]())
    return folder / name


def check(path: Path, expected: dict[str, np.ndarray]) -> None:
    weights = open_weights(path)
    assert weights.shapes.keys() == expected.keys()
    for entry, array in expected.items():
        leaf = weights.shapes[entry]
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype)
        read = weights.read(entry)
        assert read.dtype == array.dtype and not read.flags.writeable
        np.testing.assert_array_equal(read, array)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        weights = open_weights(path)
        for entry in weights.shapes:
            weights.read(entry)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("name", FILES)
def test_every_entry_is_read_as_it_was_written(name: str, tmp_path: Path):
    check(write(tmp_path, name), FILES[name][1])


@pytest.mark.parametrize("wrap", [dict, lambda arrays: {"model": arrays, "best": np.float64(0.5)}])
def test_arrays_in_an_archive_of_torch_are_read(wrap: Callable[[Any], Any], tmp_path: Path):
    """`torch.save` of a dict of numpy's arrays: all lies in the pickle, which may be large."""
    large = ARRAYS | {"large": RNG.standard_normal((1500, 1500))}
    path = torch_archive(tmp_path / "m.pth", {}, wrap=lambda _: wrap(large))
    assert path.stat().st_size > 2**24
    check(path, large)


def test_arrays_beside_the_weights_are_not_weights(tmp_path: Path):
    """Training checkpoints hold scores and means as numpy has them."""
    rest = {"best_iou": np.float64(0.7), "mean": np.zeros(3), "history": {"iou": np.ones(4)}}
    rows = {entry: np.array(array, order="C") for entry, array in ARRAYS.items()}
    path = torch_archive(tmp_path / "m.pth", rows, wrap=lambda d: {"state_dict": d, **rest})
    check(path, ARRAYS)
    plain = tmp_path / "m.pkl"
    plain.write_bytes(pickle.dumps({"model": ARRAYS, "mean": np.zeros(3)}))
    check(plain, ARRAYS)


def test_numbers_of_another_byte_order_are_read(tmp_path: Path):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"w": np.arange(5, dtype=">f4")}))
    check(path, {"w": np.arange(5, dtype=np.float32)})


@pytest.mark.parametrize("name", ["old.pth", "swin_base.pkl", "protocol4.pkl", "protocol2.pkl"])
def test_a_file_cut_short_anywhere_is_refused(name: str, tmp_path: Path):
    path = write(tmp_path, name)
    data = path.read_bytes()
    for length in [0, 1, 2, 9, *range(10, len(data), 211), len(data) - 1]:
        path.write_bytes(data[:length])
        assert "again" in refusal(path)


@pytest.mark.parametrize("name", ["old.pth", "swin_base.pkl", "protocol4.pkl"])
def test_flipped_bits_never_get_further_than_an_error(name: str, tmp_path: Path):
    path = write(tmp_path, name)
    data = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(data), 131):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            weights = open_weights(path)
            for entry in weights.shapes:
                weights.read(entry)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


class Hostile:
    """Runs a command when it is read by `pickle.load`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["old.pth", "m.pkl", "within.pkl"])
def test_a_hostile_pickle_runs_nothing(where: str, tmp_path: Path):
    path, mark = tmp_path / where, tmp_path / "ran"
    hostile = Hostile(f"touch {mark}")
    if where == "old.pth":
        path.write_bytes(before_1_6(ARRAYS, wrap=lambda state: {**state, "x": hostile}))
    elif where == "m.pkl":
        path.write_bytes(pickle.dumps({"model": ARRAYS, "x": hostile}))
    else:
        inner = before_1_6({}, wrap=lambda _: hostile)
        path.write_bytes(dumped(Call(Global("torch.storage", "_load_from_bytes"), inner)))
    assert f"refused, it asks for '{os.system.__module__}.system'" in refusal(path)
    assert not mark.exists()


def dumped(made: Any) -> bytes:
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(made)
    return stream.getvalue()


def of_storage(data: Any) -> bytes:
    """A tensor whose storage is read from `data`."""
    storage = Call(Global("torch.storage", "_load_from_bytes"), data)
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return dumped({"w": Call(rebuild, storage, 0, (1,), (1,), False, OrderedDict())})


def lying(change: Callable[[bytes], bytes]) -> bytes:
    return change(before_1_6({"w": np.ones(3, np.float32)}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"a": 1}), "it holds no weights"),
        (pickle.dumps([np.ones(3)]), "it holds no weights"),
        (pickle.dumps({"a": {"w": np.ones(3)}, "b": {"w": np.ones(2)}}), "several state dicts"),
        (pickle.dumps({"w": np.array(["text"])}), "an array of 'U4', which are no numbers"),
        (pickle.dumps({"w": np.array([{}], object)}), "an array of 'O8', which are no numbers"),
        (pickle.dumps({"w": np.zeros(3).view(np.recarray)}), "recarray"),
        (pickle.dumps({"w": np.zeros((1,) * 5)}), "an array of 5 axes"),
        (pickle.dumps(SHORT), "it asks for 'ml_dtypes.bfloat16'"),
        (before_1_6(ARRAYS, little=False), "written on a big-endian machine"),
        (before_1_6(ARRAYS, version=1002), "an unknown version of the format before torch 1.6"),
        (lying(lambda d: d[:-20] + struct.pack("<q", 4) + d[-12:]), "its numbers are cut short"),
        (lying(lambda d: d.replace(b"94000000", b"94000001", 1)), "KeyError"),
        (of_storage(7), "a storage that is none"),
        (of_storage(pickle.dumps(5)), "a storage that is none"),
        (of_storage(of_storage(b"")), "it asks for 'torch.storage._load_from_bytes'"),
        (of_storage(before_1_6(ARRAYS)), "a storage that is none"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.", "bytes are cut short"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.", "download or copy"),
    ],
)
def test_a_pickle_of_something_else_is_refused(data: bytes, words: str, tmp_path: Path):
    (tmp_path / "m.pkl").write_bytes(data)
    assert words in refusal(tmp_path / "m.pkl")


LITTLE = before_1_6({"w": np.ones(1, np.float32)}, wrap=lambda d: d["w"].arguments[0])
#: Reads one storage within the pickle again and again, by five bytes each time.
AGAIN = (
    b"\x80\x03ctorch.storage\n_load_from_bytes\nq\x00B"
    + struct.pack("<I", len(LITTLE))
    + LITTLE
    + b"\x85q\x01"
    + b"h\x00h\x01R0" * 5000
    + b"."
)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"N0" * 2**16 + b"N.",
        # In a frame, which the standard library's reader reads at once.
        b"\x80\x04\x95" + struct.pack("<Q", 2**17 + 2) + b"N0" * 2**16 + b"N.",
        b"\x80\x02" + b"I1\n0" * 2**15 + b"N.",
        AGAIN,
    ],
)
def test_structure_has_a_bound(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One byte can make an object of 60 bytes, and a few can ask for many objects again."""
    monkeypatch.setattr("refseg_jax.weights.torch_pickles._MOST_STRUCTURE", 2**16)
    (tmp_path / "m.pkl").write_bytes(data)
    assert "refused, its structure takes more than 65536 bytes" in refusal(tmp_path / "m.pkl")


def test_a_missing_pickle_is_named(tmp_path: Path):
    assert "No such file" in refusal(tmp_path / "none.pkl")
