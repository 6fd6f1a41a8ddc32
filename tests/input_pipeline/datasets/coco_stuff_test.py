import json
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets.coco_stuff import CLASSES, CONVERSIONS, NEVER_DRAWN, STUFF, THINGS
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.formats.map_files import blocks, build, report, write_image, write_map

(CONVERSION,) = CONVERSIONS
HEIGHT, WIDTH = 12, 20


def write_source(
    folder: Path, images: str = "images", maps: str = "annotations"
) -> dict[str, np.ndarray]:
    """Two images in train, one in val; returns the maps."""
    drawn = {
        "train2017/000000000009": [0, 255, 181, 43],
        "train2017/000000000025": [24, 91],
        "val2017/000000000139": [255, 156],
    }
    written = {}
    for seed, (name, values) in enumerate(drawn.items()):
        write_image(folder / images / f"{name}.jpg", HEIGHT, WIDTH, seed)
        written[name] = write_map(folder / maps / f"{name}.png", blocks(HEIGHT, WIDTH, values))
    return written


def test_a_target_and_an_expression_for_each_class(tmp_path: Path):
    maps = write_source(tmp_path / "source")
    folder = build(CONVERSION, tmp_path / "source", tmp_path / "data")
    train, (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert [record.image_id for record in train] == ["9", "25"]
    first = train[0]
    assert (first.file_name, first.source) == ("000000000009.jpg", "coco_stuff")
    assert (first.height, first.width) == (HEIGHT, WIDTH)
    assert [(t.category, t.granularity, t.parent) for t in first.targets] == [
        ("person", "object", -1),
        ("bottle", "object", -1),
        ("wood", "stuff", -1),
    ]
    for target, value in enumerate((0, 43, 181)):
        np.testing.assert_array_equal(first.mask([target]), maps["train2017/000000000009"] == value)
    assert [(e.id, e.text, e.targets, e.granularity, e.referent) for e in first.expressions] == [
        ("9-0", "all person", (0,), "category", 0),
        ("9-43", "all bottle", (1,), "category", 1),
        ("9-181", "all wood", (2,), "category", 2),
    ]
    assert [t.category for t in train[1].targets] == ["giraffe", "banner"]
    assert [(t.category, t.granularity) for t in val.targets] == [("sky-other", "stuff")]
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["139"]}
    assert "train: 2 images; published: 118,287" in report(folder)


@pytest.mark.parametrize(
    "images, maps", [("images", "stuffthingmaps"), (".", "stuffthingmaps"), (".", "annotations")]
)
def test_other_places_of_the_same_folders(tmp_path: Path, images: str, maps: str):
    write_source(tmp_path / "source", images, maps)
    plan = CONVERSION.read_plan(tmp_path / "source")
    assert {split: len(items) for split, items in plan.splits.items()} == {"train": 2, "val": 1}
    assert not plan.problems


def test_the_names_are_182_of_which_11_are_never_drawn():
    assert (len(THINGS), len(STUFF), len(NEVER_DRAWN)) == (91, 91, 11)
    assert len({*THINGS, *STUFF}) == 182
    named = {
        1: "person",
        44: "bottle",
        90: "toothbrush",
        91: "hair brush",
        92: "banner",
        182: "wood",
    }
    assert {i: CLASSES.name(i - 1) for i in named} == named
    assert CLASSES.stuff == set(range(91, 182))


def test_one_split_alone_and_maps_of_another_numbering_beside(tmp_path: Path):
    write_source(tmp_path / "source")
    maps = tmp_path / "source" / "annotations"
    (maps / "train2017").rename(tmp_path / "elsewhere")
    other = maps / "val2017" / "000000000139_labelTrainIds.png"
    write_map(other, np.zeros((HEIGHT, WIDTH)))
    plan = CONVERSION.read_plan(tmp_path / "source")
    assert {split: len(items) for split, items in plan.splits.items()} == {"val": 1}


def test_a_map_that_is_all_void_is_left_out_and_counted(tmp_path: Path):
    write_source(tmp_path / "source")
    path = tmp_path / "source" / "annotations" / "train2017" / "000000000009.png"
    write_map(path, np.full((HEIGHT, WIDTH), 255))
    folder = build(CONVERSION, tmp_path / "source", tmp_path / "data")
    assert [record.image_id for record in read_records(folder, "train")] == ["25"]
    assert "images without a labelled pixel, left out: 1" in report(folder)


def missing(image: Path, labels: Path) -> str:
    image.unlink()
    return f"{image}: not there; "


def other_size(image: Path, labels: Path) -> str:
    write_map(labels, np.zeros((HEIGHT, WIDTH + 1)))
    return f"{image}: is {WIDTH} x {HEIGHT}, its annotations are for {WIDTH + 1} x {HEIGHT}; "


def no_class(image: Path, labels: Path) -> str:
    write_map(labels, np.full((HEIGHT, WIDTH), 182))
    return f"{labels}: 182 is no class; "


def truncated(image: Path, labels: Path) -> str:
    labels.write_bytes(labels.read_bytes()[:-30])
    return f"{labels}: "


def damaged(image: Path, labels: Path) -> str:
    image.write_bytes(image.read_bytes()[:-200])
    return f"{image}: the image is damaged"


@pytest.mark.parametrize("harm", [missing, other_size, no_class, truncated, damaged])
def test_what_is_wrong_is_named_and_the_rest_can_be_built(tmp_path: Path, harm):
    source = tmp_path / "source"
    write_source(source)
    line = harm(
        source / "images" / "train2017" / "000000000009.jpg",
        source / "annotations" / "train2017" / "000000000009.png",
    )
    with pytest.raises(BuildError) as error:
        build(CONVERSION, source, tmp_path / "data")
    assert line in str(error.value) and ", 1 problem;" in str(error.value)
    folder = build(CONVERSION, source, tmp_path / "data", skip_missing=True)
    assert [record.image_id for record in read_records(folder, "train")] == ["25"]
    assert any(found.startswith(line) for found in report(folder))


def test_what_has_a_map_for_evaluation_is_held_out_without_its_image_too(tmp_path: Path):
    write_source(tmp_path)
    (tmp_path / "images" / "val2017" / "000000000139.jpg").unlink()
    plan = CONVERSION.read_plan(tmp_path)
    assert (plan.splits["val"], plan.held_out) == ((), {"val": ("139",)})


def test_a_folder_without_the_dataset(tmp_path: Path):
    with pytest.raises(SourceError, match=r"--source_dir must hold images/train2017/\*\.jpg and"):
        build(CONVERSION, tmp_path, tmp_path / "data")
    for name in ("images/train2017", "annotations"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SourceError, match="--source_dir must hold"):
        CONVERSION.read_plan(tmp_path)
    (tmp_path / "annotations" / "val2017").mkdir()
    with pytest.raises(SourceError, match="--source_dir must hold"):
        build(CONVERSION, tmp_path, tmp_path / "data")
