"""Data in a bucket is that of a disk: the table, the batches of threads and of processes, the errors."""

from pathlib import Path

import numpy as np
import pytest

from input_pipeline.leakage import Exclusion, read_report, write_report
from input_pipeline.sources import (
    DatasetError,
    ExpressionTable,
    RecordSource,
    UnreachableError,
    built_datasets,
    dataset_folder,
)
from refseg_jax.errors import UserError
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, flip_a_bit


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    build_tiny_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def copy(disk: Path, bucket: Path) -> Path:
    from tests.bucket_emulator import upload

    upload(disk, bucket)
    return bucket


def test_records_and_their_table_are_those_of_the_disk(disk: Path, copy: Path) -> None:
    here, there = (RecordSource(str(place), "tiny", "train") for place in (disk, copy))
    assert str(there.folder) == f"{copy}/tiny/1.0.0"
    assert list(map(there.__getitem__, range(len(there)))) == [here[k] for k in range(len(here))]
    assert built_datasets(str(copy)) == {"tiny": there.folder}
    one, made, kept = (ExpressionTable.of(s, "clip") for s in (here, there, there))
    for table in (made, kept):
        for name in ("record", "text", "image", "tokens", "largest"):
            np.testing.assert_array_equal(getattr(table, name), getattr(one, name))
    names = {path.name for path in there.folder.iterdir()}
    assert f"expressions-train-{there.fingerprint()}.npz" in names


def test_errors_of_data_in_a_bucket_are_one_line(disk: Path, copy: Path) -> None:
    with pytest.raises(DatasetError) as error:
        dataset_folder(str(copy), "refcoco/unc")
    assert str(error.value) == (
        f"{copy}/refcoco/unc: no built dataset; build it: python -m tools.build_dataset --data_dir=data "
        f"--dataset=refcoco/unc --source_dir=DIR; copy it: gcloud storage cp -r data/... {copy}/..."
    )
    with pytest.raises(UserError, match="gs://missing: there is no such bucket"):
        RecordSource("gs://missing/data", "tiny", "train")
    folder = disk / "tiny/1.0.0"
    flip_a_bit(folder, "val")
    (damaged,) = folder.glob("*-val.array_record*")
    (copy / "tiny/1.0.0" / damaged.name).write_bytes(damaged.read_bytes())
    with pytest.raises(DatasetError, match=f"{copy}.*: record 0 of split 'val' is damaged"):
        RecordSource(str(copy), "tiny", "val")[0]


def test_a_record_that_a_bucket_does_not_give_is_no_damaged_one(copy: Path) -> None:
    source = RecordSource(str(copy), "tiny", "train")
    whole = source._data

    class Silent:
        def __len__(self) -> int:
            return len(whole)

        def __getitem__(self, index: int) -> object:
            if index == 1:
                raise ValueError("UNAVAILABLE: no answer")
            return whole[index]

    source._data = Silent()
    with pytest.raises(UnreachableError, match="record 1 of split 'train' cannot be read: UNAVAIL"):
        ExpressionTable.of(source)


def test_what_a_run_leaves_out_is_kept_in_a_bucket(bucket: Path) -> None:
    assert read_report(bucket / "leakage.json") == {}
    found = Exclusion("tiny", "train", 3, 5, ("a",), 1, {"tiny/val": 1}, ())
    write_report(bucket / "leakage.json", {"": found})
    assert read_report(bucket / "leakage.json") == {"": found}
