"""Downloaded files, in folders and archives, as `tools.doctor` reads them."""

import dataclasses
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.conversion import Conversion, Plan
from input_pipeline.building.own import build_records
from input_pipeline.datasets.registry import CONVERSIONS
from input_pipeline.formats import jsonl_records
from input_pipeline.formats.places import Places
from tests.input_pipeline.datasets import jsonl_folders, regrouped_test
from tests.input_pipeline.datasets.refcoco_files import (
    HEIGHT,
    WIDTH,
    image_path,
    read_instances,
    write_instances,
    write_source,
)
from tests.tools.doctor_test import make
from tools import doctor


def test_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, page = jsonl_folders.write_pictures(tmp_path / "pictures"), tmp_path / "doctor.html"
    names = [f"{number}.png" for number in range(5)]
    for name in names:
        shutil.copy(folder / "a.png", folder / name)
    lines = [jsonl_folders.line(image=name) for name in names]
    (folder / "3.png").write_bytes((folder / "a.png").read_bytes()[:-300])
    lines.append(jsonl_folders.line(image="0.png", box=[15, 2, 3, 3]))
    jsonl_folders.write(folder, *lines)
    jsonl_folders.write(folder, jsonl_folders.line(id="v"), split="val")
    arguments = ["--dataset=jsonl", f"--source_dir={folder}", f"--page={page}"]
    assert doctor.main([*arguments, "--num_workers=0"]) == 1
    assert pickle.dumps(jsonl_records.conversion(Places(folder)).convert), (
        "so that processes can do it"
    )
    out = capsys.readouterr().out
    assert "train: 3 images, 3 refs, 3 expressions; nothing is published of it" in out
    assert "fault          2  cannot be built" in out
    assert "train.jsonl:6: a mask lies outside of its 'box'" in out
    assert "4 sample pictures, examples of what was found" in out
    # The damaged one leaves its place to the one behind it.
    assert re.findall(r"train: (\d.png) \(image jsonl", page.read_text()) == [
        "1.png",
        "2.png",
        "4.png",
    ]

    jsonl_folders.write(folder, "{", split="val")
    assert doctor.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}/val.jsonl:1: no JSON")
    assert error.count("\n") == 1


def test_a_raw_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_source(tmp_path / "source")
    page = tmp_path / "doctor.html"
    arguments = ["--dataset=refcoco/unc", f"--source_dir={source}", f"--page={page}"]
    assert doctor.main([*arguments, "--num_workers=0"]) == 0
    out = capsys.readouterr().out
    assert "train: 3 refs; published: 42,404" in out
    assert "polygons of fewer than three points, left out of masks" in out
    assert "testB: not there; published: 750 images, 1,810 refs, 5,095 expressions" in out
    assert "expressions without a word, left out" in out
    stored = read_instances(source)
    stored["annotations"][-1]["segmentation"] = [[1, 1, 2, 2]]
    write_instances(source, stored)
    assert doctor.main([*arguments, "--num_workers=0"]) == 1
    out = capsys.readouterr().out
    assert "fault          1  cannot be built" in out
    assert f"{image_path(source, 2)}: annotation 20: no polygon has three points" in out
    assert not list(tmp_path.glob("*refcoco*"))


def test_masks_where_the_annotations_say_they_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_source(tmp_path / "source")
    stored = read_instances(source)
    for annotation in stored["annotations"]:
        annotation["bbox"] = [0, 0, 3, 3]
    stored["annotations"][-1]["segmentation"] = [[-9, 4, WIDTH + 9, 4, WIDTH + 9, 9, -9, 9]]
    stored["annotations"][-1]["bbox"] = [0, 4, WIDTH, 5]
    write_instances(source, stored)
    arguments = ["--dataset=refcoco/unc", f"--source_dir={source}", f"--page={tmp_path / 'p.html'}"]
    assert doctor.main([*arguments, "--num_workers=0"]) == 0
    out = capsys.readouterr().out
    assert "remark         3  masks away from their box" in out
    assert "remark         1  polygons that leave the image, cut at its border" in out


