import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.formats import archives
from input_pipeline.formats.archives import (
    ArchiveError,
    Member,
    extract,
    source_folder,
    tar_members,
)

FILES = {
    "data/a.txt": b"first",
    "data/deep/er/b.bin": random.Random(0).randbytes(300_000),
    "empty": b"",
    "data/" + 120 * "long" + "/" + 40 * "n" + "ämé.json": b"[]",
}
FILES = {name.replace(120 * "long", "/".join(12 * [10 * "long"])): d for name, d in FILES.items()}


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as stored:
        for info, data in members:
            stored.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def files_of_tar(files: dict[str, bytes] = FILES, format: int = tarfile.PAX_FORMAT) -> bytes:
    folder = info("data", type=tarfile.DIRTYPE, mode=0o755)
    members = [(info(name, len(data)), data) for name, data in files.items()]
    return tar_bytes((folder, b""), *members, format=format)


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = 8) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as stored:
        for name, data in members:
            stored.writestr(name, data)
    return buffer.getvalue()


def files_of_zip(files: dict[str, bytes] = FILES) -> bytes:
    return zip_bytes(("data/", b""), *files.items())


SOUND = {
    "a.zip": files_of_zip(),
    "a.tar": files_of_tar(),
    "gnu.tar": files_of_tar(format=tarfile.GNU_FORMAT),
    "a.tar.gz": gzip.compress(files_of_tar()),
    "A.TGZ": gzip.compress(files_of_tar()),
    "a.tar.xz": lzma.compress(files_of_tar()[:7000]) + lzma.compress(files_of_tar()[7000:]),
    "a.txz": lzma.compress(files_of_tar()),
}


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_archive_comes_out_as_it_went_in(tmp_path, name):
    archive = write(tmp_path, name, SOUND[name])
    extract(archive, tmp_path / "out")
    assert read_folder(tmp_path / "out") == FILES
    assert {path.name for path in tmp_path.iterdir()} == {name, "out"}


def link(target: str, kind: bytes) -> bytes:
    return tar_bytes((info("a", type=kind, linkname=target), b""), (info("a/b", 1), b"x"))


def zip_link() -> bytes:
    entry = zipfile.ZipInfo("a")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zip_bytes((entry, b"/etc"), ("a/b", b"x"))


def sparse() -> bytes:
    return tar_bytes(
        (info("a", 0, pax_headers={"GNU.sparse.size": "99", "GNU.sparse.map": "0,0"}), b"")
    )


def encrypted() -> bytes:
    data = bytearray(zip_bytes(("a", b"x"), method=0))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """The same bytes many times: what an archive can hold without holding it."""
    data = zip_bytes(("a", bytes(1 << 20)))
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    many = 3000 * data[start:end]
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3000, 3000, len(many), start, 0)
    return data[:start] + many + tail


