import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT, builder_of
from input_pipeline.datasets import ref_youtube_vos
from input_pipeline.datasets.ref_youtube_vos import videos
from input_pipeline.rows import make_rows
from input_pipeline.sources import ExpressionTable, RecordSource
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH, jpeg, read_records

(CONVERSION,) = ref_youtube_vos.CONVERSIONS

FRAMES = ["00000", "00005", "00010"]
TRAIN = {
    "0043f083b5": {
        "expressions": {
            "0": {"exp": "a dashcam ", "obj_id": "1"},
            "1": {"exp": "the car in front", "obj_id": "2"},
            "2": {"exp": "it", "obj_id": "2"},
        },
        "frames": FRAMES,
    },
    "-Bx_1": {"expressions": {"0": {"exp": "a dog", "obj_id": "1"}}, "frames": ["00000"]},
}


def asked(*names: str) -> dict[str, Any]:
    """Videos as in the files of valid and test, whose objects are not told."""
    return {
        name: {"expressions": {"0": {"exp": "x"}, "1": {"exp": "y"}}, "frames": FRAMES}
        for name in names
    }


def labels(frame: int) -> np.ndarray:
    """Object 1 in all frames, object 2 in two of them, object 3 that nobody asks for."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[2:9, 3 + frame : 12] = 1
    values[20:30, 20:40] = 3
    if frame < 2:
        values[30:40, 50:60] = 2
        values[32:34, 52:54] = 0
    return values


def write_meta(source: Path, split: str, stored: dict[str, Any]) -> None:
    path = source / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": stored}))


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "source")


def write_source(folder: Path) -> Path:
    """Two videos of train; of valid and test, the expressions alone."""
    write_meta(folder, "train", TRAIN)
    write_meta(folder, "valid", asked("valid1", "test1", "test2"))
    write_meta(folder, "test", asked("test1", "test2"))
    for video, stored in TRAIN.items():
        for part in ("JPEGImages", "Annotations"):
            (folder / "train" / part / video).mkdir(parents=True)
        for number, frame in enumerate(stored["frames"]):
            image = folder / "train/JPEGImages" / video / f"{frame}.jpg"
            image.write_bytes(jpeg(seed=number))
            indexed = Image.fromarray(labels(number), "P")
            indexed.putpalette([0, 0, 0, 236, 95, 103] + [7] * 762)
            indexed.save(folder / "train/Annotations" / video / f"{frame}.png")
    kinds = {"objects": {"1": {"category": "truck", "frames": FRAMES}, "2": {"category": "sedan"}}}
    meta = {"videos": {"0043f083b5": kinds}}
    (folder / "train/meta.json").write_text(json.dumps(meta))
    return folder


def build(source: Path, data_dir: Path, **options: Any) -> Path:
    return builder_of(CONVERSION, source_dir=source, data_dir=data_dir, **options).build()


def test_a_frame_is_a_record_and_an_expression_a_group(source, tmp_path):
    folder = build(source, tmp_path / "data")
    records = read_records(folder, "train")
    names = [r.image_id for r in records]
    assert names == [*(f"ytvos/0043f083b5/{frame}" for frame in FRAMES), "ytvos/-Bx_1/00000"]
    for number, record in enumerate(records[:3]):
        frame, there = FRAMES[number], number < 2
        assert record.file_name == f"0043f083b5/{frame}.jpg"
        assert record.image == jpeg(seed=number)
        kind = "object" if there else "none"
        assert [(e.id, e.text, e.granularity, e.referent, e.group) for e in record.expressions] == [
            (f"0043f083b5/0/{frame}", "a dashcam", "object", 0, "0043f083b5/0"),
            (f"0043f083b5/1/{frame}", "the car in front", kind, 1, "0043f083b5/1"),
            (f"0043f083b5/2/{frame}", "it", kind, 1, "0043f083b5/2"),
        ]
        assert [t.category for t in record.targets] == ["truck", "sedan"][: 1 + there]
        for expression, value in zip(record.expressions, (1, 2, 2), strict=True):
            expected = labels(number) == value
            np.testing.assert_array_equal(record.mask(expression.targets), expected)
    assert records[3].targets[0].category == "", "meta.json does not know this video"
    assert "train: 4 groups; published: 12,913" in (folder / REPORT).read_text()


def test_the_file_of_categories_may_be_missing(source, tmp_path):
    (source / "train/meta.json").unlink()
    folder = build(source, tmp_path / "data")
    records = read_records(folder, "train")
    assert {target.category for record in records for target in record.targets} == {""}
    assert f"{ref_youtube_vos.NO_KINDS}: 2" in (folder / REPORT).read_text()


def test_a_map_of_black_and_white_is_noted(source, tmp_path):
    """Its objects have the numbers 0 and 255, of which nobody asks."""
    path = source / "train/Annotations/-Bx_1/00000.png"
    Image.fromarray(np.where(labels(0) == 1, 255, 0).astype(np.uint8)).save(path)
    folder = build(source, tmp_path / "data")
    assert read_records(folder, "train")[3].expressions[0].granularity == "none"
    assert f"{ref_youtube_vos.NO_OBJECT}: 1" in (folder / REPORT).read_text()


def test_a_video_is_a_row_of_its_expression(source, tmp_path):
    build(source, tmp_path / "data")
    table = ExpressionTable.of(RecordSource(str(tmp_path / "data"), "ref_youtube_vos", "train"))
    rows = make_rows(table, "group", ("object", "none"), pairs=1, images=8)
    found = [rows.entries(row)[0].tolist() for row in range(len(rows))]
    assert found == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]]


def test_what_has_no_masks_is_held_out_and_not_built(source, tmp_path):
    folder = build(source, tmp_path / "data")
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {
        "valid": [f"ytvos/valid1/{frame}" for frame in FRAMES],
        "test": [f"ytvos/{video}/{frame}" for video in ("test1", "test2") for frame in FRAMES],
    }
    report = (folder / REPORT).read_text()
    assert "valid: videos without published masks, held out and not built: 1\n" in report
    assert "valid: expressions without published masks, held out and not built: 2\n" in report
    assert "test: expressions without published masks, held out and not built: 4\n" in report
    with pytest.raises(SourceError, match="unknown split of ref_youtube_vos 'valid'"):
        build(source, tmp_path / "other", splits=("valid",))
    assert [video.name for video in videos(source, "valid")] == ["valid1"]
    (source / "meta_expressions/test/meta_expressions.json").unlink()
    assert [video.name for video in videos(source, "valid")] == ["valid1", "test1", "test2"]


def test_the_real_file_of_valid(shared_data, tmp_path):
    """The counts that its SOURCE.txt gives; which of its videos are of test, it does not tell."""
    target = tmp_path / "meta_expressions/valid"
    target.mkdir(parents=True)
    shutil.copy(shared_data / "ref_youtube_vos_valid_meta/meta_expressions.json", target)
    read = videos(tmp_path, "valid")
    assert len(read) == 507
    assert sum(len(video.questions) for video in read) == 2096
    assert sum(len(video.frames) for video in read) == 13_710
    assert all(question.text for video in read for question in video.questions)
    of_test = {video.name: {"expressions": {}, "frames": []} for video in read[202:]}
    write_meta(tmp_path, "test", of_test)
    assert videos(tmp_path, "valid") == read[:202]


def no_labels(source: Path) -> str:
    (source / "train/Annotations/0043f083b5/00005.png").unlink()
    return f"{source}/train/Annotations/0043f083b5/00005.png: not there"


def no_image(source: Path) -> str:
    (source / "train/JPEGImages/0043f083b5/00005.jpg").unlink()
    return f"{source}/train/JPEGImages/0043f083b5/00005.jpg: not there"


def damaged_labels(source: Path) -> str:
    path = source / "train/Annotations/0043f083b5/00005.png"
    path.write_bytes(path.read_bytes()[:60])
    return f"{path}: "


def other_size(source: Path) -> str:
    path = source / "train/JPEGImages/0043f083b5/00005.jpg"
    path.write_bytes(jpeg(HEIGHT, WIDTH + 1))
    return f"{path}: is 65 x 48, its annotations are for 64 x 48"


@pytest.mark.parametrize("damage", [no_labels, no_image, damaged_labels, other_size])
def test_a_problem_fails_the_build_or_is_skipped(source, tmp_path, damage):
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "data")
    assert str(caught.value).splitlines()[1].startswith(line)
    folder = build(source, tmp_path / "data", skip_missing=True)
    assert len(read_records(folder, "train")) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[:-20], "damaged JSON"),
        (lambda t: t.replace('"obj_id"', '"object"'), "KeyError: 'obj_id'"),
        (lambda t: t.replace('"obj_id": "2"', '"obj_id": "0"'), "obj_id 0"),
        (lambda t: t.replace('"00005"', '"../00005"'), "the name '../00005'"),
        (lambda t: t.replace('"-Bx_1"', '"../x"'), "the name '../x'"),
        (lambda t: t.replace('"a dog"', "7"), "7 is no text"),
        (lambda t: "{}", "holds no videos"),
        (lambda t: '{"videos": {"a": []}}', "not Refer-YouTube-VOS's (TypeError"),
    ],
)
def test_a_file_that_is_none_is_one_line(source, tmp_path, change, reason):
    path = source / "meta_expressions/train/meta_expressions.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(SourceError) as caught:
        build(source, tmp_path / "data")
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(source, tmp_path):
    (source / "meta_expressions/train/meta_expressions.json").unlink()
    with pytest.raises(SourceError, match=r"train/meta_expressions\.json: not there"):
        build(source, tmp_path / "data")
    (source / "train/meta.json").write_text('{"videos": {"a": {"objects": 7}}}')
    with pytest.raises(SourceError, match=r"train/meta\.json: not Refer-YouTube-VOS's"):
        build(source, tmp_path / "data")
