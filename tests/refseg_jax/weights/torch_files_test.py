"""Archives that lie, or that ask for much more work or memory than their size: refused at once."""

import bz2
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.weights.readers import open_weights
from tests.refseg_jax.weights.torch_archive import torch_archive

#: Bytes from the start of a member's entry in the central directory.
METHOD, UNPACKED_SIZE, NAME = 10, 24, 46
PROTOCOL = b"\x80\x02"
MODULE = b"c__torch__\nM\n)\x81"
#: An empty tensor of storage "0", kept as memo 5.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00))tRq\x05"
)
ONE = {"w": np.zeros(1, np.float32)}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 500
    return str(caught.value)


def patch_directory(path: Path, member: str, at: int, value: bytes) -> None:
    """Writes over a field of the central directory, which the member's bytes do not know."""
    data = bytearray(path.read_bytes())
    start = data.rindex(member.encode()) - NAME
    assert data[start : start + 4] == b"PK\x01\x02"
    data[start + at : start + at + len(value)] = value
    path.write_bytes(data)


def test_a_directory_that_promises_more_numbers_than_there_are_is_refused(tmp_path: Path):
    """Else numpy would read beyond the bytes that there are: other memory of the process."""
    told = {"count": 1024, "shape": (1024,), "strides": (1,)}
    path = torch_archive(tmp_path / "m.pt", {"w": np.ones(4, np.float32)}, lies={"w": told})
    patch_directory(path, "archive/data/0", UNPACKED_SIZE, struct.pack("<I", 4096))
    assert "entry 'w' has data of another size than it says" in refusal(path)


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/byteorder"])
def test_a_structure_that_promises_more_bytes_than_there_are_is_refused(
    member: str, tmp_path: Path
):
    path = torch_archive(tmp_path / "m.pt", ONE)
    patch_directory(path, member, UNPACKED_SIZE, struct.pack("<I", 7))
    assert "not as torch does" in refusal(path)


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/byteorder"])
def test_a_compressed_structure_is_refused_before_it_is_unpacked(member: str, tmp_path: Path):
    """bz2 makes a gigabyte out of 700 bytes, whatever size the directory gives."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive/data.pkl", "archive/byteorder"):
            archive.writestr(name, b"little" if name != member else bz2.compress(b"\0" * 2**20))
    for at, value in ((METHOD, struct.pack("<H", zipfile.ZIP_BZIP2)), (UNPACKED_SIZE, b"\x09\0")):
        patch_directory(path, member, at, value)
    assert f"{member} is compressed" in refusal(path)


def test_compressed_numbers_are_refused_where_the_structure_is_not(tmp_path: Path):
    path = torch_archive(tmp_path / "m.pt", ONE)
    patch_directory(path, "archive/data/0", METHOD, struct.pack("<H", zipfile.ZIP_DEFLATED))
    assert "data of another size than it says" in refusal(path)


def test_a_pickle_of_more_structure_than_a_model_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("refseg_jax.weights.torch_pickles._MOST_STRUCTURE", 2**16)
    path = torch_archive(tmp_path / "m.pt", {}, wrap=lambda _: PROTOCOL + b"N0" * 2**15 + b"N.")
    assert "its structure takes more than 65536 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"shape": (2**24, 768), "strides": (0, 0)}, "has more numbers than its data"),
        ({"shape": (2,), "strides": (0,)}, "has more numbers than its data"),
        ({"shape": (0, 2**40, 2**40), "strides": (0, 0, 0)}, "a tensor that is none"),
    ],
)
def test_no_few_bytes_claim_a_large_tensor(told: dict[str, object], words: str, tmp_path: Path):
    assert words in refusal(torch_archive(tmp_path / "m.pt", ONE, lies={"w": told}))


def test_a_dict_is_not_filled_from_one_list_again_and_again(tmp_path: Path):
    body = PROTOCOL + b"](K\x01N\x86eq\x000ccollections\nOrderedDict\nq\x010]("
    path = torch_archive(
        tmp_path / "m.pt", {}, wrap=lambda _: body + b"h\x01h\x00\x85R" * 3 + b"e."
    )
    assert "it calls 'collections.OrderedDict' with arguments" in refusal(path)


@pytest.mark.parametrize("end", [b"", b"\x85"])
def test_keys_of_one_hash_are_refused(end: bytes, tmp_path: Path):
    """Multiples of the modulus: 16 megabytes of them took hours to put into a dict."""
    key = b"\x8a\x0a" + (2 * sys.hash_info.modulus).to_bytes(10, "little") + end
    path = torch_archive(tmp_path / "m.pt", {}, wrap=lambda _: PROTOCOL + b"}" + key + b"Ns.")
    assert "it has a number of more than 60 bits as the key of a dict" in refusal(path)


def test_a_modules_long_name_is_refused_before_the_names_below_it_are_made(tmp_path: Path):
    """A megabyte in front of each of 1500 names would be 1.5 gigabytes; here there is none."""
    inner = MODULE + b"}b"
    body = PROTOCOL + TENSOR + b"0" + MODULE + b"}("
    body += text("w") + b"h\x05" + text("k" * 301) + inner + b"ub."
    assert "an entry's name is no name: 'kkk" in refusal(
        torch_archive(tmp_path / "m.pt", ONE, wrap=lambda _: body)
    )


def test_a_module_of_many_attributes_is_not_searched_again_and_again(tmp_path: Path):
    """A thousand times one module of a thousand numbers; each is looked at in every place."""
    numbers = b"".join(text(f"{number:03d}") + b"K\x00" for number in range(1000))
    many = b"".join(text(f"{number:03d}") + b"h\x01" for number in range(1000))
    inner = MODULE + b"}(" + numbers + b"ubq\x010"
    body = PROTOCOL + inner + MODULE + b"}(" + many + b"ub."
    assert "no end" in refusal(torch_archive(tmp_path / "m.pt", {}, wrap=lambda _: body))
