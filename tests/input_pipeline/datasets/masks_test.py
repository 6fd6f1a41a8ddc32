"""Exports of other tools as datasets: built by the command, and built again from their lines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.conversion import BuildError
from input_pipeline.datasets import jsonl, masks
from input_pipeline.formats.exchange.lines import NO_MASK
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource
from refseg_jax.images.segmentation import decode_counts
from tests.input_pipeline.formats.exchange import exports
from tests.input_pipeline.formats.exchange.exports import LEFT, RIGHT, picture, write
from tools import build_dataset


def _coco(folder: Path) -> None:
    picture(folder / "images" / "a.png")
    write(folder / "annotations" / "instances_default.json", exports.coco())


def _fiftyone(folder: Path) -> None:
    picture(folder / "data" / "a.png")
    found = [exports.detection(2, 3, 4, "cat"), exports.detection(5, 12, 4, "cat")]
    dog = exports.detection(5, 12, 4, "dog", expression="a small dog")
    found[0]["caption"] = "the left cat"
    write(folder / "samples.json", {"samples": [exports.sample(*found, dog)]})


def _label_studio(folder: Path) -> None:
    picture(folder / "a.png")
    write(
        folder / "project.json",
        [
            exports.task(
                exports.result("1", "polygonlabels", points=exports.left_polygon(), labels=["cat"]),
                exports.result("2", "brush", rle=exports.brush(RIGHT), labels=["cat"]),
                exports.result("3", "brush", rle=exports.brush(RIGHT), labels=["dog"]),
                exports.result("1", "textarea", text=["the left cat"]),
                exports.result("3", "textarea", text="a small dog"),
                exports.result("4", "rectanglelabels", x=0, y=0, width=5, height=5),
            )
        ],
    )


EXPORTS: dict[str, Callable[[Path], None]] = {
    "coco": _coco,
    "fiftyone": _fiftyone,
    "label_studio": _label_studio,
}


def _answers(record: Record) -> dict[str, tuple[str, list[Any]]]:
    """Text -> (granularity, its regions' union)."""
    found = {}
    for expression in record.expressions:
        counts = [record.targets[k].counts for k in expression.targets]
        regions = [decode_counts(one, record.height, record.width) > 0 for one in counts]
        found[expression.text] = (expression.granularity, np.any(regions, axis=0).tolist())
    return found


@pytest.mark.parametrize("form", EXPORTS)
def test_an_export_is_built_and_its_lines_build_the_same(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(EXPORTS) == set(masks.FORMATS)
    source, data = tmp_path / "export", tmp_path / "data"
    EXPORTS[form](source)
    flags = [f"--dataset=masks/{form}", "--name=mine", f"--source_dir={source}"]
    assert build_dataset.main([*flags, f"--data_dir={data}"]) == 0
    assert (NO_MASK in capsys.readouterr().out) == (form == "label_studio")
    record = RecordSource(str(data), "mine", "train")[0]
    assert _answers(record) == {
        "the left cat": ("object", LEFT.tolist()),
        "a small dog": ("object", RIGHT.tolist()),
        "cat": ("category", (LEFT | RIGHT).tolist()),
        "dog": ("category", RIGHT.tolist()),
    }
    (folder,) = (data / "mine").glob("*.*")
    jsonl.build("again", folder / "lines", data_dir=data, image_dir=[source])
    again = RecordSource(str(data), "again", "train")[0]
    assert _answers(again) == _answers(record)
    assert [e.id for e in again.expressions] == [e.id for e in record.expressions]


def test_an_archive_and_a_folder_of_pictures_elsewhere_are_read(tmp_path: Path) -> None:
    _coco(tmp_path / "export")
    (tmp_path / "photos").mkdir()
    (tmp_path / "export" / "images" / "a.png").rename(tmp_path / "photos" / "a.png")
    archive = shutil.make_archive(str(tmp_path / "cvat"), "zip", tmp_path / "export")
    data = tmp_path / "data"
    flags = ["--dataset=masks/coco", "--name=mine", f"--source_dir={archive}"]
    flags += [f"--image_dir={tmp_path}/photos", f"--data_dir={data}"]
    assert build_dataset.main(flags) == 0
    assert len(RecordSource(str(data), "mine", "train")) == 1


def test_a_picture_of_another_size_is_told_with_the_place_in_the_export(tmp_path: Path) -> None:
    _coco(tmp_path)
    picture(tmp_path / "images" / "a.png", (20, 20))
    with pytest.raises(
        BuildError, match=r"instances_default\.json: annotation 1: .*size is \[12, 20\]"
    ):
        masks.build("coco", "mine", tmp_path, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "mine").exists()


def test_an_export_without_a_mask_builds_nothing(tmp_path: Path) -> None:
    content = exports.coco()
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    write(tmp_path / "train.json", content)
    with pytest.raises(
        BuildError, match=r"no picture of 'train' has a mask and a text or category"
    ):
        masks.build("coco", "mine", tmp_path, data_dir=tmp_path / "data")
    with pytest.raises(BuildError, match="unknown split 'val'"):
        masks.build("coco", "mine", tmp_path, data_dir=tmp_path / "data", splits=["val"])


def test_masks_are_not_cut_by_a_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _coco(tmp_path)
    flags = ["--dataset=masks/coco", f"--source_dir={tmp_path}", f"--data_dir={tmp_path}/d"]
    assert build_dataset.main([*flags, "--name=mine", "--mask_threshold=3"]) == 1
    assert "masks/coco: --mask_threshold does not apply" in capsys.readouterr().err
    assert build_dataset.main(flags) == 1
    assert "masks/coco: no --name; give the dataset a name" in capsys.readouterr().err


def test_lines_are_json_that_people_can_read(tmp_path: Path) -> None:
    content = exports.coco()
    content["annotations"][0]["caption"] = "die Katze für Zoë"
    picture(tmp_path / "a.png")
    write(tmp_path / "train.json", content)
    folder = masks.build("coco", "mine", tmp_path, data_dir=tmp_path / "data")
    lines = (folder / "lines" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert "für Zoë" in lines[0]
    assert json.loads(lines[0])["image"] == "a.png"
