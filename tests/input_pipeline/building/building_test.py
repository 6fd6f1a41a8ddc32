import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline.building import builder as building
from input_pipeline.building import own, shards
from input_pipeline.building.beam import Runner
from input_pipeline.building.conversion import BuildError, Outcome
from input_pipeline.building.own import build_records
from input_pipeline.datasets import jsonl
from input_pipeline.schema import Expression, Record, Target, encode_mask
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import ImageError
from tests.input_pipeline.datasets.refcoco_files import (
    HEIGHT,
    WIDTH,
    build,
    jpeg,
    read_records,
    write_source,
)

ROOT = Path(own.__file__).resolve().parents[2]


def make(number: int) -> Record:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[: number % HEIGHT + 1] = 1
    return Record(
        image=jpeg(seed=number % 5),
        image_id=str(number),
        file_name=f"{number}.jpg",
        height=HEIGHT,
        width=WIDTH,
        source="mine",
        targets=(Target(encode_mask(mask), "row"),),
        expressions=(Expression(f"e{number}", f"{number} rows", (0,), "object"),),
    )


def test_records_come_back_in_order(tmp_path: Path):
    folder = build_records("mine", {"train": [3, 1, 2], "val": [9]}, make, data_dir=tmp_path)
    assert folder == tmp_path / "mine" / "1.0.0"
    assert read_records(folder, "train") == [make(3), make(1), make(2)]
    assert read_records(folder, "val") == [make(9)]


def test_several_shards_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 4)
    monkeypatch.setattr(building, "_FEW", 1)
    splits = {"train": list(range(10)), "val": [20]}
    folder = build_records("mine", splits, make, data_dir=tmp_path, num_workers=2)
    assert len(list(folder.glob("mine-train.*-of-00003"))) == 3
    assert read_records(folder, "train") == [make(n) for n in range(10)]
    assert read_records(folder, "val") == [make(20)]


def die(number: int) -> Record:
    if number == 5:
        os._exit(9)
    return make(number)


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "_FEW", 1)
    with pytest.raises(BuildError, match=r"a worker process died.*with fewer --num_workers"):
        build_records("mine", {"train": range(9)}, die, data_dir=tmp_path, num_workers=2)
    assert list(tmp_path.iterdir()) == []


STOPPED_AT = 13


def stop_once(number: int) -> Record:
    if number == STOPPED_AT:
        raise KeyboardInterrupt
    return make(number)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 4)
    splits = {"train": list(range(10)), "val": list(range(10, 20))}
    with pytest.raises(KeyboardInterrupt):
        build_records("mine", splits, stop_once, data_dir=tmp_path / "a")
    (unfinished,) = (tmp_path / "a" / "mine").iterdir()
    assert unfinished.name == "unfinished-1.0.0"
    assert len(list(unfinished.glob("*.done.npz"))) == 3
    assert not list(unfinished.glob("*.partial"))
    made: list[int] = []

    def counted(number: int) -> Record:
        made.append(number)
        return make(number)

    folder = build_records("mine", splits, counted, data_dir=tmp_path / "a")
    assert made == list(range(10, 20))
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    whole = build_records("mine", splits, make, data_dir=tmp_path / "b")
    assert files(folder) == files(whole)


class Killed(BaseException):
    """Stands for SIGKILL, after which nothing runs."""


def test_a_build_that_was_killed_while_it_moved_its_files_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 4)
    splits = {"train": list(range(10)), "val": [20]}
    whole = build_records("mine", splits, make, data_dir=tmp_path / "a")
    rename, moved = Path.rename, []

    def rename_two(path: Path, target: Path) -> Path:
        if ".array_record" in path.name and "incomplete" in str(target):
            if len(moved) == 2:
                raise Killed
            moved.append(rename(path, target).rename(tmp_path / path.name))
            return target
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_two)
    with pytest.raises(Killed):
        build_records("mine", splits, make, data_dir=tmp_path / "b")
    monkeypatch.setattr(Path, "rename", rename)
    (unfinished,) = (tmp_path / "b" / "mine").iterdir()
    assert len(list(unfinished.glob("*.done.npz"))) == 4
    assert len(moved) == 2
    folder = build_records("mine", splits, make, data_dir=tmp_path / "b")
    assert files(folder) == files(whole)


def test_another_plan_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "IMAGES_OF_A_SHARD", 4)
    with pytest.raises(KeyboardInterrupt):
        build_records("mine", {"train": range(20)}, stop_once, data_dir=tmp_path)
    folder = build_records("mine", {"train": range(1, 9)}, make, data_dir=tmp_path)
    assert read_records(folder, "train") == [make(n) for n in range(1, 9)]


def test_one_build_at_a_time(tmp_path: Path):
    def make_inside(number: int) -> Record:
        with pytest.raises(BuildError, match=r"process \d+ on \S+ is building it; wait for it"):
            build_records("mine", {"train": [1]}, make, data_dir=tmp_path)
        return make(number)

    build_records("mine", {"train": [1]}, make_inside, data_dir=tmp_path)


