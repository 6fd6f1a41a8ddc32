"""A folder of images and lines of JSON as a dataset."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.archives import ArchiveError
from input_pipeline.datasets import jsonl
from input_pipeline.datasets.building import BuildError
from input_pipeline.datasets.jsonl_files import find_splits, read_images
from input_pipeline.datasets.jsonl_records import make_record
from input_pipeline.datasets.shards import plan_digest
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.predictions import encode, jsonl_writer, prediction_line
from tests.input_pipeline.archives_test import HOSTILE, files_of_tar
from tools import build_dataset

SIZE = (12, 20)


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


LEFT, RIGHT = square(2, 3), square(5, 12)


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image and two masks, one of them with a palette in which 1 is black."""
    source = tmp_path / "pictures"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(source / "a.png")
    Image.fromarray(np.uint8(255 * LEFT)).save(source / "left.png")
    indexed = Image.fromarray(np.uint8(RIGHT), "P")
    indexed.putpalette([0] * 768)
    indexed.save(source / "right.png")
    return source


def write(folder: Path, *lines: Any, split: str = "train") -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{split}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def line(**fields: Any) -> dict[str, Any]:
    return {"image": "a.png", "expression": "the thing", "mask": "left.png", **fields}


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
        line(expression="a whale", mask=None),
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
    masks = [record.mask(e.targets) for e in record.expressions]
    np.testing.assert_array_equal(masks[0], LEFT)
    np.testing.assert_array_equal(masks[2], RIGHT)
    np.testing.assert_array_equal(masks[3], LEFT | RIGHT)
    assert not masks[4].any()
    assert [t.category for t in record.targets] == ["thing", ""], "equal masks are one target"
    assert len(RecordSource(str(tmp_path / "data"), "mine", "val")) == 1


