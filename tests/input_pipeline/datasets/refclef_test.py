import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from input_pipeline.building.builder import HELD_OUT, BuildError
from input_pipeline.building.conversion import SourceError
from input_pipeline.building.published import REPORT
from input_pipeline.datasets import referit
from input_pipeline.datasets.refcoco import refclef
from input_pipeline.facts.published import facts_of
from input_pipeline.schema import encode_mask
from tests.input_pipeline.datasets.refcoco_files import jpeg, read_records, ref, sentence
from tests.input_pipeline.datasets.refer_files import (
    HEIGHT,
    WIDTH,
    build,
    config_of,
    square_mask,
    write_instances,
    write_jpegs,
)

UNC = config_of(refclef.CONVERSIONS, "refclef/unc")
(REFERIT,) = referit.CONVERSIONS


def rles(*corners: tuple[int, int]) -> list[dict[str, Any]]:
    """RefClef's segmentation: a list of compressed RLE."""
    return [
        {"size": [HEIGHT, WIDTH], "counts": encode_mask(square_mask(corner)).decode()}
        for corner in corners
    ]


def write_refclef(folder: Path) -> Path:
    names = {25: "25.jpg", 19579: "19579.jpg"}
    annotations = [
        {"id": 1, "image_id": 25, "segmentation": rles((2, 2), (8, 8))},
        {"id": 2, "image_id": 25, "segmentation": rles((30, 30))},
        {"id": 3, "image_id": 19579, "segmentation": rles((1, 1))},
    ]
    refs = [
        ref(1, 25, 1, "train", sentence(1, "the rocks")),
        ref(2, 25, 2, "testAB", sentence(2, "a man"), sentence(3, "him")),
        ref(3, 19579, 3, "val", sentence(4, "sky")),
    ]
    write_instances(folder / "refclef/instances.json", names, annotations)
    (folder / "refclef/refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    write_jpegs(folder / "images/saiapr_tc-12", ["25.jpg"])
    return folder


def test_refclef_masks_are_unions_of_lists_of_rle(tmp_path: Path):
    folder = build(UNC, write_refclef(tmp_path / "source"), tmp_path / "data")
    (record,) = read_records(folder, "train")
    assert (record.image_id, record.file_name) == ("saiapr/25", "25.jpg")
    np.testing.assert_array_equal(record.mask([0]), square_mask((2, 2), (8, 8)))


def test_a_ref_of_two_test_splits_is_in_both_under_ids_of_their_own(tmp_path: Path):
    folder = build(UNC, write_refclef(tmp_path / "source"), tmp_path / "data")
    for split in ("testA", "testB"):
        (record,) = read_records(folder, split)
        assert [e.id for e in record.expressions] == [f"{split}-2", f"{split}-3"]
        assert [e.text for e in record.expressions] == ["a man", "him"]


def test_images_that_the_archive_lacks_are_counted_and_held_out(tmp_path: Path):
    source = write_refclef(tmp_path / "source")
    folder = build(UNC, source, tmp_path / "data")
    note = "refs of images that the published archive lacks, left out: 1\n"
    assert note in (folder / REPORT).read_text()
    held_out = json.loads((folder / HELD_OUT).read_text())
    assert held_out == {"val": ["saiapr/19579"], "testA": ["saiapr/25"], "testB": ["saiapr/25"]}

    (source / "images/saiapr_tc-12/19579.jpg").write_bytes(jpeg(HEIGHT, WIDTH))
    there = build(UNC, source, tmp_path / "more")
    assert read_records(there, "val")[0].image_id == "saiapr/19579"
    assert "archive lacks" not in (there / REPORT).read_text()


def test_another_image_that_is_missing_is_a_problem(tmp_path: Path):
    source = write_refclef(tmp_path / "source")
    (source / "images/saiapr_tc-12/25.jpg").rename(source / "images/saiapr_tc-12/26.jpg")
    with pytest.raises(BuildError, match=r"25\.jpg: not there; copy it from refer's saiapr_tc-12"):
        build(UNC, source, tmp_path / "data")
    (source / "images/saiapr_tc-12/26.jpg").unlink()
    with pytest.raises(SourceError, match=r"put \(or link\) refer's .* at .*images/saiapr_tc-12"):
        build(UNC, source, tmp_path / "data")


QUERIES = {
    "train": {"25_1": ["the rocks", "rocks", "rocks"], "25_2": ["sky "]},
    "val": {"30_4": ["boy\u2122", "  "]},
    "test": {"41_2": ["left"]},
}
CORNERS = {"25_1": (2, 2), "25_2": (30, 10), "30_4": (5, 5), "41_2": (20, 20)}


def write_referit(folder: Path) -> Path:
    data, archive = folder / "data", folder / "referit-dataset"
    data.mkdir(parents=True)
    (archive / "mask").mkdir(parents=True)
    for split, queries in QUERIES.items():
        # As the files are: an item a line.
        text = json.dumps(queries, separators=(",\n", ":\n"))
        (data / f"referit_query_{split}.json").write_text(text)
    names = ["25.jpg", "30.jpg", "41.jpg"]
    sizes = {name: [WIDTH, HEIGHT] for name in names}
    (data / "referit_imsize.json").write_text(json.dumps(sizes, separators=(",\n", ":\n")))
    write_jpegs(archive / "images", names)
    for key, corner in CORNERS.items():
        write_mat(archive / f"mask/{key}.mat", 1 - square_mask(corner))
    return folder


def write_mat(path: Path, values: np.ndarray, name: str = "segimg_t") -> None:
    scipy.io.savemat(path, {name: values}, do_compression=True)


def test_referit_regions_are_where_the_map_is_zero(tmp_path: Path):
    folder = build(REFERIT, write_referit(tmp_path / "source"), tmp_path / "data")
    assert folder == tmp_path / "data/referit/1.0.0"
    (train,), (val,) = read_records(folder, "train"), read_records(folder, "val")
    assert (train.image_id, train.source) == ("saiapr/25", "referit")
    assert [(e.id, e.text, e.targets, e.referent) for e in train.expressions] == [
        ("25_1-0", "the rocks", (0,), 0),
        ("25_1-1", "rocks", (0,), 0),
        ("25_1-2", "rocks", (0,), 0),
        ("25_2-0", "sky", (1,), 1),
    ]
    np.testing.assert_array_equal(train.mask([0]), square_mask((2, 2)))
    np.testing.assert_array_equal(train.mask([1]), square_mask((30, 10)))
    assert json.loads(train.metadata) == {"regions": ["25_1", "25_2"]}
    assert [e.text for e in val.expressions] == ["boy\u2122"]
    assert json.loads((folder / HELD_OUT).read_text()) == {
        "val": ["saiapr/30"],
        "test": ["saiapr/41"],
    }
    report = (folder / REPORT).read_text()
    assert "train: 4 expressions; published: 54,134" in report
    assert "expressions without a word, left out: 1" in report


def missing_mask(source: Path) -> str:
    (source / "referit-dataset/mask/25_2.mat").unlink()
    return "mask/25_2.mat: not there; unpack referitdata.tar.gz again"


def truncated_mask(source: Path) -> str:
    path = source / "referit-dataset/mask/25_2.mat"
    path.write_bytes(path.read_bytes()[:-20])
    return "mask/25_2.mat: no MAT-file of plain data"


def other_variable(source: Path) -> str:
    write_mat(source / "referit-dataset/mask/25_2.mat", square_mask((1, 1)), "mask")
    return "mask/25_2.mat: segimg_t has no map, its image [48, 64]"


def other_shape(source: Path) -> str:
    write_mat(source / "referit-dataset/mask/25_2.mat", square_mask((1, 1)).T)
    return "mask/25_2.mat: segimg_t has the shape [64, 48], its image [48, 64]"


def no_region(source: Path) -> str:
    write_mat(source / "referit-dataset/mask/25_2.mat", np.ones((HEIGHT, WIDTH)))
    return "mask/25_2.mat: no pixel is of the region"


def an_object(source: Path) -> str:
    function = np.array([("x", "y")], dtype=[("a", object), ("b", object)])
    write_mat(source / "referit-dataset/mask/25_2.mat", function)
    return "mask/25_2.mat: segimg_t has no map, its image [48, 64]"


@pytest.mark.parametrize(
    "damage", [missing_mask, truncated_mask, other_variable, other_shape, no_region, an_object]
)
def test_a_mask_that_cannot_be_read_is_named_and_the_others_are_built(
    damage: Callable[[Path], str], tmp_path: Path
):
    source = write_referit(tmp_path / "source")
    line = damage(source)
    with pytest.raises(BuildError) as caught:
        build(REFERIT, source, tmp_path / "data")
    assert line in str(caught.value)
    folder = build(REFERIT, source, tmp_path / "data", skip_missing=True)
    (train,) = read_records(folder, "train")
    assert [e.id for e in train.expressions] == ["25_1-0", "25_1-1", "25_1-2"]
    assert line in (folder / REPORT).read_text()


def no_queries(source: Path) -> str:
    for split in QUERIES:
        (source / f"data/referit_query_{split}.json").unlink()
    return r"data: no referit_query_train\.json there; --source_dir must be"


def hostile_key(source: Path) -> str:
    (source / "data/referit_query_val.json").write_text('{"../../25_1": ["x"]}')
    return r"referit_query_val\.json: '\.\./\.\./25_1' is no <image>_<region>"


def no_text(source: Path) -> str:
    (source / "data/referit_query_val.json").write_text('{"30_4": [7]}')
    return r"referit_query_val\.json: 30_4 has a query that is no text"


def truncated_sizes(source: Path) -> str:
    path = source / "data/referit_imsize.json"
    path.write_text(path.read_text()[:-10])
    return r"referit_imsize\.json: damaged JSON"


def other_sizes(source: Path) -> str:
    (source / "data/referit_imsize.json").write_text('{"25.jpg": [480]}')
    return r"referit_imsize\.json: '25\.jpg' has no \[width, height\]"


def no_archive(source: Path) -> str:
    (source / "referit-dataset/mask").rename(source / "mask")
    return r"referit-dataset/mask: not there; unpack referitdata\.tar\.gz in"


@pytest.mark.parametrize(
    "damage", [no_queries, hostile_key, no_text, truncated_sizes, other_sizes, no_archive]
)
def test_files_that_cannot_be_used_are_one_line(damage: Callable[[Path], str], tmp_path: Path):
    source = write_referit(tmp_path / "source")
    message = damage(source)
    with pytest.raises(SourceError, match=message) as caught:
        build(REFERIT, source, tmp_path / "data", skip_missing=True)
    assert "\n" not in str(caught.value)


def test_referit_totals():
    total = {
        n: sum(counts[n] for counts in facts_of("referit").published.values())
        for n in ("images", "refs", "expressions")
    }
    assert total == {"images": 19_989, "refs": 99_245, "expressions": 120_081}
