import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.datasets.ade20k import full as ade20k_full
from input_pipeline.datasets.ade20k import scene_parsing as ade20k_150
from input_pipeline.schema import Record
from tests.input_pipeline.datasets.refcoco_files import read_records
from tests.input_pipeline.formats.map_files import blocks, build, report, write_image, write_map

(SCENE_PARSE,) = ade20k_150.CONVERSIONS
(FULL,) = ade20k_full.CONVERSIONS

#: Names of some lines of the real `objectInfo150.txt`, with the blanks that it has.
NAMES = {
    1: "wall",
    2: "building, edifice",
    3: "sky",
    4: "floor, flooring",
    6: "ceiling",
    8: "bed ",
    11: "cabinet",
    19: "curtain, drape, drapery, mantle, pall",
    22: "water",
    137: "traffic light, traffic signal, stoplight",
    150: "flag",
}


def write_names(folder: Path) -> None:
    """`objectInfo150.txt` in its exact form; classes that matter here have their real names."""
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [
        f"{n}{' ' if n == 22 else ''}\t0.1\t1\t1\t{NAMES.get(n, f'thing {n}, it')}"
        for n in range(1, 151)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")


def write_scenes(folder: Path) -> np.ndarray:
    """An image of each split; returns the map of the first."""
    write_names(folder)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write_image(folder / "images" / split / f"{name}.jpg", 9, 12)
        values = write_map(
            folder / "annotations" / split / f"{name}.png", blocks(9, 12, [0, 1, 8, 137])
        )
    return values


def test_scene_parsing(tmp_path: Path):
    values = write_scenes(tmp_path / "source")
    folder = build(SCENE_PARSE, tmp_path / "source", tmp_path / "data")
    (train,) = read_records(folder, "train")
    assert (train.image_id, train.source) == ("ade20k/ADE_train_00000001", "ade20k/150")
    assert [(t.category, t.granularity) for t in train.targets] == [
        ("wall", "stuff"),
        ("bed", "object"),
        ("traffic light", "object"),
    ]
    assert [(e.id, e.text, e.targets, e.granularity) for e in train.expressions] == [
        ("ADE_train_00000001-1", "all wall", (0,), "category"),
        ("ADE_train_00000001-8", "all bed", (1,), "category"),
        ("ADE_train_00000001-137", "all traffic light", (2,), "category"),
    ]
    for target, value in enumerate((1, 8, 137)):
        np.testing.assert_array_equal(train.mask([target]), values == value)
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["ade20k/ADE_val_00000001"]}
    assert "val: 1 images; published: 2,000" in report(folder)


def test_real_scenes_pixel_by_pixel(shared_data: Path, tmp_path: Path):
    sample = shared_data / "ade20k_sceneparsing_sample"
    for kind in ("images", "annotations"):
        shutil.copytree(sample / kind, tmp_path / "source" / kind / "validation")
    write_names(tmp_path / "source")
    folder = build(SCENE_PARSE, tmp_path / "source", tmp_path / "data")
    records = read_records(folder, "val")
    assert [record.image_id for record in records] == [
        f"ade20k/ADE_val_0000000{i}" for i in (1, 2, 3)
    ]
    assert [len(record.targets) for record in records] == [7, 6, 12]
    for record in records:
        with Image.open(sample / "annotations" / f"{Path(record.file_name).stem}.png") as image:
            values = np.asarray(image)
        classes = [int(e.id.rpartition("-")[2]) for e in record.expressions]
        assert classes == [v for v in np.unique(values).tolist() if v]
        for k, value in enumerate(classes):
            np.testing.assert_array_equal(record.mask([k]), values == value)
    assert [t.category for t in records[0].targets][:3] == ["wall", "building", "sky"]


def test_the_stuff_is_the_development_kits(shared_data: Path):
    table = (shared_data / "ade20k_sceneparsing_sample" / "objectInfo150.csv").read_text()
    rows = [line.split(",") for line in table.splitlines()[1:]]
    assert {int(row[0]) for row in rows if row[4] == "1"} == ade20k_150.STUFF


@pytest.mark.parametrize(
    "text", ["", "Idx\tName\n1\twall\n", None, "x\n" + "1\t0\t0\t0\twall\n" * 150]
)
def test_without_the_names_nothing_is_read(tmp_path: Path, text: str | None):
    write_scenes(tmp_path)
    path = tmp_path / "objectInfo150.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SourceError, match=r"objectInfo150\.txt: .*; unpack ADEChallengeData2016"):
        SCENE_PARSE.read_plan(tmp_path)


def test_folders_without_either_dataset(tmp_path: Path):
    for conversion in (SCENE_PARSE, FULL):
        with pytest.raises(SourceError, match=r"--source_dir must hold .*, unpacked"):
            conversion.read_plan(tmp_path)


def test_an_image_without_its_map(tmp_path: Path):
    write_scenes(tmp_path)
    path = tmp_path / "annotations" / "training" / "ADE_train_00000001.png"
    path.unlink()
    (line,) = SCENE_PARSE.read_plan(tmp_path).problems
    assert line.endswith(
        f"ADE_train_00000001.png is not in {path.parent}; unpack ADEChallengeData2016.zip again"
    )


