import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from input_pipeline.building.conversion import BuildError
from input_pipeline.datasets import jsonl
from input_pipeline.formats.places import Places
from input_pipeline.sources import RecordSource
from refseg_jax.images.files import same_name, spellings
from tests.input_pipeline.datasets.jsonl_folders import line, write, write_pictures
from tests.input_pipeline.formats.jsonl_files_test import sample, write_tar
from tools import build_dataset, doctor

#: A name in which one letter is decomposed by NFD, and none by NFC.
NAME = unicodedata.normalize("NFC", "größer.png")


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """Folders `own`, `other` and `secret`, each with a file `a`."""
    for name in ("own/sub", "other", "secret"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("own", "own/sub", "other", "secret"):
        (tmp_path / name / "a").write_text(name)
    return tmp_path


def read(rooms: Path, name: str, *others: str) -> str:
    places = Places(rooms / "own", tuple(rooms / other for other in others))
    return places.read(name, "train.jsonl:1").decode()


def test_names_are_relative_to_the_folder_and_then_to_the_others(rooms: Path):
    (rooms / "other" / "b").write_text("b")
    assert read(rooms, "a") == read(rooms, "./a") == read(rooms, "nowhere/../a") == "own"
    assert read(rooms, "sub/a") == read(rooms, "sub/../sub//a") == "own/sub"
    assert read(rooms, "a", "other") == "own"
    assert read(rooms, "b", "secret", "other") == "b"
    assert read(rooms, str(rooms / "own" / "a")) == "own"


@pytest.mark.parametrize("name", ["../other/a", "sub/../../other/a", "{rooms}/other/a"])
def test_a_name_leads_out_of_the_folder_only_into_another_that_is_given(rooms: Path, name: str):
    name = name.format(rooms=rooms)
    for others in ((), ("secret",), ("own/sub",)):
        with pytest.raises(BuildError) as caught:
            read(rooms, name, *others)
        assert re.fullmatch(
            rf"train\.jsonl:1: {re.escape(name)} lies outside of {rooms}/own; give "
            r"--image_dir=FOLDER, the folder that holds it",
            str(caught.value),
        )
    assert read(rooms, name, "secret", "other") == "other"


def test_a_folder_with_the_beginning_of_another_is_not_it(rooms: Path):
    (rooms / "own2").mkdir()
    shutil.copy(rooms / "own" / "a", rooms / "own2" / "a")
    with pytest.raises(BuildError, match="lies outside"):
        read(rooms, "../own2/a")


def test_links_of_the_user_are_followed_to_regular_files(rooms: Path):
    (rooms / "own" / "file").symlink_to(rooms / "secret" / "a")
    (rooms / "own" / "folder").symlink_to(rooms / "secret")
    (rooms / "own" / "gone").symlink_to(rooms / "gone")
    (rooms / "own" / "loop").symlink_to(rooms / "own" / "loop")
    (rooms / "own" / "zero").symlink_to("/dev/zero")
    os.mkfifo(rooms / "own" / "pipe")
    (rooms / "own" / "to_pipe").symlink_to("pipe")
    assert read(rooms, "file") == read(rooms, "folder/a") == "secret"
    # Not by way of the folder behind the link.
    assert read(rooms, "folder/../a") == "own"
    for name in ("gone", "loop", "zero", "pipe", "to_pipe", "sub"):
        with pytest.raises(
            BuildError, match=rf"train\.jsonl:1: .*/own/{name}: .*; correct the name"
        ):
            read(rooms, name)


def test_the_folder_behind_a_link_is_the_same_folder(rooms: Path):
    (rooms / "link").symlink_to(rooms / "own")
    assert Places(rooms / "link").read(str(rooms / "own" / "a"), "x") == b"own"
    assert Places(rooms / "own").read(str(rooms / "link" / "a"), "x") == b"own"


def test_backslashes_stand_for_slashes_unless_a_file_has_them(rooms: Path):
    assert read(rooms, "sub\\a") == "own/sub"
    assert read(rooms, ".\\sub\\..\\a") == "own"
    with pytest.raises(BuildError, match="No such file"):
        read(rooms, "..\\other\\a")
    (rooms / "own" / "sub\\a").write_text("with a backslash")
    assert read(rooms, "sub\\a") == "with a backslash"


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_accents_may_be_composed_or_not(rooms: Path, stored: str, named: str):
    (rooms / "own" / unicodedata.normalize(stored, NAME)).write_text("found")
    assert read(rooms, unicodedata.normalize(named, NAME)) == "found"
    assert same_name(unicodedata.normalize(named, NAME)) == NAME


def test_each_spelling_is_tried_once():
    assert spellings("a/b.png") == ["a/b.png"]
    assert spellings("a\\b.png") == ["a\\b.png", "a/b.png"]
    assert len(spellings(f"a\\{NAME}")) == 4


def test_a_name_with_line_ends_is_one_line(rooms: Path):
    for name in ("a\nb", "../\x1b[2Ja"):
        with pytest.raises(BuildError) as caught:
            read(rooms, name)
        assert str(caught.value).isprintable()


def test_a_name_that_no_file_can_have(rooms: Path):
    with pytest.raises(BuildError, match="File name too long; correct the name"):
        read(rooms, 300 * "n")


def test_a_tar_has_its_names_in_any_spelling(tmp_path: Path):
    folder = write_pictures(tmp_path / "pictures")
    stem = unicodedata.normalize("NFD", "tür")
    stored = {"image": "x/tür.png", "expression": "x", "mask": "x\\tür.left.png"}
    members = sample(folder, f"x/{stem}", stored, left=folder / "left.png")
    write_tar(folder, "train.tar", members)
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    record = RecordSource(str(tmp_path / "data"), "mine", "train")[0]
    assert record.mask(record.expressions[0].targets).sum() == 16


def test_the_commands_take_folders_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures = write_pictures(tmp_path / "pictures")
    lines = tmp_path / "lines"
    lines.mkdir()
    write(lines, line(image=str(pictures / "a.png"), mask="../pictures/left.png"), line(id="b"))
    (tmp_path / "none").mkdir()
    source = ["--dataset=jsonl", f"--source_dir={lines}"]
    build = [*source, f"--data_dir={tmp_path / 'data'}", "--name=mine", "--num_workers=0"]
    look = [*source, f"--page={tmp_path / 'doctor.html'}", "--num_workers=0"]
    others = [f"--image_dir={tmp_path / 'none'}", f"--image_dir={pictures}"]
    assert build_dataset.main(build) == 1
    assert "train.jsonl:1: " in capsys.readouterr().err
    assert doctor.main(look) == 1
    assert build_dataset.main([*build, f"--image_dir={tmp_path / 'gone'}"]) == 1
    assert "gone: no such folder; check --image_dir" in capsys.readouterr().err
    assert build_dataset.main([*build, *others]) == 0
    assert doctor.main([*look, *others]) == 0
    source_of = RecordSource(str(tmp_path / "data"), "mine", "train")
    names = {source_of[index].file_name for index in range(len(source_of))}
    assert names == {"a.png", str(pictures / "a.png")}
    assert build_dataset.main(["--dataset=scenes", *build[2:3], f"--image_dir={pictures}"]) == 1
    assert "scenes: --image_dir does not apply to it" in capsys.readouterr().err
