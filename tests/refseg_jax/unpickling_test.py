import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.unpickling import PickleError, StrictUnpickler, load_pickle, loads_pickle, run
from refseg_jax.weights.torch_pickles import Metered, TorchUnpickler

PLAIN = [
    {"id": 7, "text": "façade ☂", "tokens": ["a", ""], 5: (1, 2, 3, 4)},
    [True, False, None, -3, 2**70, 1.5, float("inf")],
    (b"", b"\x00\xff", ()),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol: int, tmp_path: Path):
    path = tmp_path / "plain.p"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert load_pickle(path) == PLAIN


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"S'caf\\xc3\\xa9'\np0\n.", "café"),  # Python 2, protocol 0, UTF-8
        (b"\x80\x02U\x05caf\xc3\xa9q\x00.", "café"),  # Python 2, protocol 2, UTF-8
        (b"\x80\x02U\x04caf\xe9q\x00.", "café"),  # Python 2, protocol 2, Latin-1
        (b"Vcaf\\u00e9\np0\n.", "café"),  # Python 2 unicode
    ],
)
def test_strings_of_python_2(data: bytes, text: str):
    assert loads_pickle(data, name="x.p") == text


class Hostile:
    """Runs a command when it is read by `pickle.load`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(protocol: int, tmp_path: Path):
    mark = tmp_path / "ran"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Hostile(f"touch {mark}")], protocol))
    with pytest.raises(PickleError) as caught:
        load_pickle(path)
    assert not mark.exists()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: refused")
    assert f"{os.system.__module__}.system" in message
    assert "use the original file" in message
    # The same bytes do run in the standard library's reader, so the test is of something.
    code = f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(V1+1\ntR.",
        b"(ios\nsystem\n.",  # INST
        b"c__builtin__\nexec\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",  # only Latin-1 is needed
    ],
)
def test_other_globals_are_refused_by_name(data: bytes):
    with pytest.raises(PickleError, match=r"x\.p: refused, it asks for '"):
        loads_pickle(data, name="x.p")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "BYTEARRAY8"),  # would allocate 1 TB
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Pid\n.", "PERSID"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x02}}b.", "BUILD"),
    ],
)
def test_other_opcodes_are_refused_by_name(data: bytes, name: str):
    with pytest.raises(PickleError, match=rf"x\.p: refused, opcode {name} "):
        loads_pickle(data, name="x.p")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xe0 a JPEG",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02r\xff\xff\xff\x7fN.",  # a memo index of 2^31: 16 GB in the reader in C
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",  # a string of 2^64 bytes
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # bytes of 2^60 bytes
        b"\x80\xffN.",  # protocol 255
        b"h\x05.",  # a memo entry that was never written
        b"]}s.",  # a list where a dict is needed
        b"}]Ns.",  # a list as a key
    ],
)
def test_damage_is_one_line(data: bytes):
    with pytest.raises(PickleError) as caught:
        loads_pickle(data, name="x.p")
    message = str(caught.value)
    assert message.startswith("x.p: damaged or no pickle (")
    assert "copy the file again" in message
    assert "\n" not in message


def test_a_key_that_takes_for_ever_to_hash_is_refused():
    nested = b"N\x85" + b"2\x86" * 60  # A pair of pairs of pairs ...
    for write in (b"}" + nested + b"Ns.", b"}(" + nested + b"Nu.", b"(" + nested + b"Nd."):
        with pytest.raises(PickleError, match=r"x\.p: refused, it has a tuple of no scalars as"):
            loads_pickle(write, name="x.p")
    assert loads_pickle(b"(N\x85Nd.", name="x.p") == {(None,): None}


def colliding_pairs(number: int) -> list[tuple[int, int]]:
    """Pairs of integers of the same hash: CPython's function of a pair, solved for the second."""
    one, two, five = 11400714785074694791, 14029467366897019727, 2870177450012600261
    bits = (1 << 64) - 1
    target, undo_one, undo_two = 12345, pow(one, -1, 1 << 64), pow(two, -1, 1 << 64)
    turned = target * undo_one & bits
    after = (turned >> 31 | turned << 33) & bits
    pairs, first = [], 0
    while len(pairs) < number:
        first += 1
        begun = (five + first * two) & bits
        begun = (begun << 31 | begun >> 33) * one & bits
        second = (after - begun) * undo_two & bits
        second -= second >> 63 << 64
        if abs(second) < sys.hash_info.modulus and second >= 0:
            pairs.append((first, second))
    return pairs


@pytest.mark.skipif(sys.hash_info.width != 64, reason="the hashes are those of 64 bits")
@pytest.mark.parametrize("write", [b"}%bs", b"}(%bu", b"(%bd"])
def test_tuples_of_the_same_hash_are_refused_before_they_are_compared_with_all_others(write: bytes):
    pairs = colliding_pairs(2000)
    assert len({hash(pair) for pair in pairs}) == 1
    opcode = write[-1:]
    between = opcode if opcode == b"s" else b""
    keys = [b"L%dL\nL%dL\n\x86N" % pair for pair in pairs]
    few, many = (write % between.join(keys[:count]) + b"." for count in (60, len(keys)))
    assert len(loads_pickle(few, name="x.p")) == 60
    reader = Counting(many)
    with pytest.raises(PickleError, match="refused, it has many tuples of the same hash"):
        run(reader, name="x.p", cure="write it again")
    assert reader.keys < 70


class Counting(StrictUnpickler):
    """Counts the keys of dicts, each of which costs at most as many comparisons as there are before."""

    keys = 0

    def check_key(self, key: object) -> object:
        self.keys += 1
        return super().check_key(key)


