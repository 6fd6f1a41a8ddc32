"""What a mixture leaves out, against the records and against the published list."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import leakage
from input_pipeline.leakage import (
    check_remains,
    evaluation_images,
    find_leaks,
    read_report,
    write_report,
)
from input_pipeline.schema import HELD_OUT
from input_pipeline.sources import ExpressionTable, RecordSource
from refseg_jax.errors import UserError
from tests.input_pipeline.building.pools import build_pool
from tests.input_pipeline.tiny_dataset import flip_a_bit


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` trains on 0..7; 2 and 3 are in its own val, 3 and 4 in a test split of `two`."""
    folder = tmp_path_factory.mktemp("pools")
    build_pool(folder, "one", train=range(8), val=[2, 3])
    build_pool(folder, "two", train=[0, 20], train_more=[1], test=[3, 4, 30], testA=[31])
    return folder


def table(data_dir: Path) -> ExpressionTable:
    return ExpressionTable.of(RecordSource(str(data_dir), "one", "train"))


def test_every_split_that_is_not_for_training_is_an_evaluation_set(data_dir: Path) -> None:
    assert evaluation_images(str(data_dir)) == {
        "one/val": {"2", "3"},
        "two/test": {"3", "4", "30"},
        "two/testA": {"31"},
    }


def test_a_file_beside_the_records_tells_of_splits_that_were_not_built(tmp_path: Path) -> None:
    folder = build_pool(tmp_path, "one", train=[0, 1])
    (folder / HELD_OUT).write_text(json.dumps({"testB": ["1", "7"]}))
    assert evaluation_images(str(tmp_path)) == {"one/testB": {"1", "7"}}


