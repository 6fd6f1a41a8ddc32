"""Weight files as their libraries write them, and damaged and hostile ones."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from refseg_jax.errors import UserError
from refseg_jax.weights.readers import open_weights
from tests.refseg_jax.weights.torch_archive import Call, Global, TorchPickler, torch_archive

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv1.weight": RNG.standard_normal((4, 3, 2, 2), np.float32),
    "half": RNG.standard_normal((5, 3), np.float32).astype(np.float16),
    "short": RNG.standard_normal(7, np.float32).astype(ml_dtypes.bfloat16),
    "scale": np.full((), 4.6, np.float32),
    "ids": np.arange(6),
}


def safetensors_file(folder: Path) -> Path:
    save_file(ARRAYS, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded_file(folder: Path) -> Path:
    first = {k: ARRAYS[k] for k in ("half", "ids")}
    rest = {k: v for k, v in ARRAYS.items() if k not in first}
    names = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": rest}
    for name, arrays in names.items():
        save_file(arrays, folder / name)
    index = {"weight_map": {entry: name for name, arrays in names.items() for entry in arrays}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def torch_file(folder: Path) -> Path:
    return torch_archive(folder / "model.pt", ARRAYS)


#: A pair of pairs of pairs ..., whose hash takes for ever.
NESTED = b"N\x85" + b"2\x86" * 60
WRITERS = [safetensors_file, sharded_file, torch_file]


def refusal(path: Path, sha256: str = "") -> str:
    """Opens a file and reads everything; the one line that says why not."""
    with pytest.raises(UserError) as caught:
        weights = open_weights(path, sha256=sha256)
        for entry in weights.shapes:
            weights.read(entry)
    message = str(caught.value)
    assert message.startswith(str(path.parent)) and "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("write", WRITERS)
def test_every_entry_is_read_as_it_was_written(write: Callable[[Path], Path], tmp_path: Path):
    weights = open_weights(write(tmp_path))
    assert weights.shapes.keys() == ARRAYS.keys()
    for entry, array in ARRAYS.items():
        assert (weights.shapes[entry].shape, weights.shapes[entry].dtype) == (
            array.shape,
            array.dtype,
        )
        read = weights.read(entry)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_views_of_one_storage_are_told_apart(tmp_path: Path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"base": base, "turned": base.T, "part": base[1:3, ::2]}
    weights = open_weights(torch_archive(tmp_path / "views.pt", views, shared=base))
    for entry, array in views.items():
        np.testing.assert_array_equal(weights.read(entry), array)


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_the_weights_of_a_training_checkpoint_are_found(key: str, tmp_path: Path):
    path = torch_archive(
        tmp_path / "c.pt", ARRAYS, wrap=lambda d: {"epoch": 3, key: d, "optimizer": {"lr": 0.1}}
    )
    assert open_weights(path).shapes.keys() == ARRAYS.keys()


@pytest.mark.parametrize("write", [safetensors_file, torch_file])
def test_a_digest_is_checked(write: Callable[[Path], Path], tmp_path: Path):
    path = write(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_weights(path, sha256=digest.upper()).shapes
    wrong = "0" * 64
    assert f"SHA-256 is {digest}, not {wrong}" in refusal(path, wrong)


def test_the_digest_of_shards_is_that_of_all_of_them(tmp_path: Path):
    index = sharded_file(tmp_path)
    digest = hashlib.sha256()
    for shard in sorted(tmp_path.glob("model-*.safetensors")):
        digest.update(shard.read_bytes())
    assert open_weights(index, sha256=digest.hexdigest()).shapes


@pytest.mark.parametrize("write", [safetensors_file, torch_file])
def test_a_file_cut_short_anywhere_is_refused(write: Callable[[Path], Path], tmp_path: Path):
    path = write(tmp_path)
    data = path.read_bytes()
    for length in [0, 1, 2, 7, 8, 9, *range(10, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        assert "again" in refusal(path)


def test_a_shard_cut_short_or_missing_is_refused_by_its_name(tmp_path: Path):
    index = sharded_file(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-4])
    assert refusal(index).startswith(str(second))
    second.unlink()
    assert refusal(index).startswith(str(second))


def test_a_bit_flipped_in_torchs_numbers_is_found(tmp_path: Path):
    path = torch_file(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(ARRAYS["half"].tobytes())
    data[at + 5] ^= 4
    path.write_bytes(data)
    assert "damaged (Bad CRC-32" in refusal(path)


def test_a_bit_flipped_in_the_numbers_of_safetensors_is_found_by_the_digest(tmp_path: Path):
    path = safetensors_file(tmp_path)
    data = bytearray(path.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    data[data.index(ARRAYS["half"].tobytes()) + 5] ^= 4
    path.write_bytes(data)
    # The format has no checksum of its own: without the digest the damage is not seen.
    assert not np.array_equal(open_weights(path).read("half"), ARRAYS["half"])
    assert "another file or a damaged one" in refusal(path, digest)


@pytest.mark.parametrize("write", [safetensors_file, torch_file])
def test_flipped_bits_never_get_further_than_an_error(
    write: Callable[[Path], Path], tmp_path: Path
):
    path = write(tmp_path)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    refused = 0
    for bit in range(0, 8 * len(data), 61):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            # safetensors has no checksum of its own.
            weights = open_weights(path, sha256=digest if write is safetensors_file else "")
            read = {entry: weights.read(entry) for entry in weights.shapes}
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # It is in what nobody reads: a date, a version.
            assert write is torch_file and read.keys() == ARRAYS.keys()
            for entry, array in ARRAYS.items():
                assert read[entry].dtype == array.dtype
                np.testing.assert_array_equal(read[entry], array)
    assert refused > 20


@pytest.mark.parametrize(
    "data",
    [
        (10**6).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.bin"])
def test_what_is_no_weight_file_is_refused(name: str, data: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    assert "again" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pkl"])
def test_pipes_and_devices_are_not_opened(name: str, tmp_path: Path):
    os.mkfifo(tmp_path / name)
    assert "is a pipe, no file" in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "is a device, no file" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["no.safetensors", "no.pt", "no.safetensors.index.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path):
    assert "No such file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "index",
    [
        *("{", "[]", "{}", '{"weight_map": {}}'),
        *(json.dumps({"weight_map": {"a": name}}) for name in ("../x", "", ".", "..", "\0", 7)),
        *(json.dumps({"weight_map": {"a": f"{name}.safetensors"}}) for name in ("../a", "a\0b")),
    ],
)
@pytest.mark.parametrize("digest", ["", "0" * 64])
def test_an_index_that_is_none_is_refused(index: str, digest: str, tmp_path: Path):
    (tmp_path / "m.safetensors.index.json").write_text(index)
    assert "not the index of shards" in refusal(tmp_path / "m.safetensors.index.json", digest)


def test_a_header_whose_length_looks_like_an_archive_is_read(tmp_path: Path):
    path = safetensors_file(tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(0x4B50)  # "PK"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    np.testing.assert_array_equal(open_weights(path).read("ids"), ARRAYS["ids"])


def test_a_type_that_is_not_read_is_refused(tmp_path: Path):
    save_file({"w": np.zeros(3, np.uint32)}, tmp_path / "m.safetensors")
    assert "entry 'w' is of type U32" in refusal(tmp_path / "m.safetensors")


def test_a_name_that_would_break_the_line_is_refused(tmp_path: Path):
    save_file({"a\nb": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    assert r"'a\nb'" in refusal(tmp_path / "m.safetensors")


class Hostile:
    """Runs a command when it is read by `pickle.load`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_hostile_pickle_in_an_archive_runs_nothing(tmp_path: Path):
    mark = tmp_path / "ran"
    path = torch_archive(
        tmp_path / "m.pt", ARRAYS, wrap=lambda d: {**d, "x": Hostile(f"touch {mark}")}
    )
    message = refusal(path)
    assert f"refused, it asks for '{os.system.__module__}.system'" in message
    assert not mark.exists()
    # The same pickle does run in a reader that looks names up, so the test is of something.
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl")

    class Naive(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

        def find_class(self, module: str, name: str):
            own = module.startswith(("torch", "__torch__"))
            return (lambda *_: None) if own else super().find_class(module, name)

    Naive(io.BytesIO(data)).load()
    assert mark.exists()


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda d: Call(Global("builtins", "eval"), "1"), "it asks for 'builtins.eval'"),
        (lambda d: Call(Global("torch.hub", "load"), "x"), "it asks for 'torch.hub.load'"),
        (lambda d: Call(Global("torch", "FloatStorage"), 9), "it calls 'FloatStorage'"),
        (lambda d: Call(Global("__torch__.CLIP", "f"), 9), "it calls '__torch__'"),
        (
            lambda d: b"\x80\x02}" + NESTED + b"Ns.",
            "it has a tuple of no scalars as the key of a dict",
        ),
        (lambda d: {"a": 1}, "it holds no weights"),
        (lambda d: [1, 2], "it holds no weights"),
        (lambda d: {"model": d, "ema": dict(d)}, "several state dicts: 'model, ema'"),
        (lambda d: Call(Global("torch._utils", "_rebuild_tensor_v2"), 1, 2, 3, 4), "is none"),
    ],
)
def test_an_archive_of_something_else_is_refused(
    wrap: Callable[[object], object], words: str, tmp_path: Path
):
    assert words in refusal(torch_archive(tmp_path / "m.pt", ARRAYS, wrap=wrap))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (10**9, 10**9)}, "a tensor that is none"),
        ({"shape": (5, 4)}, "has more numbers than its data"),
        ({"strides": (4, 1)}, "reaches beyond its data"),
        ({"offset": 1}, "reaches beyond its data"),
        ({"offset": -1}, "a tensor that is none"),
        ({"strides": (3, -1)}, "a tensor that is none"),
        ({"strides": (3,)}, "a tensor that is none"),
        ({"shape": "ab"}, "a tensor that is none"),
        ({"count": 16}, "data of another size than it says"),
        ({"key": "9"}, "no data in the archive"),
        ({"key": "../half"}, "no data in the archive"),
    ],
)
def test_a_tensor_that_lies_about_its_data_is_refused(
    change: dict[str, object], words: str, tmp_path: Path
):
    path = torch_archive(tmp_path / "m.pt", {"half": ARRAYS["half"]}, lies={"half": change})
    assert words in refusal(path)


def test_modules_without_end_are_refused(tmp_path: Path):
    """40 pairs of pairs: 2^40 entries out of a kilobyte."""

    def wrap(_: object) -> bytes:
        make = b"c__torch__\nM\n)\x81"
        out = b"\x80\x02" + make + b"q\x00"
        for level in range(40):
            known = b"h" + bytes([level])
            out += make + b"}(X\x01\x00\x00\x00a" + known + b"X\x01\x00\x00\x00b" + known
            out += b"ub" + b"q" + bytes([level + 1])
        return out + b"."

    assert "no end" in refusal(torch_archive(tmp_path / "m.pt", {}, wrap=wrap))


def test_another_zip_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        open_weights(tmp_path / "m.pt")


def test_compressed_numbers_are_refused(tmp_path: Path):
    """They could unpack to a thousand times the file's size."""
    path = torch_archive(tmp_path / "m.pt", ARRAYS, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, not as torch does" in refusal(path)


def test_the_test_writer_marks_globals_as_torch_does():
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(Global("torch._utils", "_rebuild_tensor_v2"))
    assert b"ctorch._utils\n_rebuild_tensor_v2\n" in stream.getvalue()
