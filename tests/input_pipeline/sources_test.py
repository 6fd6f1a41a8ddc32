import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.schema import Record
from input_pipeline.sources import (
    DAMAGED,
    DatasetError,
    ExpressionTable,
    RecordSource,
    built_datasets,
    dataset_folder,
)
from refseg_jax.batch import GRANULARITIES
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, flip_a_bit, make_record


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_tiny_dataset(folder, {"train": 4, "val": 2}, size=(32, 40), change=grouped)
    return folder


def grouped(record: Record) -> Record:
    """The words of the first expression are shared by a group that its image's number tells."""
    number = int(record.image_id.strip("trainvl"))
    first, *others = record.expressions
    first = dataclasses.replace(first, text=f"shared {number // 2}", group="g")
    return dataclasses.replace(record, expressions=(first, *others))


def expected_record(number: int) -> Record:
    return grouped(make_record("train", number, (24 if number % 3 == 0 else 32, 40)))


def fake_version(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")


# Records


def test_records_are_those_that_were_built(data_dir: Path):
    source = RecordSource(str(data_dir), "tiny", "train")
    assert len(source) == 4
    # TFDS writes in an order of its own.
    found = sorted((source[index] for index in range(4)), key=lambda record: record.image_id)
    assert found == [expected_record(number) for number in range(4)]


def test_a_source_may_be_pickled_before_and_after_it_was_read(data_dir: Path):
    source = RecordSource(str(data_dir), "tiny", "train")
    fresh = pickle.loads(pickle.dumps(source))
    first = source[0]
    assert fresh[0] == pickle.loads(pickle.dumps(source))[0] == first


def test_a_split_that_is_not_there_is_named_with_those_that_are(data_dir: Path):
    with pytest.raises(DatasetError, match="no split 'test'; there are train, val"):
        RecordSource(str(data_dir), "tiny", "test")


def damaged_source(data_dir: Path, target: Path) -> tuple[RecordSource, int]:
    """A copy of which one record of `train` is damaged, and the index of it."""
    copy(data_dir, target)
    flip_a_bit(dataset_folder(str(target), "tiny"), "train")
    source = RecordSource(str(target), "tiny", "train")
    bad = []
    for index in range(len(source)):
        try:
            assert source[index].image
        except DatasetError:
            bad.append(index)
    (index,) = bad
    return source, index


def test_a_flipped_bit_is_told_with_folder_split_and_index(data_dir: Path, tmp_path: Path):
    source, index = damaged_source(data_dir, tmp_path / "data")
    with pytest.raises(DatasetError, match="build the dataset again") as caught:
        source[index]
    message = str(caught.value)
    assert f"{source.folder}: record {index} of split 'train' is damaged (" in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("bytes_left", [None, 0, 1000])
def test_a_split_whose_file_is_cut_or_gone_is_one_line(
    data_dir: Path, tmp_path: Path, bytes_left: int | None
):
    source = copy(data_dir, tmp_path / "data")
    (file,) = source.folder.glob("*-val.array_record*")
    if bytes_left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(DatasetError, match="record 0 of split 'val' is damaged") as caught:
        ExpressionTable.of(source)
    assert "\n" not in str(caught.value)


# Folders


def test_the_newest_version_is_taken_by_number(tmp_path: Path):
    for version in ("1.9.0", "1.10.0", "1.2.11"):
        fake_version(tmp_path / "tiny" / version)
    assert dataset_folder(str(tmp_path), "tiny") == tmp_path / "tiny" / "1.10.0"


def test_the_only_config_need_not_be_named(tmp_path: Path):
    fake_version(tmp_path / "tiny" / "small" / "1.0.0")
    folder = tmp_path / "tiny" / "small" / "1.0.0"
    assert dataset_folder(str(tmp_path), "tiny") == folder
    assert dataset_folder(str(tmp_path), "tiny/small") == folder


def test_one_of_several_configs_must_be_named(tmp_path: Path):
    for name in ("small", "big"):
        fake_version(tmp_path / "tiny" / name / "1.0.0")
    with pytest.raises(DatasetError, match="choose one of tiny/big, tiny/small"):
        dataset_folder(str(tmp_path), "tiny")
    assert dataset_folder(str(tmp_path), "tiny/big").parent.name == "big"


def test_all_that_is_built_is_found_by_the_name_that_opens_it(tmp_path: Path):
    for name in ("tiny/1.9.0", "tiny/1.10.0", "refer/unc/1.0.0", "refer/umd/1.0.0", "no/version"):
        fake_version(tmp_path / name)
    fake_version(tmp_path / "tiny" / "1.11.0.incomplete_tfds_a1")
    (tmp_path / "images").mkdir()
    found = built_datasets(str(tmp_path))
    assert sorted(found) == ["refer/umd", "refer/unc", "tiny"]
    assert found["tiny"] == tmp_path / "tiny" / "1.10.0"
    assert found["refer/unc"] == tmp_path / "refer" / "unc" / "1.0.0"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("scenes", r"no built dataset; build it: .*build_dataset --data_dir=\S+ --dataset=scenes$"),
        ("refcocog/umd", r"build it: .* --dataset=refcocog/umd --source_dir=DIR$"),
        # RefCOCO alone has more than one way of splitting it.
        ("refcoco", r"unknown dataset 'refcoco': did you mean 'refcoco/unc'\?"),
        ("refcoco+/unc", r"its name is refcoco_plus/unc; build it: .* --dataset=refcoco_plus/unc "),
        ("refcoco+", r"unknown dataset 'refcoco_plus': did you mean 'refcoco_plus/unc'\?"),
        ("qwerty", r"there are: .*scenes.* \(one of your own: .*--dataset=jsonl --name=NAME"),
        # Names that are built.
        ("mine+", "its name is mine_plus$"),
        ("tinny", r"unknown dataset 'tinny': did you mean 'tiny'\?$"),
    ],
)
def test_a_dataset_that_was_not_built_says_how_to(tmp_path: Path, name: str, advice: str):
    for built in ("tiny", "mine_plus", "refcoco_plus/google"):
        fake_version(tmp_path / built / "1.0.0")
    with pytest.raises(DatasetError, match=advice) as e:
        dataset_folder(str(tmp_path), name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", [None, "{"])
def test_a_dataset_without_its_info_says_to_build_it_again(tmp_path: Path, damage: str | None):
    fake_version(tmp_path / "tiny" / "1.0.0")
    if damage:
        (tmp_path / "tiny" / "1.0.0" / "dataset_info.json").write_text(damage)
    with pytest.raises(DatasetError, match=r"dataset_info.json: .*; build the dataset again"):
        RecordSource(str(tmp_path), "tiny", "train")


# Tables


def test_the_table_holds_every_expression(data_dir: Path):
    source = RecordSource(str(data_dir), "tiny", "train")
    table = ExpressionTable.of(source)
    said = [
        (index, position, e.referent, GRANULARITIES.index(e.granularity))
        for index in range(len(source))
        for position, e in enumerate(source[index].expressions)
    ]
    columns = (table.record, table.position, table.referent, table.granularity)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == said
    assert len(table) == 24
    assert table.largest.tolist() == [32, 40]
    assert [name.decode() for name in table.image] == [
        r.image_id for r in map(source.__getitem__, range(len(source)))
    ]


def test_some_expressions_of_a_table_keep_their_records(data_dir: Path):
    table = ExpressionTable.of(RecordSource(str(data_dir), "tiny", "train"))
    wanted = table.referent == 1
    chosen = table.select(wanted)
    assert 0 < len(chosen) < len(table)
    np.testing.assert_array_equal(chosen.record, table.record[wanted])
    np.testing.assert_array_equal(chosen.position, table.position[wanted])
    np.testing.assert_array_equal(chosen.image, table.image)


def test_expressions_of_one_group_and_text_share_a_number(data_dir: Path):
    source = RecordSource(str(data_dir), "tiny", "train")
    table = ExpressionTable.of(source)
    numbers: dict[str, set[int]] = {"": set()}
    for record, position, group in zip(table.record, table.position, table.group, strict=True):
        e = source[int(record)].expressions[position]
        numbers.setdefault(e.text if e.group else "", set()).add(int(group))
    assert numbers.pop("") == {-1}
    assert set(numbers) == {"shared 0", "shared 1"}
    assert numbers["shared 0"] | numbers["shared 1"] == {0, 1}
    assert all(len(found) == 1 for found in numbers.values())


def copy(data_dir: Path, target: Path) -> RecordSource:
    shutil.copytree(data_dir, target, ignore=shutil.ignore_patterns("expressions-*"))
    return RecordSource(str(target), "tiny", "val")


def test_the_table_is_kept_and_read_the_next_time(data_dir: Path, tmp_path: Path):
    source = copy(data_dir, tmp_path / "data")
    table = ExpressionTable.of(source)
    (kept,) = source.folder.glob("expressions-val-*")
    # A mark shows that the second table comes from the file, not from the records.
    np.savez(kept, **{**dataclasses.asdict(table), "referent": table.referent + 100})
    again = ExpressionTable.of(RecordSource(str(tmp_path / "data"), "tiny", "val"))
    np.testing.assert_array_equal(again.referent, table.referent + 100)
    np.testing.assert_array_equal(again.record, table.record)
    assert not list(source.folder.glob("*.partial"))


def test_a_kept_table_does_not_outlive_its_records(data_dir: Path, tmp_path: Path):
    source = copy(data_dir, tmp_path / "data")
    table = ExpressionTable.of(source)
    (kept,) = source.folder.glob("expressions-val-*")
    np.savez(kept, **{**dataclasses.asdict(table), "referent": table.referent + 100})
    for file in source.folder.glob("tiny-train.*"):
        shutil.copy(file, str(file).replace("tiny-train.", "tiny-val."))
    (source.folder / "dataset_info.json").touch()
    rebuilt = RecordSource(str(tmp_path / "data"), "tiny", "val")
    assert rebuilt.fingerprint() not in kept.name
    assert ExpressionTable.of(rebuilt).referent.max() < 100


def test_a_kept_table_can_be_read_by_other_users(data_dir: Path, tmp_path: Path):
    source = copy(data_dir, tmp_path / "data")
    ExpressionTable.of(source)
    (kept,) = source.folder.glob("expressions-val-*")
    beside = source.folder / "features.json"
    assert kept.stat().st_mode & 0o777 == beside.stat().st_mode & 0o777


def test_a_damaged_record_keeps_a_place_in_a_table_that_is_not_kept(data_dir: Path, tmp_path: Path):
    whole = ExpressionTable.of(RecordSource(str(data_dir), "tiny", "train"))
    source, index = damaged_source(data_dir, tmp_path / "data")
    table = ExpressionTable.of(source)
    assert not list(source.folder.glob("expressions-train-*"))
    its, others = table.record == index, whole.record != index
    assert (table.position[its] == DAMAGED).all()
    assert [number for number, name in enumerate(table.image) if not name] == [index]
    # Whatever granularities a run asks for, it meets the record.
    assert sorted(table.granularity[its]) == list(range(len(GRANULARITIES)))
    for name in ("record", "position", "referent", "granularity"):
        np.testing.assert_array_equal(getattr(table, name)[~its], getattr(whole, name)[others])


def cut(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-40])


def flip(kept: Path) -> None:
    stored = bytearray(kept.read_bytes())
    stored[stored.index(b"NUMPY") + 130] ^= 4
    kept.write_bytes(stored)


def forget(kept: Path) -> None:
    with np.load(kept) as stored:
        columns = {name: stored[name] for name in stored.files if name != "group"}
    np.savez(kept, **columns)


def empty(kept: Path) -> None:
    kept.write_bytes(b"")


def replace_by_text(kept: Path) -> None:
    kept.write_text("not a table")


def replace_by_array(kept: Path) -> None:
    with kept.open("wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize("damage", [cut, flip, forget, empty, replace_by_text, replace_by_array])
def test_a_damaged_table_is_made_again(
    data_dir: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    source = copy(data_dir, tmp_path / "data")
    expected = dataclasses.asdict(ExpressionTable.of(source))
    (kept,) = source.folder.glob("expressions-val-*")
    sound = kept.read_bytes()
    damage(kept)
    assert kept.read_bytes() != sound
    found = dataclasses.asdict(ExpressionTable.of(source))
    assert expected.pop("tokens") is None and found["tokens"] is None
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)
    with np.load(kept) as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {
            name: column.tolist() for name, column in expected.items()
        }


@pytest.mark.parametrize("damage", [cut, empty, replace_by_text, replace_by_array])
def test_tokens_are_kept_for_each_tokenizer(
    data_dir: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    source = copy(data_dir, tmp_path / "data")
    table = ExpressionTable.of(source, "clip")
    assert table.tokens is not None
    texts = [
        source[r].expressions[p].text for r, p in zip(table.record, table.position, strict=True)
    ]
    # Words of the tiny dataset are one token each.
    assert table.tokens.tolist() == [len(text.split()) + 2 for text in texts]
    (kept,) = source.folder.glob("tokens-*-val-*")
    np.savez(kept, tokens=table.tokens + 100)
    again = ExpressionTable.of(source, "clip").tokens
    assert again is not None and (again == table.tokens + 100).all()
    damage(kept)
    again = ExpressionTable.of(source, "clip").tokens
    assert again is not None and (again == table.tokens).all()
    with np.load(kept) as stored:
        assert stored["tokens"].tolist() == table.tokens.tolist()


def test_a_table_that_cannot_be_written_is_no_error(data_dir: Path, tmp_path: Path):
    source = copy(data_dir, tmp_path / "data")
    # Unlike a folder without permissions, this stops root as well.
    kept = source.folder / f"expressions-val-{source.fingerprint()}.npz"
    kept.mkdir()
    assert len(ExpressionTable.of(source)) == 12
    assert not list(source.folder.glob("*.partial"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_no_error(data_dir: Path, tmp_path: Path):
    source = copy(data_dir, tmp_path / "data")
    source.folder.chmod(0o555)
    try:
        assert len(ExpressionTable.of(source)) == 12
    finally:
        source.folder.chmod(0o755)
    assert not list(source.folder.glob("expressions-*"))
