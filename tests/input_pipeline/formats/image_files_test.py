import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from input_pipeline.building.conversion import BuildError, SourceError
from input_pipeline.formats.image_files import ImageFiles, base_name
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS
from tests.input_pipeline.datasets.refcoco_files import (
    build,
    image_path,
    read_records,
    write_source,
)

NAME = "COCO_train2014_000000000007.jpg"


def put(source: Path, *names: str) -> Path:
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    return source


def found(source: Path, name: str = NAME) -> str | None:
    path = ImageFiles(source, IMAGE_FOLDERS, "COCO's train2014").find(name)
    return None if path is None else path.read_text()


@pytest.mark.parametrize(
    "file",
    [
        f"images/train2014/{NAME}",
        "train2014/000000000007.jpg",
        "images/COCO_train2014_000000000007.JPG",
        "train2014/COCO_train2014_000000000007.jpeg",
        "images/train2017/000000000007.jpg",
        "val2017/000000000007.JPEG",
    ],
)
def test_an_image_is_found_under_all_its_names(tmp_path: Path, file: str):
    # Folders before and behind the right one have other images, or none that is one.
    put(tmp_path, file, "images/train2014/000000000008.jpg", "images/mscoco/images/train2014/x.txt")
    put(tmp_path, f"images/train2014/._{NAME}", "val2017/000000000009.jpg")
    for name in (NAME, "000000000007.jpg", "COCO_train2014_000000000007.JPG"):
        assert found(tmp_path, name) == file
    assert found(tmp_path, "COCO_train2014_000000000010.jpg") is None


def test_the_own_name_and_the_first_folder_come_first(tmp_path: Path):
    put(tmp_path, "images/train2014/000000000007.jpg", f"train2014/{NAME}", f"images/{NAME}")
    assert found(tmp_path) == f"train2014/{NAME}"
    assert found(tmp_path, "000000000007.jpg") == "images/train2014/000000000007.jpg"
    assert found(tmp_path, "000000000007.JPG") == "images/train2014/000000000007.jpg"


def test_other_numbers_and_other_names_are_other_images(tmp_path: Path):
    put(tmp_path, "images/07.jpg", "images/COCO_train2014_07.jpg", "images/a.png")
    assert found(tmp_path, "7.jpg") is found(tmp_path, NAME) is found(tmp_path, "a.jpg") is None
    assert found(tmp_path, "A.PNG") == "images/a.png"


def test_accents_may_be_composed_or_not(tmp_path: Path):
    name = unicodedata.normalize("NFD", "Bäume.jpg")
    put(tmp_path, f"images/{name}")
    assert found(tmp_path, unicodedata.normalize("NFC", name)) == f"images/{name}"


def test_a_missing_image_is_expected_in_the_first_folder_that_has_some(tmp_path: Path):
    put(tmp_path, f"images/train2014/._{NAME}", "train2014/a.jpg", "images/b.jpg")
    images = ImageFiles(tmp_path, IMAGE_FOLDERS, "COCO's train2014")
    assert images.expected("c.jpg") == tmp_path / "train2014" / "c.jpg"


def test_a_source_without_images(tmp_path: Path):
    put(tmp_path, f"images/train2014/._{NAME}", "images/train2014/list.txt", "train2014/.a.jpg")
    with pytest.raises(SourceError) as caught:
        ImageFiles(tmp_path, IMAGE_FOLDERS, "COCO's train2014")
    assert str(caught.value) == (
        f"{tmp_path}: no folder of images; put (or link) COCO's train2014 at "
        f"{tmp_path / 'images/train2014'}"
    )


def test_names_of_annotations_lead_nowhere_else():
    assert base_name("train2014/a.jpg") == base_name("..\\..\\a.jpg") == "a.jpg"


def _of_2017(source: Path, image: Path) -> None:
    image.rename(image.with_name("000000000001.jpg"))


def _upper(source: Path, image: Path) -> None:
    image.rename(image.with_suffix(".JPG"))


def _elsewhere(source: Path, image: Path) -> None:
    (source / "val2017").mkdir()
    image.rename(source / "val2017" / image.name)


def _linked(source: Path, image: Path) -> None:
    image.rename(source / "elsewhere")
    image.symlink_to(source / "elsewhere")


def _companions(source: Path, image: Path) -> None:
    for path in (image, source / "refcoco" / "refs(unc).p", source / "refcoco" / "instances.json"):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (source / "images" / "mscoco" / "images" / "train2014").mkdir(parents=True)
    (source / "images" / "mscoco" / "images" / "train2014" / "._a.jpg").write_bytes(b"")


@pytest.mark.parametrize("change", [_of_2017, _upper, _elsewhere, _linked, _companions])
def test_refcoco_is_the_same_whatever_its_images_are_called(
    tmp_path: Path, change: Callable[[Path, Path], None]
):
    source = write_source(tmp_path / "source")
    expected = read_records(build("refcoco/unc", source, tmp_path / "before"), "train")
    change(source, image_path(source, 1))
    read = read_records(build("refcoco/unc", source, tmp_path / "after"), "train")
    assert [r.image for r in read] == [r.image for r in expected]
    assert [r.targets for r in read] == [r.targets for r in expected]
    assert [r.image_id for r in read] == [r.image_id for r in expected]
    image_path(source, 2).unlink()
    with pytest.raises(
        BuildError, match=r"COCO_train2014_000000000002\.jpg: not there; copy it from"
    ):
        build("refcoco/unc", source, tmp_path / "missing")