HOSTILE: dict[str, tuple[bytes, str]] = {
    "up.zip": (zip_bytes(("../a", b"x")), "'../a' leads out of the archive"),
    "up.tar": (tar_bytes((info("b/../../a", 1), b"x")), "leads out of the archive"),
    "absolute.tar": (tar_bytes((info("/tmp/a", 1), b"x")), "leads out of the archive"),
    "windows.zip": (zip_bytes(("b\\..\\..\\a", b"x")), "leads out of the archive"),
    "drive.zip": (zip_bytes(("C:\\a", b"x")), "leads out of the archive"),
    "symbolic.tar": (link("/etc", tarfile.SYMTYPE), "is a link, a device or sparse"),
    "hard.tar": (link("/etc/passwd", tarfile.LNKTYPE), "is a link, a device or sparse"),
    "device.tar": (link("", tarfile.CHRTYPE), "is a link, a device or sparse"),
    "pipe.tar.gz": (gzip.compress(link("", tarfile.FIFOTYPE)), "is a link, a device or sparse"),
    "sparse.tar": (sparse(), "is a link, a device or sparse"),
    "link.zip": (zip_link(), "is a link or a device"),
    "encrypted.zip": (encrypted(), "is encrypted"),
    "method.zip": (zip_bytes(("a", b"x"), method=zipfile.ZIP_LZMA), "is compressed by method 14"),
    "twice.tar": (tar_bytes((info("a", 1), b"x"), (info("./a", 1), b"y")), "occurs twice"),
    "both.tar": (tar_bytes((info("a", 1), b"x"), (info("a/b", 1), b"y")), "is a file and a folder"),
    "over.tar": (tar_bytes((info("a/b", 1), b"x"), (info("a", 1), b"y")), "occurs twice"),
    "no_name.zip": (zip_bytes(("a", b"x")).replace(b"a", b"."), "is no name of a file"),
    "no_name.tar": (tar_bytes((info("./", 1), b"x")), "is no name of a file"),
    "line.tar": (tar_bytes((info("a\nb", 1), b"x")), "is no name of a file"),
    "bomb.zip": (zip_bytes(("a", bytes(90 << 20))), "more than 200 times"),
    "overlapping.zip": (overlapping(), "occurs twice"),
    "bomb.tar.gz": (gzip.compress(tar_bytes((info("a", 90 << 20), bytes(90 << 20)))), "200 times"),
    "header.tar.gz": (
        gzip.compress(tar_bytes((info("a", 1, pax_headers={"comment": "x" * (2 << 20)}), b"x"))),
        "a header of ",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, name):
    data, reason = HOSTILE[name]
    archive = write(tmp_path, name, data)
    with pytest.raises(ArchiveError) as caught:
        extract(archive, tmp_path / "in" / "out")
    message = str(caught.value)
    assert message.startswith(f"{archive}: ")
    assert reason in message
    assert "\n" not in message
    assert "if you trust it" in message
    assert list((tmp_path / "in").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {name, "in"}


def negative() -> bytes:
    """A member whose size is less than nothing, so that the next one is it again, for ever."""
    data = bytearray(tar_bytes((info("a", 1), b"x")))
    data[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def test_a_tar_that_goes_backwards_does_not_go_on_for_ever(tmp_path):
    with pytest.raises(ArchiveError):
        extract(write(tmp_path, "a.tar", negative()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArchiveError, match="a member before the end of another"):
        list(tar_members(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", SOUND)
def test_a_truncated_archive_is_one_line_wherever_it_ends(tmp_path, name):
    data = SOUND[name]
    for end in (0, 1, 100, 511, 512, 1024, len(data) // 2, len(data) - 10_300, len(data) - 200):
        if not 0 <= end < len(data):
            continue
        if name.endswith(".tar") and not data[end:].strip(b"\0") and len(data) - end < 10_000:
            continue  # What is missing is padding.
        archive = write(tmp_path, name, data[:end])
        with pytest.raises(ArchiveError, match="cannot be unpacked") as caught:
            extract(archive, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar"])
def test_damaged_bytes_are_one_line_or_do_not_matter(tmp_path, name):
    draw = random.Random(1)
    for _ in range(40):
        data = bytearray(SOUND[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        archive = write(tmp_path, name, bytes(data))
        try:
            extract(archive, tmp_path / "out")
        except ArchiveError as error:
            assert "\n" not in str(error)
            assert not list(tmp_path.glob("out*"))
        else:
            archives.shutil.rmtree(tmp_path / "out")


COMPANIONS = {
    "__MACOSX/._mine": b"\0\5\x16\7",
    "__MACOSX/mine/._a.png": b"\0\5\x16\7",
    "mine/._a.png": b"\0\5\x16\7",
    "._mine/x": b"",
}


def test_companions_of_macos_are_no_members(tmp_path):
    files = {"mine/a.png": b"1", "mine/.hidden": b"2", "mine/a._b": b"3", "__MACOSX.txt": b"4"}
    both = {**COMPANIONS, **files}
    tar = tar_bytes(*((info(name, len(data)), data) for name, data in both.items()))
    for name, data in {
        "a.zip": zip_bytes(*both.items()),
        "a.tar": tar,
        "a.tar.gz": gzip.compress(tar),
    }.items():
        archive = write(tmp_path, name, data)
        with source_folder(archive, tmp_path / "data") as folder:
            assert read_folder(folder) == files
            assert {path.name for path in folder.iterdir()} == {"mine", "__MACOSX.txt"}
    assert {member.name for member in tar_members(tmp_path / "a.tar")} == files.keys()


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MEMBERS", 20)
    archive = write(tmp_path, "a.zip", zip_bytes(*((str(n), b"") for n in range(30))))
    with pytest.raises(ArchiveError, match="more than 20 members"):
        extract(archive, tmp_path / "out")


def test_rights_of_an_archive_are_not_taken_over(tmp_path):
    archive = write(tmp_path, "a.tar", tar_bytes((info("a", 1, mode=0o6777, uid=1234), b"x")))
    extract(archive, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) & 0o7111 == 0
    assert (tmp_path / "out/a").stat().st_uid == os.getuid()


def test_members_of_a_plain_tar_are_where_it_says(tmp_path):
    archive = write(tmp_path, "a.tar", SOUND["a.tar"])
    members = list(tar_members(archive))
    data = archive.read_bytes()
    assert {m.name: data[m.offset : m.offset + m.size] for m in members} == FILES
    assert isinstance(members[0], Member)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.endswith(".tar")])
def test_a_plain_tar_is_checked_without_unpacking_it(tmp_path, name):
    data, reason = HOSTILE[name]
    with pytest.raises(ArchiveError, match=reason):
        list(tar_members(write(tmp_path, name, data)))


def test_a_compressed_or_truncated_tar_has_no_places(tmp_path):
    with pytest.raises(ArchiveError, match="gzip compressed, which its name does not say"):
        list(tar_members(write(tmp_path, "a.tar", SOUND["a.tar.gz"])))
    with pytest.raises(ArchiveError, match=r"truncated|unexpected end"):
        list(tar_members(write(tmp_path, "a.tar", SOUND["a.tar"][:100_000])))


def test_a_source_is_a_folder_or_the_content_of_an_archive(tmp_path):
    with source_folder(tmp_path, tmp_path / "data") as folder:
        assert folder == tmp_path
    archive = write(tmp_path, "a.zip", SOUND["a.zip"])
    with source_folder(archive, tmp_path / "data") as folder:
        assert read_folder(folder) == FILES
    with source_folder(archive / "data" / "deep", tmp_path / "data") as folder:
        assert read_folder(folder) == {"er/b.bin": FILES["data/deep/er/b.bin"]}
    assert not (tmp_path / "data").exists()


def end_by(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


@pytest.mark.parametrize(("error", "kept"), [(ValueError("x"), False), (KeyboardInterrupt(), True)])
def test_what_was_unpacked_is_kept_only_where_the_build_can_go_on(tmp_path, error, kept):
    archive = write(tmp_path, "a.zip", SOUND["a.zip"])
    before = None
    with pytest.raises(type(error)), source_folder(archive, tmp_path / "data") as folder:
        before = folder
        end_by(error)()
    assert before is not None
    assert before.is_dir() == kept
    with source_folder(archive, tmp_path / "data") as folder:
        assert folder == before
        assert read_folder(folder) == FILES


def test_an_error_speaks_of_the_archive(tmp_path):
    archive = write(tmp_path, "a.zip", SOUND["a.zip"])
    with (
        pytest.raises(OSError, match="No such file") as caught,
        source_folder(archive / "data", tmp_path / "data") as folder,
    ):
        (folder / "gone").read_bytes()
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{archive}/data/gone'"


def test_two_processes_do_not_share_what_one_removes(tmp_path):
    archive = write(tmp_path, "a.zip", SOUND["a.zip"])
    with (
        source_folder(archive, tmp_path / "data"),
        pytest.raises(ArchiveError, match=r"zip: process \d+ on \S+ builds from it"),
        source_folder(archive, tmp_path / "data"),
    ):
        pass


def test_a_source_that_is_no_archive_and_a_folder_that_is_not_there(tmp_path):
    with (
        pytest.raises(ArchiveError, match=r"a\.rar: neither a folder nor an archive \(\.zip"),
        source_folder(write(tmp_path, "a.rar", b"Rar!"), tmp_path / "data"),
    ):
        pass
    archive = write(tmp_path, "a.zip", SOUND["a.zip"])
    for inner in ("nothing", "data/../.."):
        with (
            pytest.raises(ArchiveError, match=r"no folder .* in it; there are: data, empty"),
            source_folder(archive / inner, tmp_path / "data"),
        ):
            pass
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(ArchiveError, match=r"\(No space left on device\); look after the disk"):
        extract(write(tmp_path, "a.zip", SOUND["a.zip"]), tmp_path / "out")
