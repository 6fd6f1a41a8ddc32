import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.building.builder import BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT, builder_of
from input_pipeline.datasets import sa1b
from input_pipeline.formats.archives import ArchiveError
from input_pipeline.rows import make_rows
from input_pipeline.schema import encode_mask
from input_pipeline.sources import ExpressionTable, RecordSource
from refseg_jax.batch import GRANULARITIES
from tests.input_pipeline.datasets.refcoco_files import HEIGHT, WIDTH, jpeg, read_records
from tests.input_pipeline.formats.archives_test import HOSTILE, files_of_tar

(CONVERSION,) = sa1b.CONVERSIONS


def box(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


MASKS = [box(0, 0, 10), box(5, 5, 20), box(0, 0, 0)]


def annotation(number: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    """A mask, with all its fields."""
    return {
        "id": number,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask).decode()},
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "area": int(mask.sum()),
        "predicted_iou": 0.9 + number / 1e9,
        "stability_score": 0.95,
        "crop_box": [0.0, 0.0, WIDTH, HEIGHT],
        "point_coords": [[1.0, 1.0]],
        **more,
    }


def pair(number: int, **image: Any) -> dict[str, bytes]:
    """An image and its JSON, by name."""
    stored = {
        "image": {
            "image_id": number,
            "width": WIDTH,
            "height": HEIGHT,
            "file_name": f"sa_{number}.jpg",
            **image,
        },
        "annotations": [annotation(100 + k, mask) for k, mask in enumerate(MASKS)],
    }
    return {
        f"sa_{number}.jpg": jpeg(seed=number),
        f"sa_{number}.json": json.dumps(stored).encode(),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def build(source: Path, data_dir: Path, **options: Any) -> Path:
    return builder_of(CONVERSION, source_dir=source, data_dir=data_dir, **options).build()


@pytest.fixture
def source(tmp_path) -> Path:
    """A pair at the top, one in a folder, one in a tar."""
    folder = write(tmp_path / "source", pair(30))
    write(folder / "sa_000000", pair(4))
    inside = {f"./{name}": data for name, data in pair(100).items()}
    return write(folder, {"sa_000001.tar": files_of_tar(inside)})


def test_records_have_masks_and_no_words(source, tmp_path):
    folder = build(source, tmp_path / "data")
    records = read_records(folder, "train")
    assert [r.image_id for r in records] == ["sa1b/4", "sa1b/30", "sa1b/100"]
    for record, number in zip(records, (4, 30, 100), strict=True):
        assert (record.file_name, record.image) == (f"sa_{number}.jpg", jpeg(seed=number))
        assert record.expressions == ()
        assert len(record.targets) == 2
        for k in range(2):
            np.testing.assert_array_equal(record.mask([k]), MASKS[k])
        assert json.loads(record.metadata) == {
            "ids": [100, 101],
            "predicted_iou": [0.9 + 100 / 1e9, 0.9 + 101 / 1e9],
            "stability_score": [0.95, 0.95],
        }
    report = (folder / REPORT).read_text()
    assert "train: 3 images; published: 11,185,362" in report
    assert f"{sa1b.EMPTY}: 3" in report


def test_nothing_is_asked_of_them(source, tmp_path):
    build(source, tmp_path / "data")
    table = ExpressionTable.of(RecordSource(str(tmp_path / "data"), "sa1b", "train"))
    assert (len(table), table.largest.tolist()) == (0, [HEIGHT, WIDTH])
    assert table.image.tolist() == [b"sa1b/4", b"sa1b/30", b"sa1b/100"]
    for sampling in ("image", "referent", "expressions", "group"):
        assert len(make_rows(table, sampling, GRANULARITIES, pairs=4, images=2)) == 0


def no_json(source: Path) -> str:
    (source / "sa_30.json").unlink()
    return f"{source}/sa_30.jpg: sa_30.json is missing beside it"


def other_image(source: Path) -> str:
    write(source, {"sa_30.json": pair(31)["sa_31.json"]})
    return f"{source}/sa_30.jpg: is image 30 of 64 x 48, its JSON says image 31 of 64 x 48"


def other_size(source: Path) -> str:
    write(source, pair(30, height=HEIGHT + 1))
    return f"{source}/sa_30.jpg: is image 30 of 64 x 48, its JSON says image 30 of 64 x 49"


def truncated(source: Path) -> str:
    write(source, {"sa_30.json": pair(30)["sa_30.json"][:-9]})
    return f"{source}/sa_30.jpg: its JSON is damaged or not SA-1B's (JSONDecodeError"


def no_number(source: Path) -> str:
    data = pair(30)["sa_30.json"].replace(b'"stability_score": 0.95', b'"stability_score": NaN')
    write(source, {"sa_30.json": data})
    return f"{source}/sa_30.jpg: its JSON is damaged or not SA-1B's (ValueError: stability_score"


def damaged_image(source: Path) -> str:
    write(source, {"sa_30.jpg": jpeg()[:-500]})
    return f"{source}/sa_30.jpg: the image is damaged"


def damaged_in_a_tar(source: Path) -> str:
    files = {**pair(100), "sa_100.jpg": b"no image"}
    write(source, {"sa_000001.tar": files_of_tar(files)})
    return f"{source}/sa_000001.tar/sa_100.jpg: the image is damaged"


def damaged_mask(source: Path) -> str:
    data = pair(30)["sa_30.json"].replace(b'"size": [48, 64]', b'"size": [64, 48]', 1)
    write(source, {"sa_30.json": data})
    return f"{source}/sa_30.jpg: mask 100: the RLE's size is [64, 48]"


DAMAGES = [no_json, other_image, other_size, truncated, no_number, damaged_image]
DAMAGES += [damaged_in_a_tar, damaged_mask]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_problem_fails_the_build_or_is_skipped(source, tmp_path, damage):
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "data")
    assert str(caught.value).splitlines()[1].startswith(line)
    folder = build(source, tmp_path / "data", skip_missing=True)
    assert read_records(folder, "train")[0].image_id == "sa1b/4"


def test_a_hostile_tar_and_an_empty_folder_are_one_line(source, tmp_path):
    with pytest.raises(SourceError, match=r"no sa_\*\.jpg with sa_\*\.json there"):
        build(tmp_path / "nothing", tmp_path / "data")
    write(source, {"sa_000002.tar": HOSTILE["hard.tar"][0]})
    with pytest.raises(ArchiveError, match=r"sa_000002\.tar: 'a' is a link, a device or sparse"):
        build(source, tmp_path / "data")
