"""Which files of a folder are pictures, and what is said of the others."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli.pictures import Found, Picture, check_results, find_pictures, lines_of
from refseg_jax.errors import UserError

_BUFFER = io.BytesIO()
Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(_BUFFER, "JPEG")
JPEG = _BUFFER.getvalue()
JPEG_2000 = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20)


def _write(folder: Path, *names: str, data: bytes = JPEG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _names(found: Found) -> list[str]:
    return [picture.name for picture in found.pictures]


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    names = ["a.GIF", "b.jfif", "c", "d.jpg", "e.txt", "f.jpe"]
    _write(tmp_path, *names)
    _write(tmp_path, "g.png", "h.heic", data=b"no picture at all")
    # What is named like a picture is read, so that its error is told.
    assert find_pictures(tmp_path) == Found(
        [Picture(tmp_path / name, name) for name in [*names, "g.png", "h.heic"]], [], 0, []
    )


def test_what_is_left_out_is_named_once_a_kind(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", ".secret.jpg", ".DS_Store", "._a.jpg", "Thumbs.db")
    _write(tmp_path, "p.jp2", "q.jpg", data=JPEG_2000)
    _write(tmp_path, "notes.txt", "more.TXT", "LICENSE", "lines.jsonl", data=b"words")
    _write(tmp_path / "sub", "b.jpg")
    _write(tmp_path / "sub2", "b.jpg")
    found = find_pictures(tmp_path)
    assert _names(found) == ["a.jpg"]
    assert found.unusable == 2
    assert list(lines_of(found)) == [
        f"error: {tmp_path}/p.jp2 and 1 more: JPEG 2000 is not read here; save it as PNG or JPEG",
        f"note: {tmp_path}/LICENSE: no pictures (no suffix), left out",
        f"note: {tmp_path}/lines.jsonl: no pictures (.jsonl), left out",
        f"note: {tmp_path}/more.TXT and 1 more: no pictures (.txt), left out",
        f"note: {tmp_path}/.secret.jpg: hidden, left out",
        f"note: {tmp_path}/sub and 1 more: not entered; --recursive enters sub-folders",
    ]


def test_a_web_page_is_a_picture_only_by_its_name(tmp_path: Path) -> None:
    _write(tmp_path, "index.html", "b.jpg", data=b"<!DOCTYPE html><html>...")
    _write(tmp_path, "drawing.svg", data=b'<svg xmlns="http://www.w3.org/2000/svg">')
    assert list(lines_of(find_pictures(tmp_path))) == [
        f"error: {tmp_path}/b.jpg: a web page is not read here; download the picture itself",
        f"error: {tmp_path}/drawing.svg: SVG is not read here; save it as PNG or JPEG",
        f"note: {tmp_path}/index.html: no pictures (.html), left out",
    ]


def test_sub_folders_are_entered_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    _write(folder, "z.jpg", "sub/b.jpg", "sub/deep/c.jpg", ".git/d.jpg", "out/old.jpg")
    _write(tmp_path / "away", "e.jpg")
    (folder / "link").symlink_to(tmp_path / "away")
    (folder / "sub" / "round").symlink_to(folder)
    found = find_pictures(folder, recursive=True, without=folder / "out")
    assert _names(found) == ["z.jpg", "link/e.jpg", "sub/b.jpg", "sub/deep/c.jpg"]
    assert all(picture.path == folder / picture.name for picture in found.pictures)
    assert found.notes == [f"{folder}/.git: hidden, left out"]
    # Without it, the folder of results is no news.
    shutil.rmtree(folder / "sub")
    assert find_pictures(folder, without=folder / "out").notes == [
        f"{folder}/.git: hidden, left out",
        f"{folder}/link: not entered; --recursive enters sub-folders",
    ]


def test_what_cannot_be_opened_is_named_and_not_opened(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"\xd6\xd0.jpg")).write_bytes(JPEG)
    found = find_pictures(tmp_path)
    assert _names(found) == ["a.jpg"]
    assert found.unusable == 4
    assert list(lines_of(found)) == [
        f"error: {tmp_path}/b.png: is a pipe, no file; give a picture that can be read",
        f"error: {tmp_path}/c.png: is a device, no file; give a picture that can be read",
        f"error: {tmp_path}/d.png: No such file or directory; give a picture that can be read",
        rf"error: {tmp_path}/\udcd6\udcd0.jpg: its name is not UTF-8; rename it",
    ]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder, in a process that no permission passes by: root becomes another user meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid():
            yield Path(folder)
            return
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_folders_that_may_be_listed_and_not_entered_leave_the_others(shared: Path) -> None:
    _write(shared, "a.jpg", "closed/b.jpg", "open/c.jpg")
    (shared / "closed").chmod(0o644)
    try:
        found = find_pictures(shared, recursive=True)
    finally:
        (shared / "closed").chmod(0o755)
    assert _names(found) == ["a.jpg", "open/c.jpg"]
    assert found.unusable == 1
    assert list(lines_of(found)) == [
        f"error: {shared}/closed/b.jpg: Permission denied; give a picture that can be read"
    ]


def test_links_to_themselves_are_named_and_end_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    found = find_pictures(tmp_path, recursive=True, without=loop)
    assert _names(found) == ["a.jpg"]
    assert [line.startswith(f"error: {loop}: Too many") for line in lines_of(found)] == [True]
    check_results(found.pictures, loop)


def test_a_file_is_taken_as_a_picture_whatever_its_name(tmp_path: Path) -> None:
    _write(tmp_path, ".a", "b.txt")
    _write(tmp_path, "c.txt", data=b"words")
    for name in (".a", "b.txt", "c.txt"):
        assert find_pictures(tmp_path / name) == Found([Picture(tmp_path / name, name)], [], 0, [])
    with pytest.raises(UserError, match="no such file or folder; name an image"):
        find_pictures(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "result",
    [
        *("a.jpg-0-mask.png", "a.jpg-12-overlay.png", "a.jpg-3-regions.png"),
        *("a.jpg-groups-low.png", "predictions.jsonl", "matches.jsonl", "A.JPG-0-mask.png"),
    ],
)
def test_no_result_gets_the_name_of_a_picture(result: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "pictures", "a.jpg", result)
    pictures = find_pictures(folder).pictures
    assert len(pictures) == 2
    (tmp_path / "link").symlink_to(folder)
    for output in (folder, tmp_path / "link", folder / ".." / "pictures"):
        with pytest.raises(UserError, match="name another --output_dir") as error:
            check_results(pictures, output)
        assert str(error.value).startswith(f"{folder}/{result}: ")
    check_results(pictures, tmp_path / "out")


def test_results_beside_pictures_are_no_mistake(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.jpg-0-mask.png", "sub/a.jpg", "sub/c.jpg-0-mask.png")
    check_results(find_pictures(tmp_path, recursive=True).pictures, tmp_path)
    _write(tmp_path, "sub/c.jpg")
    with pytest.raises(UserError, match=r"sub/c\.jpg-0-mask\.png: "):
        check_results(find_pictures(tmp_path, recursive=True).pictures, tmp_path)
    # These go to sub/, where nothing is replaced.
    check_results(find_pictures(tmp_path, recursive=True).pictures, tmp_path / "sub")