def test_an_archive_beside_which_others_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", write_source(tmp_path / "source"))
    build_records("others", {"val": [1, 7]}, make, data_dir=tmp_path / "data")
    page = tmp_path / "doctor.html"
    arguments = ["--dataset=refcoco/unc", f"--source_dir={archive}", f"--page={page}"]
    arguments.append("--num_workers=0")
    assert doctor.main([*arguments, f"--data_dir={tmp_path / 'data'}"]) == 0
    out = capsys.readouterr().out
    assert "1  image of a training split that is in an evaluation set beside it" in out
    assert "train: 1 images of others/val, e.g. image 1" in out
    before = sorted((tmp_path / "data").iterdir())

    image_path(tmp_path / "source", 1).unlink()
    image_path(tmp_path / "source", 2).write_bytes(b"")
    bad = shutil.make_archive(str(tmp_path / "bad"), "zip", tmp_path, "source")
    assert doctor.main([*arguments, f"--source_dir={bad}/source"]) == 1
    text = page.read_text()
    capsys.readouterr()
    assert doctor.main([*arguments, f"--source_dir={bad}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad}/refcoco/refs(unc).p: not there;")
    assert error.endswith(f"; it holds one folder, perhaps you mean --source_dir={bad}/source\n")
    assert f"all: {image_path(Path(bad, 'source'), 1)}: not there" in text
    assert f"val: {image_path(Path(bad, 'source'), 2)}: the image is damaged" in text
    assert "doctor-" not in text
    assert "<h2>Samples: what expressions mean</h2>\n" in text

    def stop(source: Path) -> Plan:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        stopped = dataclasses.replace(CONVERSIONS["refcoco/unc"], read_plan=stop)
        patch.setitem(cast(dict[str, Conversion], CONVERSIONS), "refcoco/unc", stopped)
        assert doctor.main([*arguments, f"--data_dir={tmp_path / 'data'}"]) == 130
    assert sorted((tmp_path / "data").iterdir()) == before
    assert not [path for path in before if path.name.startswith(("doctor", "unpacked"))]

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    for more in ([], [f"--data_dir={tmp_path / 'nothing' / 'yet'}"]):
        assert doctor.main([*arguments, *more]) == 0
        assert "another dataset" not in capsys.readouterr().out
        assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "nothing").exists()


def test_figures_of_the_source_are_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, page = regrouped_test.write_source(tmp_path / "source"), tmp_path / "doctor.html"
    arguments = ["--dataset=g_refc/unc", f"--source_dir={source}", f"--page={page}"]
    assert doctor.main([*arguments, "--num_workers=0"]) == 0
    counts, findings = capsys.readouterr().out.split("\n\n")
    assert "groups in all splits (the GRSer paper has 8,717, by a rule not published): 2" in counts
    assert "groups in all splits" not in findings

    nothing = write_source(tmp_path / "nothing")
    assert doctor.main([*arguments[:1], f"--source_dir={nothing}", f"--page={page}"]) == 2
    assert f"{nothing}: nothing of g_refc/unc is there" in capsys.readouterr().err


def test_what_is_said_of_images_that_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for kind, name, pixels in (
        ("images", "training/ADE_train_00000001.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        ("annotations", "training/ADE_train_00000001.png", np.zeros((HEIGHT, WIDTH), np.uint8)),
    ):
        path = tmp_path / kind / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    names = "".join(f"{k}\t0\t0\t0\tclass {k}\n" for k in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{names}")
    arguments = ["--dataset=ade20k/150", f"--source_dir={tmp_path}", f"--page={tmp_path / 'p'}"]
    assert doctor.main(arguments) == 0
    assert "remark         1  images without a labelled pixel, left out" in capsys.readouterr().out
