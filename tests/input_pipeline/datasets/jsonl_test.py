"""A folder of images and lines of JSON as a dataset."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.builder import BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets import jsonl
from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.evaluation.predictions import encode, jsonl_writer, prediction_line
from refseg_jax.evaluation.thresholds import Thresholds
from tests.input_pipeline.datasets.jsonl_folders import (
    LEFT,
    RIGHT,
    SIZE,
    line,
    record_of,
    square,
    write,
    write_pictures,
)
from tools import build_dataset


def drawn(*polygons: Sequence[float]) -> dict[str, Any]:
    return {"image": "a.png", "expression": "x", "segmentation": polygons}


SOUND = [1, 1, 5, 1, 5, 5]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_pictures(tmp_path / "pictures")


def test_lines_become_records(folder, tmp_path):
    segmentation = {"segmentation": encode(RIGHT)}
    other = {"image": "a.png", "expression": "das Ding rechts", **segmentation}
    write(
        folder,
        line(),
        line(expression="the same thing", category="thing"),
        "",
        other,
        line(expression="both", mask=["left.png", "right.png"]),
        line(expression="a whale", mask=None, form="kind"),
        line(expression="a dog\u2028or two", mask=None),
        line(expression="all of them", mask=["right.png", "left.png"]),
        line(expression="its lid", granularity="part", id="lid"),
    )
    write(folder, other, split="val")
    built = jsonl.build("mine", folder, data_dir=tmp_path / "data")
    assert built == tmp_path / "data" / "mine" / "1.0.0"
    source = RecordSource(str(tmp_path / "data"), "mine", "train")
    assert len(source) == 1
    record = source[0]
    read = [(e.id, e.text, e.granularity, e.referent) for e in record.expressions]
    assert read == [
        ("train-1", "the thing", "object", 0),
        ("train-2", "the same thing", "object", 0),
        ("train-4", "das Ding rechts", "object", 1),
        ("train-5", "both", "multi", 2),
        ("train-6", "a whale", "none", 3),
        ("train-7", "a dog\u2028or two", "none", 4),
        ("train-8", "all of them", "multi", 2),
        ("lid", "its lid", "part", 0),
    ]
    assert [e.text for e in record.expressions if e.form == "kind"] == ["a whale"]
    masks = [record.mask(e.targets) for e in record.expressions]
    np.testing.assert_array_equal(masks[0], LEFT)
    np.testing.assert_array_equal(masks[2], RIGHT)
    np.testing.assert_array_equal(masks[3], LEFT | RIGHT)
    assert not masks[4].any()
    assert [t.category for t in record.targets] == ["thing", ""], "equal masks are one target"
    assert len(RecordSource(str(tmp_path / "data"), "mine", "val")) == 1


def test_predictions_are_a_dataset(folder, tmp_path):
    used = Thresholds(0.5)
    with jsonl_writer(folder / "train.jsonl") as put:
        put(prediction_line("a.png#0", "a.png", "the thing", LEFT, 0.9, thresholds=used))
        put(
            prediction_line(
                "a.png#1", "a.png", "a whale", np.zeros(SIZE, bool), 0.0, thresholds=used
            )
        )
        put(
            prediction_line(
                "a.png#2", "a.png", "no match", RIGHT, 0.6, present=False, thresholds=used
            )
        )
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    record = RecordSource(str(tmp_path / "data"), "mine", "train")[0]
    assert [(e.id, e.granularity) for e in record.expressions] == [
        ("a.png#0", "object"),
        ("a.png#1", "none"),
        ("a.png#2", "none"),
    ]
    assert not record.mask(record.expressions[2].targets).any()
    np.testing.assert_array_equal(record.mask(record.expressions[0].targets), LEFT)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line(box=[1, 2, 3]), "'box' is [1, 2, 3]; write [x, y, width, height] in pixels"),
        (line(box=[1, 2, 0, 3]), "'box' is [1, 2, 0, 3]; write"),
        (line(box=[1, 2, True, 3]), "'box' is [1, 2, True, 3]; write"),
        (line(box=[15, 2, 3, 3]), "a mask lies outside of its 'box' [15.0, 2.0, 3.0, 3.0]"),
        (line(mask=None, box=[1, 2, 3, 3]), "a 'box', and nothing matches"),
        ({"image": "a.png", "expression": "x", "box": [1, 2, 3, 3]}, 'needs "segmentation": "box"'),
        (
            {"image": "a.png", "expression": "x", "segmentation": "box"},
            "'segmentation' is 'box', and no 'box' is given",
        ),
        (
            {"image": "a.png", "expression": "x", "segmentation": "box", "box": [30, 2, 3, 3]},
            "train.jsonl:2: a region from (30, 2) to (33, 5) leaves the image of 20 x 12 pixels; cor",
        ),
        (
            drawn(SOUND, [0, 0, 40, 0, 40, 12]),
            "train.jsonl:2: a region from (0, 0) to (40, 12) leaves",
        ),
        (
            drawn(SOUND, [2, 13, 6, 13, 4, 16]),
            "a region from (2, 13) to (6, 16) leaves the image of",
        ),
        (
            drawn(SOUND, [2, 2, 6, 2, 4, -5.5]),
            "a region from (2, -5.5) to (6, 2) leaves the image of",
        ),
        (drawn([2, 2, 2.1, 2, 2.1, 2.1]), "train.jsonl:2: the region covers no pixel"),
        (line(image_id="000000391895"), "write COCO's ids without zeros in front"),
        (line(present="no"), "train.jsonl:2: 'present' is 'no'; write true or false"),
        (line(present=False), "train.jsonl:2: a region, and 'present' is false; leave one of"),
        (
            {**drawn(SOUND), "segmentation": encode(np.ones((3, 3))), "present": False},
            "train.jsonl:2: the RLE's size is [3, 3], the image's [12, 20]",
        ),
        ('{"image": "a.png",', "line 1 column 19 (char 18)); one object a line"),
        (line(image_id=1.5), "'image_id' is 1.5, no text"),
        (line(parent="train-1", granularity="object"), "a 'object' with a parent"),
        (line(parent="train-1"), "a region that is its own parent, or has two"),
        (line(parent="train-3"), "its parent 'train-3' is no expression of this image"),
        (line(parent="train-2", mask="right.png"), "is its own parent"),
        ("{", "train.jsonl:2: no JSON"),
        ("[1]", "train.jsonl:2: a list; write one JSON object a line"),
        (line(colour="red"), "train.jsonl:2: unknown field 'colour'"),
        (line(experssion="x"), "did you mean 'expression'?"),
        (line(expression=" "), "train.jsonl:2: 'expression' is ' ', no text"),
        (line(image=3), "train.jsonl:2: 'image' is 3, no text"),
        (line(image="a\0"), "train.jsonl:2: 'image' is 'a\\x00', no text"),
        (line(category=None), "train.jsonl:2: 'category' is None, no text"),
        ('{"image": "a.png", "expression": "\\ud800", "mask": null}', "no text"),
        ({"expression": "x", "mask": None}, "train.jsonl:2: 'image' is missing"),
        ("[" * 100_000, "train.jsonl:2: no JSON"),
        ({"image": "a.png", "expression": "x"}, "give either 'mask' or 'segmentation'"),
        (line(segmentation=None), "give either 'mask' or 'segmentation'"),
        (line(mask=7), "'mask' is 7; name a file"),
        (line(mask=[]), "'mask' is []; name a file"),
        (line(granularity="none"), "granularity 'none' with 1 targets"),
        (line(mask=None, granularity="part"), "granularity 'part' with 0 targets"),
        (
            line(image="turned.png"),
            "left.png is 20 x 12, its image 12 x 20; draw it at the image's size. An EXIF flag turns "
            "the picture to 12 x 20: draw on what is seen, or save it upright",
        ),
        (line(mask=None, form="kinds"), "unknown form 'kinds': did you mean 'kind'?"),
        (line(granularity="prat"), "unknown granularity 'prat': did you mean 'part'?"),
        (line(image="b.png"), "b.png: No such file or directory; correct the name"),
        (line(mask="none.png"), "none.png: No such file or directory; correct the name"),
        (line(mask="small.png"), "small.png is 5 x 6, its image 20 x 12"),
        (line(mask="empty.png"), "empty.png has no pixel; write null where nothing matches"),
        (line(mask="lossy.jpg"), "lossy.jpg: a JPEG keeps no exact mask; save it as PNG"),
        (
            line(mask="soft.png"),
            "soft.png: shows 3 levels, a mask two; save it black and white, or",
        ),
        (line(mask="soft.png", threshold=0), "'threshold' is 0; it is a level of 1 to 255"),
        (line(mask="soft.png", threshold=0.5), "'threshold' is 0.5; it is a level of 1 to 255"),
        (line(mask="soft.png", threshold=True), "'threshold' is True; it is a level of 1"),
        (line(mask=None, threshold=9), "a 'threshold' without a 'mask'; leave it out"),
        (line(mask="soft.png", threshold=200), "soft.png has no pixel; write null where nothing"),
        (line(mask="lossy.webp"), "lossy.webp: is WebP, no PNG, BMP, GIF, TIFF"),
        (line(mask="lossy.tif"), "lossy.tif: a JPEG keeps no exact mask; save it as PNG"),
        (line(mask="train.jsonl"), "train.jsonl: is JSON, no PNG"),
        (
            {"image": "a.png", "expression": "x", "segmentation": "left.png"},
            "train.jsonl:2: the segmentation is a text",
        ),
        (line(id="train-1"), "expression id 'train-1' occurs twice"),
        (
            {"image": "a.png", "expression": "x", "segmentation": [[1, 2, 3]]},
            "train.jsonl:2: a polygon has an odd number of coordinates (3)",
        ),
        (
            {"image": "a.png", "expression": "x", "segmentation": encode(np.ones((3, 3)))},
            "train.jsonl:2: the RLE's size is [3, 3], the image's [12, 20]",
        ),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_built(folder, tmp_path, bad, said):
    Image.fromarray(np.ones((6, 5), np.uint8)).save(folder / "small.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "empty.png")
    for ending, options in (("jpg", {}), ("webp", {}), ("tif", {"compression": "jpeg"})):
        Image.fromarray(np.uint8(255 * LEFT)).save(folder / f"lossy.{ending}", **options)
    Image.fromarray(np.uint8(90 * LEFT + 90 * RIGHT + LEFT)).save(folder / "soft.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "a.png").save(folder / "turned.png", exif=turned)
    write(folder, line(), bad)
    with pytest.raises(UserError) as caught:
        jsonl.build("mine", folder, data_dir=tmp_path / "data")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "mine" / "1.0.0").exists()


def test_a_file_that_is_not_utf8_is_named(folder, tmp_path):
    (folder / "train.jsonl").write_bytes('{"image": "ä"}'.encode("latin-1"))
    with pytest.raises(BuildError, match=r"train\.jsonl:1: is not UTF-8"):
        jsonl.build("mine", folder, data_dir=tmp_path / "data")


@pytest.mark.parametrize("split", ["all", "train+val", "a b", "train[0]", "x.partial", "0"])
def test_a_split_that_tfds_could_not_open_is_refused(folder, tmp_path, split):
    write(folder, line(), split=split)
    with pytest.raises(BuildError, match="a split cannot be called"):
        jsonl.build("mine", folder, data_dir=tmp_path / "data")


def test_files_of_editors_that_mark_them_are_read(folder, tmp_path):
    text = "\n".join(json.dumps(line(expression=text)) for text in ("one", "two"))
    (folder / "val.jsonl").write_text("\n" + text, encoding="utf-8-sig")
    (folder / "train.jsonl").write_text(text, encoding="utf-8-sig")
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    for split in ("train", "val"):
        record = RecordSource(str(tmp_path / "data"), "mine", split)[0]
        assert [e.text for e in record.expressions] == ["one", "two"]


def test_a_folder_in_the_place_of_a_file_is_named(folder, tmp_path):
    (folder / "train.jsonl").mkdir()
    with pytest.raises(BuildError, match=r"train\.jsonl: Is a directory; it must be a file"):
        jsonl.build("mine", folder, data_dir=tmp_path / "data")


def test_the_command_line_builds_it(folder, tmp_path, capsys):
    write(folder, line())
    flags = ["--dataset=jsonl", f"--source_dir={folder}", f"--data_dir={tmp_path / 'data'}"]
    assert build_dataset.main(flags) == 1
    assert "jsonl: no --name; give the dataset a name" in capsys.readouterr().err
    assert build_dataset.main([*flags, "--name=Mine"]) == 1
    assert "dataset name 'Mine': use a-z" in capsys.readouterr().err
    assert build_dataset.main([*flags, "--name=mine", "--splits=vla"]) == 1
    assert "unknown split 'vla'" in capsys.readouterr().err
    assert build_dataset.main([*flags, "--name=mine", "--splits=train"]) == 0
    assert len(RecordSource(str(tmp_path / "data"), "mine", "train")) == 1
    write(folder, line(), line(image="gone.png"))
    assert build_dataset.main([*flags, "--name=mine", "--overwrite"]) == 1
    assert len(RecordSource(str(tmp_path / "data"), "mine", "train")) == 1, "the old one stays"
    write(folder, line(expression="new"))
    assert build_dataset.main([*flags, "--name=mine", "--overwrite"]) == 0
    record = RecordSource(str(tmp_path / "data"), "mine", "train")[0]
    assert record.expressions[0].text == "new"


def test_a_folder_without_lines_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no \*\.jsonl there; write one for each split"):
        jsonl.build("mine", tmp_path, data_dir=tmp_path / "data")


def test_a_part_knows_its_object(folder, tmp_path):
    write(
        folder,
        line(expression="the lid", parent="box", mask="right.png"),
        line(expression="the box", id="box", category="box"),
        line(expression="its lid", parent="box", mask="right.png"),
    )
    record = record_of(folder, tmp_path)
    assert [(t.parent, t.granularity, t.category) for t in record.targets] == [
        (1, "part", ""),
        (-1, "object", "box"),
    ]
    assert [e.granularity for e in record.expressions] == ["part", "object", "part"]


def test_a_parent_is_one_region(folder, tmp_path):
    write(
        folder,
        line(expression="both", id="both", mask=["left.png", "right.png"]),
        line(parent="both", segmentation=encode(square(0, 0, 1)), mask=None),
    )
    bad = (folder / "train.jsonl").read_text().replace(', "mask": null', "")
    (folder / "train.jsonl").write_text(bad)
    with pytest.raises(BuildError, match=r"train\.jsonl:2: its parent 'both' is 2 regions"):
        record_of(folder, tmp_path)


def test_a_box_is_a_region_only_where_the_line_says_so(folder, tmp_path):
    boxed = {"image": "a.png", "expression": "x", "segmentation": "box", "box": [12, 5, 4, 4]}
    write(
        folder,
        line(box=[0, 0, 8.5, 12]),
        boxed,
        line(expression="y", segmentation="box", box=[0, 0, 2, 3]),
    )
    text = (folder / "train.jsonl").read_text().replace(', "mask": "left.png", "segm', ', "segm')
    (folder / "train.jsonl").write_text(text)
    record = record_of(folder, tmp_path)
    np.testing.assert_array_equal(record.mask([0]), LEFT)
    np.testing.assert_array_equal(record.mask([1]), RIGHT)
    assert record.mask([2]).sum() == 6
    assert json.loads(record.metadata) == {"boxes": [1, 2]}


def test_a_region_that_a_mask_gives_too_is_no_box(folder, tmp_path):
    boxed = {"image": "a.png", "expression": "x", "segmentation": "box", "box": [12, 5, 4, 4]}
    write(folder, boxed, line(mask="right.png"))
    record = record_of(folder, tmp_path)
    assert (len(record.targets), record.metadata) == (1, "")


def test_polygons_that_slip_over_the_border_are_cut(folder, tmp_path):
    over = [[-5, -4, 8, -4, 8, 5, -5, 5], [12, 8, 25, 8, 25, 17, 12, 17]]
    write(folder, drawn(*over))
    mask = record_of(folder, tmp_path).mask([0])
    expected = np.zeros(SIZE)
    expected[:5, :8] = expected[8:, 12:] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("image_id", [391895, "391895"])
def test_an_image_may_say_what_it_is_called_elsewhere(folder, tmp_path, image_id):
    write(folder, line(), line(expression="again", image_id=image_id))
    write(folder, line(), split="val")
    record = record_of(folder, tmp_path)
    assert (record.image_id, record.file_name) == ("391895", "a.png")
    held_out = json.loads((tmp_path / "data/mine/1.0.0/held_out.json").read_text())
    assert held_out == {"val": ["mine/a.png"]}


def test_an_image_has_one_id(folder, tmp_path):
    write(folder, line(image_id="1"), line(image_id="2"))
    with pytest.raises(BuildError, match=r"train\.jsonl:2: the image has the ids '1' and '2'"):
        record_of(folder, tmp_path)