def test_many_tuples_of_other_hashes_are_read():
    stored = {(number, number * number): number for number in range(20_000)}
    assert loads_pickle(pickle.dumps(stored), name="x.p") == stored
    # -1 and -2 have the same hash.
    signs: dict[tuple[int, ...], int] = {
        (a, b, c): 0 for a in (-1, -2) for b in (-1, -2) for c in (-1, -2)
    }
    many = [{**signs} for _ in range(100)]
    assert loads_pickle(pickle.dumps(many), name="x.p") == many


def test_a_long_tuple_as_a_key_is_not_hashed_again_and_again():
    data = b"(" + 100_000 * b"K\x01" + b"tq\x00}(" + 1000 * b"h\x00N" + b"u."
    reader = Counting(data)
    with pytest.raises(PickleError, match="refused, it has a tuple of 100000 parts as the key"):
        run(reader, name="x.p", cure="write it again")
    assert reader.keys == 1


def test_bytes_that_share_a_text_do_not_fill_the_memory():
    text = b"X" + (1_000_000).to_bytes(4, "little") + 1_000_000 * b"x"
    encode = b"c_codecs\nencode\nq\x01" + text + b"q\x00X\x06\0\0\0latin1q\x02\x86R"
    again = b"h\x01h\x00h\x02\x86R"
    assert len(loads_pickle(b"(" + encode + b"l.", name="x.p")[0]) == 1_000_000
    for reader in (StrictBytes, TorchUnpickler):
        bomb = Metered(io.BytesIO(b"(" + encode + 1000 * again + b"l."))
        with pytest.raises(PickleError, match="refused, its arrays or bytes share their memory"):
            run(reader(bomb), name="x.p", cure="write it again")


class StrictBytes(StrictUnpickler):
    """Reads bytes of old protocols."""

    def __init__(self, stream: Metered) -> None:
        super().__init__(stream.stream, size=stream.size)

    def find_class(self, module: str, name: str) -> Any:
        return self.latin1_bytes


def test_truncated_anywhere():
    data = pickle.dumps(PLAIN, 2)
    for length in range(len(data)):
        with pytest.raises(PickleError):
            loads_pickle(data[:length], name="x.p")


def test_flipped_bits_never_get_further_than_an_error():
    data = pickle.dumps(PLAIN, 2)
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        try:
            loads_pickle(bytes(damaged), name="x.p")
        except PickleError:
            refused += 1
    assert refused > 100


ARRAYS = {
    3: [np.array([1.5, 2, 3, 4]), np.arange(6, dtype=np.uint8).reshape(2, 3)],
    "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "empty": np.zeros((0, 4)),
    "scalar": [np.float32(0.5), np.int64(-7), np.bool_(True), np.array(5)],
    "plain": {"counts": b"abc", "text": "x"},
}


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_of_numbers_become_lists_where_they_are_asked_for(protocol: int, tmp_path: Path):
    path = tmp_path / "annotations.pkl"
    path.write_bytes(pickle.dumps(ARRAYS, protocol))
    assert load_pickle(path, arrays=True) == {
        3: [[1.5, 2, 3, 4], [[0, 1, 2], [3, 4, 5]]],
        "fortran": [[0, 1, 2], [3, 4, 5]],
        "empty": [],
        "scalar": [0.5, -7, True, [5]],
        "plain": {"counts": b"abc", "text": "x"},
    }
    with pytest.raises(PickleError, match=r"refused, it asks for 'numpy\..*multiarray"):
        load_pickle(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([{"a": 1}], object), "an array of 'O8', which are no numbers"),
        (np.array(["text"]), "an array of 'U4', which are no numbers"),
        (np.zeros(1, [("a", "f4")]), "an array of 'V4', which are no numbers"),
        (np.zeros((1,) * 5), "an array of 5 axes"),
        (np.zeros(3).view(np.recarray), "'numpy.*recarray"),
        (Hostile("true"), "posix.system"),
    ],
)
def test_arrays_of_anything_else_are_refused(value: object, reason: str):
    with pytest.raises(PickleError, match=rf"x\.pkl: refused, .*{reason}"):
        loads_pickle(pickle.dumps(value, 4), name="x.pkl", arrays=True)


class Copy:
    """An array that is pickled as the same bytes as all others."""

    state = np.zeros(100_000, np.uint8).__reduce__()[2]

    def __reduce__(self):
        reconstruct, arguments, _ = np.zeros(1).__reduce__()
        return reconstruct, arguments, self.state


def test_arrays_that_share_their_bytes_do_not_fill_the_memory():
    assert len(loads_pickle(pickle.dumps([Copy()], 3), name="x.pkl", arrays=True)[0]) == 100_000
    bomb = pickle.dumps([Copy() for _ in range(1000)], 3)
    assert len(bomb) < 200_000
    with pytest.raises(PickleError, match="refused, its arrays or bytes share their memory"):
        loads_pickle(bomb, name="x.pkl", arrays=True)


def test_arrays_truncated_or_with_flipped_bits_never_get_further_than_an_error():
    data = pickle.dumps([np.arange(3), np.float32(1)], 4)
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        for part in (bytes(damaged), bytes(damaged[: bit // 8])):
            try:
                loads_pickle(part, name="x.pkl", arrays=True)
            except PickleError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 1000


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(PickleError, match="No such file or directory; check the path"):
        load_pickle(tmp_path / "refs(unc).p")


def test_real_refs_are_read_as_the_standard_library_reads_them(shared_data: Path):
    files = sorted((shared_data / "real_mini_refcoco").glob("*/refs(*).p"))
    assert len(files) == 4
    for file in files:
        with file.open("rb") as stream:
            assert load_pickle(file) == pickle.load(stream)