def object_(id_: int, number: int, name: str, level: int = 0, owner: Any = ()) -> dict[str, Any]:
    """An object of a JSON, with the fields that are read and some that are not."""
    return {
        "id": id_,
        "name": name,
        "name_ndx": number,
        "raw_name": name,
        "attributes": [],
        "parts": {
            "hasparts": [],
            "ispartof": owner if isinstance(owner, int) else list(owner),
            "part_level": level,
        },
    }


OBJECTS = [
    object_(0, 401, "car, auto, automobile"),
    object_(4, 402, "car, railcar"),
    object_(5, 1831, "person"),
    object_(6, 3, "-"),
    object_(7, 2700, "wheel", 1, 0),
    object_(8, 2122, "rim", 2, 7),
    object_(9, 2700, "wheel", 1, 4),
]


def regions(*columns: tuple[int, int]) -> np.ndarray:
    """A map of equal columns of (class, B)."""
    classes, objects = blocks(6, 24, range(len(columns))), np.array(columns)
    number, blue = objects[classes, 0], objects[classes, 1]
    return np.stack([number // 256 * 10, number % 256, blue], -1)


#: Two cars of 401, one of 402, a person, and what has no name, in the JSON or at all.
SEG = regions((401, 10), (401, 20), (402, 30), (1831, 40), (3, 50), (999, 60), (0, 0), (0, 0))
#: Wheels of the first and the third car, and one that lies on a person.
PARTS = regions((2700, 10), (0, 0), (2700, 20), (2700, 30), (0, 0), (0, 0), (0, 0), (0, 0))
RIMS = regions((2122, 10), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0))


def write_full(root: Path, split: str = "training", name: str = "ADE_train_00000001") -> Path:
    """An image in the exact layout of the release; returns its path."""
    folder = root / "images" / "ADE" / split / "urban" / "street"
    write_image(folder / f"{name}.jpg", 6, 24)
    write_map(folder / f"{name}_seg.png", SEG)
    write_map(folder / f"{name}_parts_1.png", PARTS)
    write_map(folder / f"{name}_parts_2.png", RIMS)
    write_map(folder / name / f"instance_000_{name}.png", np.zeros((6, 24)))
    write_image(folder / name / "not_of_the_dataset.jpg", 2, 2)
    stored = {"annotation": {"filename": f"{name}.jpg", "object": OBJECTS, "note": "caf\xe9"}}
    text = json.dumps(stored, ensure_ascii=False)
    (folder / f"{name}.json").write_bytes(text.encode("latin-1"))
    return folder / f"{name}.jpg"


def test_objects_parts_and_parts_of_parts(tmp_path: Path):
    write_full(tmp_path / "source")
    write_full(tmp_path / "source", "validation", "ADE_val_00000001")
    folder = build(FULL, tmp_path / "source", tmp_path / "data")
    (record,) = read_records(folder, "train")
    assert (record.image_id, record.source) == ("ade20k/ADE_train_00000001", "ade20k/full")
    assert [(t.category, t.granularity, t.parent) for t in record.targets] == [
        ("car", "object", -1),
        ("car", "object", -1),
        ("car", "object", -1),
        ("person", "object", -1),
        ("wheel", "part", 0),
        ("wheel", "part", 2),
        ("rim", "part", 4),
    ]
    assert [(e.text, e.targets, e.granularity, e.referent) for e in record.expressions] == [
        ("all car", (0, 1, 2), "category", 0),
        ("all person", (3,), "category", 1),
        ("wheel of car", (4, 5), "part", 2),
        ("rim of wheel", (6,), "part", 3),
    ]
    assert record.expressions[2].id == "ADE_train_00000001-wheel_of_car"
    columns = blocks(6, 24, range(8))
    for target, column in enumerate((0, 1, 2, 3, 0, 2, 0)):
        np.testing.assert_array_equal(record.mask([target]), columns == column)
    assert json.loads((folder / HELD_OUT).read_text()) == {"val": ["ade20k/ADE_val_00000001"]}
    lines = report(folder)
    assert "regions whose class has no name in the JSON, left out: 4" in lines
    assert "parts outside of every object that may own them, left out: 2" in lines


@pytest.mark.parametrize("split_at, parent", [(4, 0), (2, 1)])
def test_a_part_belongs_to_what_it_shares_most_pixels_with(
    tmp_path: Path, split_at: int, parent: int
):
    """A wheel over both cars, whose border is now left, now right of its middle."""
    image = write_full(tmp_path / "source")
    seg = np.where((np.arange(24) < split_at)[None, :, None], SEG[:, :1], SEG[:, 3:4])
    write_map(image.with_name(f"{image.stem}_seg.png"), seg)
    wheel = np.where((np.arange(24) < 6)[None, :, None], PARTS[:, :1], 0).repeat(6, 0)[:6]
    write_map(image.with_name(f"{image.stem}_parts_1.png"), wheel)
    write_map(image.with_name(f"{image.stem}_parts_2.png"), np.zeros_like(SEG))
    (record,) = read_records(build(FULL, tmp_path / "source", tmp_path / "data"), "train")
    assert [(t.category, t.parent) for t in record.targets] == [
        ("car", -1),
        ("car", -1),
        ("wheel", parent),
    ]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The three real images, built."""
    folder = tmp_path_factory.mktemp("ade20k")
    street = folder / "source" / "images" / "ADE" / "training" / "urban" / "street"
    shutil.copytree(shared_data / "ade20k_full_sample", street)
    return read_records(build(FULL, folder / "source", folder / "data"), "train")


def region_maps(record: Record) -> list[np.ndarray]:
    """By level (objects, parts, parts of parts), the number of the target at each pixel, from 1 on."""
    levels: list[int] = []
    maps = [np.zeros((record.height, record.width), np.uint8) for _ in range(3)]
    for k, target in enumerate(record.targets):
        levels.append(0 if target.parent < 0 else levels[target.parent] + 1)
        maps[levels[k]][record.mask([k]) > 0] = k + 1
    return maps


@pytest.mark.parametrize("image, whole", [(0, False), (1, False), (2, True)])
def test_real_objects_and_the_parents_of_their_parts(
    shared_data: Path, real: list[Record], image: int, whole: bool
):
    """The release's masks of single objects say independently what is what, and whose part.

    All objects of one image, and of the others (it takes long) parts and what has some.
    """
    record, sample = real[image], shared_data / "ade20k_full_sample"
    stored = (sample / record.file_name).with_suffix(".json").read_text("latin-1")
    objects = json.loads(stored)["annotation"]["object"]
    owner_of = {o["id"]: o["parts"]["ispartof"] for o in objects if o["parts"]["part_level"]}
    regions = region_maps(record)
    target_of: dict[int, int] = {}
    for one in objects:
        if not (whole or one["id"] in owner_of or one["id"] in owner_of.values()):
            continue
        with Image.open(sample / one["instance_mask"]) as mask:
            seen = np.asarray(mask) == 255
        region = regions[one["parts"]["part_level"]]
        found = np.bincount(region[seen], minlength=2)
        k = int(found[1:].argmax())
        assert record.targets[k].category == one["name"].split(",")[0]
        # A region and its mask differ at a few pixels of the border.
        assert found[k + 1] > 0.95 * max(seen.sum(), (region == k + 1).sum())
        target_of[one["id"]] = k
    for part, owner in owner_of.items():
        assert record.targets[target_of[part]].parent == target_of[owner]
    parts = [k for k, target in enumerate(record.targets) if target.parent >= 0]
    assert sorted(target_of[part] for part in owner_of) == parts
    assert len(record.targets) == len(objects) == (70, 37, 32)[image]
    assert not whole or sorted(target_of.values()) == list(range(len(objects)))


def test_real_texts(real: list[Record]):
    texts = {e.text: e for e in real[0].expressions}
    assert texts["all traffic light"].granularity == "category"
    assert len(texts["wheel of car"].targets) == 2
    assert len(texts["rim of wheel"].targets) == 2
    assert texts["window of door"].granularity == "part"
    assert len(texts["window of building"].targets) == 4


def no_map(image: Path) -> str:
    image.with_name(f"{image.stem}_seg.png").unlink()
    return f"{image.stem}_seg.png: not there; unpack"


def no_json(image: Path) -> str:
    image.with_suffix(".json").unlink()
    return f"{image.stem}.json: not there; unpack"


def truncated_json(image: Path) -> str:
    path = image.with_suffix(".json")
    path.write_bytes(path.read_bytes()[:100])
    return f"{path.name}: damaged or not ADE20K's (JSONDecodeError"


def other_json(image: Path) -> str:
    image.with_suffix(".json").write_text('{"annotation": {"object": [{"id": 0}]}}')
    return f"{image.stem}.json: damaged or not ADE20K's (KeyError: 'name_ndx')"


def grey_map(image: Path) -> str:
    write_map(image.with_name(f"{image.stem}_seg.png"), SEG[..., 0])
    return f"{image.stem}_seg.png: is not in colour of 8 bits (L, 8 bits)"


def small_part(image: Path) -> str:
    write_map(image.with_name(f"{image.stem}_parts_1.png"), PARTS[:-1])
    return f"{image.stem}_parts_1.png: is not of the size of {image.stem}_seg.png"


def other_image(image: Path) -> str:
    write_image(image, 7, 24)
    return f"{image.name}: is 24 x 7, its annotations are for 24 x 6"


@pytest.mark.parametrize(
    "harm", [no_map, no_json, truncated_json, other_json, grey_map, small_part, other_image]
)
def test_what_is_wrong_is_named(tmp_path: Path, harm):
    write_full(tmp_path / "source", name="ADE_train_00000002")
    line = harm(write_full(tmp_path / "source"))
    with pytest.raises(BuildError) as error:
        build(FULL, tmp_path / "source", tmp_path / "data")
    assert line in str(error.value)
    folder = build(FULL, tmp_path / "source", tmp_path / "data", skip_missing=True)
    assert [r.image_id for r in read_records(folder, "train")] == ["ade20k/ADE_train_00000002"]
