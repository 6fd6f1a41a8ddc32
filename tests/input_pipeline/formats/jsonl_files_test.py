"""Where lines of one's own images may stand: many files of a split, and tars."""

import json
import os
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.builder import BuildError
from input_pipeline.building.shards import plan_digest
from input_pipeline.formats.archives import ArchiveError
from input_pipeline.formats.jsonl_files import find_splits, read_images
from input_pipeline.formats.jsonl_records import make_record
from input_pipeline.formats.places import Places
from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from tests.input_pipeline.datasets.jsonl_folders import (
    LEFT,
    RIGHT,
    line,
    record_of,
    write,
    write_pictures,
)
from tests.input_pipeline.formats.archives_test import HOSTILE, files_of_tar


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_pictures(tmp_path / "pictures")


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
        (b"\xff", "train.tar/0.json: is not UTF-8"),
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
    write_tar(folder, "train.tar", {**members, "0.PNG": members["0.png"]})
    with pytest.raises(BuildError, match=r"0\.png and 0\.PNG are the same file of one sample"):
        record_of(folder, tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_members_of_a_sample_may_be_spelled_apart(folder, tmp_path, form):
    """As two systems have packed them: macOS decomposes accents."""
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "größe")
    stored = {"expression": "x", "mask": f"{other}.m.png"}
    name = unicodedata.normalize(form, "größe")
    members = sample(folder, name, stored, m=folder / "left.png")
    members[f"{other}.json"] = members.pop(f"{name}.json")
    write_tar(folder, "train.tar", members)
    record = record_of(folder, tmp_path)
    np.testing.assert_array_equal(record.mask([0]), LEFT)


def test_a_hostile_tar_is_refused(folder, tmp_path):
    (folder / "train.tar").write_bytes(HOSTILE["symbolic.tar"][0])
    with pytest.raises(ArchiveError, match="is a link, a device or sparse"):
        record_of(folder, tmp_path)


def test_a_plan_travels_to_processes_and_knows_when_a_line_changes(folder):
    write(folder, line(), line(expression="again"))
    write_tar(folder, "val.tar", sample(folder, "0", {"expression": "x", "mask": None}))
    splits = {s: read_images(files, Places(folder)) for s, files in find_splits(folder).items()}
    for items in splits.values():
        (item,) = pickle.loads(pickle.dumps(items))
        assert item == items[0]
        assert make_record(item, places=Places(folder), source="mine").record
    write(folder, line(), line(expression="agaim"))
    write_tar(folder, "val.tar", sample(folder, "0", {"expression": "y", "mask": None}))
    changed = {s: read_images(files, Places(folder)) for s, files in find_splits(folder).items()}
    digests = {
        plan_digest("mine", plan)
        for plan in (splits, changed, {**splits, "val": changed["val"]}, {**splits})
    }
    assert len(digests) == 3


def test_hidden_members_of_a_tar_are_no_samples(folder, tmp_path):
    members = sample(folder, "0", {"expression": "x", "mask": None})
    hidden = {".DS_Store": b"", "._0.png": b"\0\5\x16\7", "sub/.index.json": b"{"}
    write_tar(folder, "train.tar", {**hidden, **members})
    assert record_of(folder, tmp_path).file_name == "train.tar/0.png"


@pytest.mark.parametrize("name", ["train.jsonl", "train.tar"])
def test_a_pipe_in_the_place_of_a_file_is_told(folder, tmp_path, name):
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=r"train\.\w+: .*is a pipe, no file"):
        record_of(folder, tmp_path)