def test_predictions_are_a_dataset(folder, tmp_path):
    with jsonl_writer(folder / "train.jsonl") as put:
        put(prediction_line("a.png#0", "a.png", "the thing", LEFT, 0.9))
        put(prediction_line("a.png#1", "a.png", "a whale", np.zeros(SIZE, bool), 0.0))
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    record = RecordSource(str(tmp_path / "data"), "mine", "train")[0]
    assert [(e.id, e.granularity) for e in record.expressions] == [
        ("a.png#0", "object"),
        ("a.png#1", "none"),
    ]
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
            "train.jsonl:2: the region covers no pixel",
        ),
        (line(image_id="000000391895"), "write COCO's ids without zeros in front"),
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
        (line(image="turned.png"), "turned.png: an EXIF flag turns it; save it as it is"),
        (line(granularity="prat"), "unknown granularity 'prat': did you mean 'part'?"),
        (line(image="b.png"), "b.png: No such file or directory; correct the name"),
        (line(mask="none.png"), "none.png: No such file or directory; correct the name"),
        (line(mask="small.png"), "small.png is 5 x 6, its image 20 x 12"),
        (line(mask="empty.png"), "empty.png has no pixel; write null where nothing matches"),
        (line(mask="lossy.jpg"), "lossy.jpg: damaged, or no PNG, BMP, GIF, TIFF"),
        (line(mask="lossy.webp"), "lossy.webp: damaged, or no PNG, BMP, GIF, TIFF"),
        (line(mask="lossy.tif"), "lossy.tif: a JPEG keeps no exact mask; save it as PNG"),
        (line(mask="train.jsonl"), "train.jsonl: damaged, or no PNG"),
        (
            {"image": "a.png", "expression": "x", "segmentation": "left.png"},
            "train.jsonl:2: the segmentation is a str",
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
    with pytest.raises(BuildError, match=r"train\.jsonl:1: not UTF-8"):
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
    with pytest.raises(BuildError, match=r"no \*\.jsonl there; write one for each split"):
        jsonl.build("mine", tmp_path, data_dir=tmp_path / "data")


def record_of(folder: Path, tmp_path: Path, split: str = "train", index: int = 0) -> Record:
    """Builds the folder and reads a record."""
    jsonl.build("mine", folder, data_dir=tmp_path / "data")
    return RecordSource(str(tmp_path / "data"), "mine", split)[index]


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


def test_the_lines_of_an_image_in_several_files_are_one_record(folder, tmp_path):
    write(folder, line(), line(image="b.png"), split="train-00000-of-00002")
    write(folder, "", line(expression="later"), split="train-00001-of-00002")
    Image.open(folder / "a.png").save(folder / "b.png")
    record = record_of(folder, tmp_path)
    assert [(e.id, e.text) for e in record.expressions] == [
        ("train-00000-of-00002-1", "the thing"),
        ("train-00001-of-00002-2", "later"),
    ]
    assert len(RecordSource(str(tmp_path / "data"), "mine", "train")) == 2


@pytest.mark.parametrize(
    ("there", "first"), [((0, 2), 1), ((0, 1), 2), ((0, 1, 2, 3), 4), ((1, 2, 3), 0)]
)
def test_a_missing_file_of_a_split_is_named(folder, tmp_path, there, first):
    for number in there:
        write(folder, line(), split=f"train-{number:05d}-of-00003")
    said = rf"train-\*-of-00003\.jsonl are {len(there)} files, number {first} is missing or one is"
    with pytest.raises(BuildError, match=said):
        record_of(folder, tmp_path)


def sample(folder: Path, key: str, stored: Any, **files: Path) -> dict[str, bytes]:
    """Members of a sample: its image, its JSON and masks."""
    data = stored if isinstance(stored, bytes) else json.dumps(stored).encode()
    masks = {f"{key}.{name}.png": path.read_bytes() for name, path in files.items()}
    return {f"{key}.png": (folder / "a.png").read_bytes(), f"{key}.json": data, **masks}


def write_tar(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    path = folder / name
    path.write_bytes(files_of_tar(members))
    return path


def test_tars_of_samples_are_a_split(folder, tmp_path):
    one = {"expression": "the thing", "mask": "x/00.left.png", "image_id": 7}
    two = [
        {"expression": "both", "mask": ["00.l.png", "00.r.png"], "id": "mine"},
        {"expression": "a whale", "mask": None, "image": "00.png"},
        {"expression": "a corner", "segmentation": "box", "box": [0, 0, 2, 2]},
    ]
    left, right = folder / "left.png", folder / "right.png"
    write_tar(folder, "train-000000.tar", sample(folder, "x/00", one, left=left))
    write_tar(folder, "train-000001.tar", sample(folder, "00", two, l=left, r=right))
    record = record_of(folder, tmp_path)
    assert (record.image_id, record.file_name) == ("7", "train-000000.tar/x/00.png")
    assert [(e.id, e.text) for e in record.expressions] == [
        ("train-000000/x/00-1", "the thing"),
    ]
    np.testing.assert_array_equal(record.mask([0]), LEFT)
    record = RecordSource(str(tmp_path / "data"), "mine", "train")[1]
    assert record.image_id == "mine/train-000001.tar/00.png"
    assert [(e.id, e.granularity, e.targets) for e in record.expressions] == [
        ("mine", "multi", (0, 1)),
        ("train-000001/00-2", "none", ()),
        ("train-000001/00-3", "object", (2,)),
    ]
    np.testing.assert_array_equal(record.mask([0, 1]), LEFT | RIGHT)
    assert record.image == (folder / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (b"{", "train.tar/0.json: no JSON"),
        (b"\xff", "train.tar/0.json: not UTF-8"),
        ([], "train.tar/0.json: an empty list"),
        ([{"expression": "x", "mask": None}, {}], "train.tar/0.json:2: 'expression' is missing"),
        (
            {"expression": "x", "mask": "b.png"},
            "no 'b.png' in its sample; there are: 0.png, 0.json",
        ),
        ({"expression": "x", "mask": "../left.png"}, "no '../left.png' in its sample"),
        (
            {"expression": "x", "mask": None, "image": "b.png"},
            "'image' is 'b.png', its sample's is",
        ),
    ],
)
def test_a_bad_sample_is_named(folder, tmp_path, stored, said):
    write_tar(folder, "train.tar", sample(folder, "0", stored))
    with pytest.raises(BuildError) as caught:
        record_of(folder, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sample_has_one_image_and_its_json(folder, tmp_path):
    members = sample(folder, "0", {"expression": "x", "mask": None})
    write_tar(folder, "train.tar", {k: v for k, v in members.items() if k != "0.json"})
    with pytest.raises(BuildError, match=r"train\.tar: sample '0' has no \.json; it needs 0\.json"):
        record_of(folder, tmp_path)
    write_tar(folder, "train.tar", {**members, "0.jpg": b""})
    with pytest.raises(BuildError, match=r"train\.tar: sample '0' has 2 images"):
        record_of(folder, tmp_path)


def test_a_hostile_tar_is_refused(folder, tmp_path):
    (folder / "train.tar").write_bytes(HOSTILE["symbolic.tar"][0])
    with pytest.raises(ArchiveError, match="is a link, a device or sparse"):
        record_of(folder, tmp_path)


def test_a_plan_travels_to_processes_and_knows_when_a_line_changes(folder):
    write(folder, line(), line(expression="again"))
    write_tar(folder, "val.tar", sample(folder, "0", {"expression": "x", "mask": None}))
    splits = {s: read_images(files) for s, files in find_splits(folder).items()}
    for items in splits.values():
        (item,) = pickle.loads(pickle.dumps(items))
        assert item == items[0]
        assert make_record(item, folder=folder, source="mine").image
    write(folder, line(), line(expression="agaim"))
    write_tar(folder, "val.tar", sample(folder, "0", {"expression": "y", "mask": None}))
    changed = {s: read_images(files) for s, files in find_splits(folder).items()}
    digests = {
        plan_digest("mine", plan)
        for plan in (splits, changed, {**splits, "val": changed["val"]}, {**splits})
    }
    assert len(digests) == 3
