"""Damage to archives, which their checksums find."""

import gzip
import io
import lzma
import random
import re
import shutil
import struct
import zipfile

import pytest

from input_pipeline.formats import archive_streams
from input_pipeline.formats.archives import ArchiveError, extract
from tests.input_pipeline.formats.archives_test import files_of_tar, read_folder, write, zip_bytes

SMALL = {"data/a.txt": 5 * b"first ", "data/ämé.json": b"[1]", "empty": b"", "b": b"\x9a\x07\xf0"}
SMALL_ARCHIVES = {
    "stored.zip": zip_bytes(*SMALL.items(), method=0),
    "packed.zip": zip_bytes(*SMALL.items()),
    "a.tar.gz": gzip.compress(files_of_tar(SMALL)),
    "two.tar.gz": gzip.compress(files_of_tar(SMALL)[:1500])
    + gzip.compress(files_of_tar(SMALL)[1500:]),
    "a.tar.xz": lzma.compress(files_of_tar(SMALL)),
}


@pytest.mark.parametrize("name", SMALL_ARCHIVES)
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path, name):
    data, draw = SMALL_ARCHIVES[name], random.Random(0)
    refused = 0
    for bit in draw.sample(range(8 * len(data)), 400):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        archive = write(tmp_path, name, bytes(damaged))
        try:
            extract(archive, tmp_path / "out")
        except ArchiveError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert read_folder(tmp_path / "out") == SMALL, (bit // 8, bit % 8)
            shutil.rmtree(tmp_path / "out")
    assert refused > 200


def test_the_checksum_at_the_end_of_a_compressed_tar_is_compared(tmp_path):
    for name in ("a.tar.gz", "a.tar.xz"):
        data = SMALL_ARCHIVES[name]
        for end in range(1, 9):
            damaged = bytearray(data)
            damaged[-end] ^= 4
            for bad in (bytes(damaged), data[:-end]):
                with pytest.raises(ArchiveError, match="cannot be unpacked"):
                    extract(write(tmp_path, name, bad), tmp_path / "out")


def test_bytes_behind_the_last_stream_of_gzip_are_ignored_as_gzip_does(tmp_path):
    for tail in (b"signed by nobody", bytes(100), gzip.compress(b"more")):
        archive = write(tmp_path, "a.tar.gz", SMALL_ARCHIVES["a.tar.gz"] + tail)
        extract(archive, tmp_path / "out")
        assert read_folder(tmp_path / "out") == SMALL
        shutil.rmtree(tmp_path / "out")
    bomb = SMALL_ARCHIVES["a.tar.gz"] + gzip.compress(bytes(90 << 20))
    with pytest.raises(ArchiveError, match="more than 200 times"):
        extract(write(tmp_path, "a.tar.gz", bomb), tmp_path / "out")


def test_a_zip_lists_as_many_members_as_it_states(tmp_path):
    data = SMALL_ARCHIVES["stored.zip"]
    end = data.index(b"PK\5\6")
    entries = [m.start() for m in re.finditer(b"PK\1\2", data)]
    # The first entry of the directory is gone, and all offsets are right.
    size, start = struct.unpack_from("<II", data, end + 12)
    cut = entries[1] - entries[0]
    tail = bytearray(data[end:])
    struct.pack_into("<II", tail, 12, size - cut, start)
    lacking = data[: entries[0]] + data[entries[1] : end] + bytes(tail)
    with zipfile.ZipFile(io.BytesIO(lacking)) as stored:
        assert len(stored.namelist()) == len(SMALL) - 1
    with pytest.raises(ArchiveError, match="lists 3 members and states 4"):
        extract(write(tmp_path, "a.zip", lacking), tmp_path / "out")


def test_zips_of_many_members_with_and_without_64_bits():
    data = bytearray(zip_bytes(*((str(n), b"") for n in range(65_540)), method=0))
    end = data.index(b"PK\6\6")

    def check(listed: int) -> None:
        archive_streams._check_number(io.BytesIO(data), len(data), listed)

    check(65_540)
    with pytest.raises(zipfile.BadZipFile, match="lists 65539 members and states 65540"):
        check(65_539)
    # As programs write it that have the lower 16 bits alone.
    del data[end : data.index(b"PK\5\6")]
    struct.pack_into("<HH", data, end + 8, 4, 4)
    check(65_540)
    with pytest.raises(zipfile.BadZipFile, match="lists 65539 members and states 4"):
        check(65_539)


def test_the_decoder_of_xz_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_streams, "_XZ_MEMORY", 1 << 20)
    archive = write(tmp_path, "a.tar.xz", lzma.compress(files_of_tar(), preset=9))
    with pytest.raises(ArchiveError, match="Memory usage limit"):
        extract(archive, tmp_path / "out")