def test_without_that_file_the_records_tell_and_are_read_once(tmp_path: Path) -> None:
    folder = build_pool(tmp_path, "one", train=[0, 1], val=[1, 2])
    (folder / HELD_OUT).unlink(missing_ok=True)
    assert evaluation_images(str(tmp_path)) == {"one/val": {"1", "2"}}
    assert list(folder.glob("expressions-val-*.npz")) and not list(folder.glob("*train*.npz"))
    for records in folder.glob("one-val.*"):
        # Of the same size and time, but unreadable: only what was kept can tell.
        stamp = records.stat()
        records.write_bytes(bytes(stamp.st_size))
        os.utime(records, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert evaluation_images(str(tmp_path)) == {"one/val": {"1", "2"}}


def test_a_dataset_of_another_program_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    build_pool(tmp_path, "one", train=[0], val=[1])
    other = tmp_path / "mnist" / "3.0.1"
    other.mkdir(parents=True)
    (other / "features.json").write_text('{"featuresDict": {"features": {"image": {}}}}')
    (other / "dataset_info.json").write_text('{"splits": [{"name": "test"}]}')
    assert evaluation_images(str(tmp_path)) == {"one/val": {"1"}}


@pytest.mark.parametrize("stored", ["", "[]", '{"val": "12"}', '{"val": [[]]}', '{"val": 3}'])
def test_a_damaged_list_is_one_line_that_names_it(tmp_path: Path, stored: str) -> None:
    folder = build_pool(tmp_path, "one", train=[0])
    (folder / HELD_OUT).write_text(stored)
    with pytest.raises(UserError, match=rf"{folder}/{HELD_OUT}: .*build the dataset again") as e:
        evaluation_images(str(tmp_path))
    assert "\n" not in str(e.value)


def test_an_evaluation_set_with_a_damaged_record_cannot_be_told_from(tmp_path: Path) -> None:
    folder = build_pool(tmp_path, "one", train=[0], val=[1, 2, 3])
    (folder / HELD_OUT).unlink(missing_ok=True)
    flip_a_bit(folder, "val")
    with pytest.raises(UserError, match=r"record \d of split 'val' is damaged"):
        evaluation_images(str(tmp_path))


def test_images_of_any_evaluation_set_are_left_out_and_counted(data_dir: Path) -> None:
    whole = table(data_dir)
    sets = evaluation_images(str(data_dir))
    found = find_leaks(whole, sets, dataset="one", split="train")
    assert found.image_ids == ("2", "3", "4")
    check_remains(found)
    assert found.by == {"one/val": 2, "two/test": 2}
    assert (found.images, found.expressions, found.expressions_left_out) == (8, 56, 21)
    kept = whole.select(~found.records(whole)[whole.record])
    source = RecordSource(str(data_dir), "one", "train")
    seen = {source[int(index)].image_id for index in np.unique(kept.record)}
    assert seen == {"0", "1", "5", "6", "7"}
    assert str(found) == (
        "one train: 3 of 8 images and 21 of 56 expressions left out "
        "(images of one/val 2, two/test 2)"
    )


def test_only_what_would_be_trained_on_is_counted(data_dir: Path) -> None:
    whole = table(data_dir)
    few = whole.select((whole.position < 2) & (np.isin(whole.image[whole.record], [b"3", b"5"])))
    found = find_leaks(few, {"a/val": {"2", "3"}}, dataset="one", split="train")
    assert (found.images, found.image_ids) == (2, ("3",))
    assert (found.expressions, found.expressions_left_out) == (4, 2)


@pytest.mark.parametrize(
    ("keep", "out"),
    [
        (("two/test",), ("2", "3")),
        (("two",), ("2", "3")),
        (("one/v*",), ("3", "4")),
        (("*",), ()),
    ],
)
def test_a_member_may_keep_evaluation_sets_by_name(
    data_dir: Path, keep: tuple[str, ...], out: tuple[str, ...]
) -> None:
    sets = evaluation_images(str(data_dir))
    found = find_leaks(table(data_dir), sets, dataset="one", split="train", keep=keep)
    assert found.image_ids == out
    # 31, of two/testA, is no image of the split.
    assert set(found.by) | set(found.kept) == {"one/val", "two/test"}
    assert ("keeps images of" in str(found)) == bool(found.kept)


def test_keeping_a_set_that_is_not_there_names_the_nearest(data_dir: Path) -> None:
    sets = evaluation_images(str(data_dir))
    with pytest.raises(UserError, match="unknown evaluation set 'two/tset': did you mean 'two/t"):
        find_leaks(table(data_dir), sets, dataset="one", split="train", keep=("two/tset",))


def test_a_split_of_which_nothing_remains_names_the_sets_and_the_way_out(data_dir: Path) -> None:
    val = ExpressionTable.of(RecordSource(str(data_dir), "one", "val"))
    sets = evaluation_images(str(data_dir))
    found = find_leaks(val, sets, dataset="one", split="val")
    with pytest.raises(UserError, match=r"one val: all 2 images .*one/val.*keep_held_out") as e:
        check_remains(found)
    assert "\n" not in str(e.value)


def test_a_report_is_read_as_it_was_written(data_dir: Path, tmp_path: Path) -> None:
    sets = evaluation_images(str(data_dir))
    found = find_leaks(table(data_dir), sets, dataset="one", split="train", keep=("one",))
    path = tmp_path / "new" / "leakage.json"
    assert read_report(path) == {}
    write_report(path, {"objects": found})
    assert read_report(path) == {"objects": found}
    assert json.loads(path.read_text())["objects"]["by"] == {"two/test": 2}
    assert [p.name for p in path.parent.iterdir()] == ["leakage.json"]
    for damaged in ("{", "[1]", '{"objects": {"images": 1}}', '{"objects": {"colour": 1}}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"leakage.json: .*another --workdir"):
            read_report(path)


def test_what_is_left_out_stands_beside_the_dataset_once(data_dir: Path, tmp_path: Path) -> None:
    sets = evaluation_images(str(data_dir))
    folder = build_pool(tmp_path, "one", train=[0])
    for keep in ((), ("one",), (), ("*",)):
        find_leaks(table(data_dir), sets, dataset="one", split="train", keep=keep).keep(folder)
    stored = [json.loads(path.read_text()) for path in folder.glob("leakage-train-*.json")]
    # Keeping everything leaves nothing to tell.
    assert sorted(s["image_ids"] for s in stored) == [["2", "3", "4"], ["3", "4"]]


# The published list


def _held_out(data_dir: Path, dataset: str, splits: Mapping[str, Iterable[str]]) -> None:
    """A built dataset as far as leakage looks at one."""
    folder = data_dir / dataset / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    stored = {split: sorted(set(ids)) for split, ids in splits.items()}
    (folder / HELD_OUT).write_text(json.dumps(stored))


def _coco_ids(path: Path) -> set[str]:
    """From `COCO_train2014_<12 digits>_<object>`."""
    names = [entry["img_id"] for entry in json.loads(path.read_text())]
    return {str(int(name.split("_")[2])) for name in names}


def test_union_of_the_published_splits_is_the_published_list(
    shared_data: Path, tmp_path: Path
) -> None:
    lists = shared_data / "minigpt4_refcoco_eval"
    for dataset, file, splits in (
        ("refcoco/unc", "refcoco", ("val", "testA", "testB")),
        ("refcoco_plus/unc", "refcoco+", ("val", "testA", "testB")),
        ("refcocog/umd", "refcocog", ("val", "test")),
    ):
        ids = {split: _coco_ids(lists / f"{file}_{split}.json") for split in splits}
        _held_out(tmp_path, dataset, ids)
    sets = evaluation_images(str(tmp_path))
    unc_umd = frozenset().union(*sets.values())
    assert len(unc_umd) == 6549
    for split in ("val", "testA", "testB"):
        # Image, referent and sentence of another copy of the same split.
        items = json.loads((shared_data / "refcoco_unc_valtest_ids" / f"{split}.json").read_text())
        masks = [re.match(r"\d+", Path(item["mask"]).name) for item in items["items"]]
        assert {str(int(m[0])) for m in masks if m} == sets[f"refcoco/unc/{split}"]
        assert sets[f"refcoco/unc/{split}"] == sets[f"refcoco_plus/unc/{split}"]

    published = (shared_data / "polyformer_val_test_files" / "val_test_image_ids.txt").read_text()
    everything = {str(int(line)) for line in published.split()}
    assert unc_umd < everything
    # Google's val is not among the samples. What the published list has beside the others can be of
    # no other set than that.
    _held_out(tmp_path, "refcocog/google", {"val": everything - unc_umd})
    with_google = frozenset().union(*evaluation_images(str(tmp_path)).values())
    assert len(with_google) == 10113 and with_google == everything


def test_a_training_split_loses_exactly_the_published_images(
    shared_data: Path, tmp_path: Path
) -> None:
    published = (shared_data / "polyformer_val_test_files" / "val_test_image_ids.txt").read_text()
    held = [str(int(line)) for line in published.split()]
    _held_out(tmp_path, "refcocog/google", {"val": held})
    other = [str(1_000_000 + number) for number in range(5000)]
    images = np.array([name.encode() for name in [*held[::2], *other]])
    number = np.arange(len(images), dtype=np.int32)
    zeros = np.zeros(len(images), np.int32)
    columns = (number, zeros, zeros, zeros.astype(np.int8), zeros, zeros, zeros > 0)
    whole = ExpressionTable(*columns, zeros[:2], images, images)
    found = leakage.find_leaks(
        whole, evaluation_images(str(tmp_path)), dataset="refcoco/unc", split="train"
    )
    assert found.image_ids == tuple(sorted(held[::2]))
    assert np.flatnonzero(found.records(whole)).tolist() == list(range(len(held[::2])))