def test_two_workers_may_write_the_same_shard(tmp_path: Path):
    shard = shards.Shard("train", tmp_path / "mine-train.array_record-00000-of-00001", range(3))

    def outcomes(again: bool) -> Iterator[Outcome]:
        for number in shard.items:
            yield Outcome(make(number))
            if again and number == 1:
                shards.write_shard(shard, outcomes(again=False))

    summary = shards.write_shard(shard, outcomes(again=False))
    alone = files(tmp_path)
    assert shards.write_shard(shard, outcomes(again=True)).lengths == summary.lengths == [3]
    assert files(tmp_path).keys() == alone.keys()
    assert files(tmp_path)[shard.path.name] == alone[shard.path.name]


def test_a_shard_that_no_worker_wrote_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building.beam, "write_shards", lambda todo, maker, runner: None)
    with pytest.raises(BuildError, match=r"-of-00001: was not written; the data folder must be"):
        build_records("mine", {"a": [1]}, make, data_dir=tmp_path, runner=Runner("Elsewhere"))


def test_without_beam_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'refseg_jax\[beam\]', or leave out --runner"):
        build("refcoco/unc", write_source(tmp_path / "s"), tmp_path, runner=Runner("DirectRunner"))


def changed(**fields: object) -> Callable[[int], Record]:
    return lambda number: dataclasses.replace(make(number), **fields)


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (changed(width=WIDTH + 1), r"1\.jpg: is 64 x 48, its record says 65 x 48"),
        (
            changed(targets=(Target(encode_mask(np.ones((9, 9))), "x"),)),
            r"1\.jpg: target 0: the RLE's runs do not fill 48 x 64",
        ),
        (
            changed(targets=(Target(encode_mask(np.zeros((HEIGHT, WIDTH))), "x"),)),
            r"1\.jpg: target 0: the region covers no pixel",
        ),
        (
            changed(expressions=(Expression("e", "  ", (0,), "object"),)),
            r"1\.jpg: expression e is .*, which has no word",
        ),
        (
            changed(expressions=(Expression("e", "it", (1,), "object"),)),
            r"1\.jpg: e: targets \(1,\) of 1; correct its record",
        ),
        (
            changed(expressions=(Expression("e", "it", (0,), "thing"),)),
            r"1\.jpg: e: granularity 'thing' unknown",
        ),
        (
            changed(expressions=(Expression("e", "it", (0,), "object"),)),
            r"2\.jpg: expression id 'e' occurs twice",
        ),
    ],
)
def test_records_that_contradict_themselves(
    maker: Callable[[int], Record], message: str, tmp_path: Path
):
    with pytest.raises(BuildError, match=message):
        build_records("mine", {"train": [1, 2]}, maker, data_dir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image(tmp_path: Path):
    with pytest.raises(ImageError, match=r"1\.jpg: the image is damaged"):
        build_records("mine", {"a": [1]}, changed(image=jpeg()[:-800]), data_dir=tmp_path)


def test_names_and_splits(tmp_path: Path):
    with pytest.raises(BuildError, match="dataset name 'My data': use a-z"):
        build_records("My data", {"train": [1]}, make, data_dir=tmp_path)
    with pytest.raises(BuildError, match="mine: split 'val' is empty"):
        build_records("mine", {"train": [1], "val": []}, make, data_dir=tmp_path)
    build_records("mine", {"train": [1]}, make, data_dir=tmp_path)
    with pytest.raises(BuildError, match="is built already; remove it"):
        build_records("mine", {"train": [1]}, make, data_dir=tmp_path)


def examples() -> tuple[str, str]:
    """Of docs/own_data.md the first block of Python, for lines, and the last, for records."""
    text = (ROOT / "docs" / "own_data.md").read_text()
    lines, *_, records = re.findall(r"```python\n(.*?)```", text, re.S)
    return lines, records


def test_the_lines_of_the_documentation_make_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:9, 7:30] = 255
    png = cv2.imencode(".png", mask)[1].tobytes()
    for name, suffix, content in (("images", "jpg", jpeg()), ("masks", "png", png)):
        (tmp_path / "FOLDER" / name).mkdir(parents=True)
        for number in range(22):
            (tmp_path / "FOLDER" / name / f"{number}.{suffix}").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    exec(examples()[0], {})
    folder = jsonl.build("mine", tmp_path / "FOLDER", data_dir=tmp_path / "data")
    assert [len(read_records(folder, split)) for split in ("train", "val")] == [2, 20]
    record = read_records(folder, "train")[0]
    assert [e.text for e in record.expressions] == ["the car"]
    np.testing.assert_array_equal(record.mask([0]), mask > 0)


def test_the_example_of_the_documentation_runs(tmp_path: Path):
    (tmp_path / "build_streets.py").write_text(examples()[1])
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[5:9, 7:30] = 2
    for name, content in (("pictures", jpeg()), ("classes", cv2.imencode(".png", classes)[1])):
        (tmp_path / name).mkdir()
        for picture in ("a", "b"):
            suffix = {"pictures": "jpg", "classes": "png"}[name]
            (tmp_path / name / f"{picture}.{suffix}").write_bytes(bytes(content))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "build_streets.py"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    (record,) = read_records(tmp_path / done.stdout.strip(), "val")
    assert [e.text for e in record.expressions] == ["all cars"]
    np.testing.assert_array_equal(record.mask([0]), classes == 2)
