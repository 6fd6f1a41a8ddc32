"""Other units, segmentations of other tools, names and encodings: every odd file through every way in.

As in `odd_files_test.py`, a row names a folder, a way that can take it, and what must come out: right,
or one clear line with the cure. Rows of shared folders are skipped where those are not there.
"""

import functools
import json
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.datasets import coca
from refseg_jax.cli import score
from refseg_jax.cli.pictures import find_pictures
from refseg_jax.weights.folder import weight_file
from tests.odd_files.layouts import LAYOUTS
from tests.odd_files.made import BOX
from tests.odd_files.ways import WAYS, Seen, build, run
from tools import doctor


def published(folder: Path, room: Path, *, name: str, split: str = "train") -> Seen:
    """Builds a published layout as it is."""
    return build(name, room, f"--source_dir={folder}", split=split)


def examined(folder: Path, room: Path, *, name: str) -> Seen:
    """The doctor, of a published layout."""
    page = f"--page={room / 'page.html'}"
    return Seen(*run(doctor.main, f"--dataset={name}", f"--source_dir={folder}", page))


def archived(folder: Path, room: Path, *, kind: str) -> Seen:
    """An archive of the folder of lines."""
    archive = shutil.make_archive(str(room / "odd"), kind, folder)
    return build("odd", room, "--name=odd", f"--source_dir={archive}", dataset="jsonl")


def within(folder: Path, room: Path, *, inner: str) -> Seen:
    """An archive that the folder holds, or a folder in it."""
    return build("odd", room, "--name=odd", f"--source_dir={folder / inner}", dataset="jsonl")


def scored(folder: Path, room: Path, *, predictions: str) -> Seen:
    """`tools.score` of the files of the folder."""
    flags = (f"--predictions={folder / predictions}", f"--references={folder / 'R.jsonl'}")
    return Seen(*run(score.main, "--protocol=cris", *flags))


Way = Callable[[Path, Path], Seen]
REFER = {
    "build": functools.partial(published, name="refcoco/unc"),
    "doctor": functools.partial(examined, name="refcoco/unc"),
    "raw": functools.partial(published, name="refcoco/unc_raw"),
}
MORE: dict[str, Way] = {
    **LAYOUTS,
    **{f"refer's layout: {name}": way for name, way in REFER.items()},
    "ecssd's layout": functools.partial(published, name="ecssd", split="test"),
    "ecssd's layout: doctor": functools.partial(examined, name="ecssd"),
    "videos": functools.partial(published, name="ref_youtube_vos"),
    "videos: doctor": functools.partial(examined, name="ref_youtube_vos"),
    "a zip": functools.partial(archived, kind="zip"),
    "a tar.gz": functools.partial(archived, kind="gztar"),
    "flat.zip": functools.partial(within, inner="flat.zip"),
    "mine.zip": functools.partial(within, inner="mine.zip"),
    "mine.zip/mine": functools.partial(within, inner="mine.zip/mine"),
    "score P": functools.partial(scored, predictions="P.jsonl"),
    "score P16": functools.partial(scored, predictions="P16.jsonl"),
}

LINES = ("jsonl", "shards", "tar", "doctor")
BATCHES = ("training", "evaluation")
ARCHIVES = ("a zip", "a tar.gz")
IN_REFER = tuple(name for name in MORE if name.startswith("refer's layout"))
#: Layouts that hold the forms of COCO; the polygons of PhraseCut are others.
COCO = tuple(name for name in LAYOUTS if not name.startswith(("phrasecut", "sa1b")))
RLES = (*COCO, "sa1b as it is")
#: Ways that carry no file of lines, or not as it is written.
WHOLE_FILES = ("jsonl", "doctor")

_SHARES = "its coordinates are shares of the picture (0..1), not pixels; multiply x by "
_PER_CENT = "per cent"
_POLYGONS = "write a list of polygons in pixels, [[x0, y0, x1, y1, ...], ...]"
_RLE = 'write {"size": [height, width], "counts": ...} with '
_NO_RLE = "it is no RLE, as all of SA-1B are; download it again"

#: Folder -> what one line must say, for all ways.
UNITS = {
    "polygon_normalised": _SHARES,
    "polygon_normalised_large": _SHARES,
    "box_normalised": _SHARES,
    "polygon_percent": _PER_CENT,
    "polygon_percent_large": _PER_CENT,
}
FORMS = {
    "flat": f"the segmentation is a flat list of numbers; {_POLYGONS}",
    "xywh_flat": f'the segmentation is a flat list of numbers (a box goes to "box"); {_POLYGONS}',
    "pairs": f"the segmentation is a list of points [x, y]; {_POLYGONS}",
    "nested_pairs": f"a polygon is a list of points [x, y]; {_POLYGONS}",
    "list_of_str": f"a polygon is a text; {_POLYGONS}",
    "str_coords": f"a polygon has the coordinate '20'; {_POLYGONS}",
}
RUNS = {
    "bytes_repr": "the RLE's counts are Python's way of printing bytes, b'...'; write what counts.dec",
    "float_counts": f"the RLE's counts are numbers with a decimal point; {_RLE}",
    "string_list_counts": f"the RLE's counts are numbers in a text; {_RLE}",
}

RIGHT = ""
Row = tuple[str, str, str]


def rows(folders: Iterable[str], ways: Iterable[str], said: str) -> list[Row]:
    """Rows of `said`: what one line must say, or `RIGHT`."""
    return [(folder, way, said) for folder in folders for way in ways]


TABLE: list[Row] = [
    *(row for name, said in UNITS.items() for row in rows([name], [*LINES, *COCO], said)),
    *(row for name, said in UNITS.items() for row in rows([name], ["phrasecut as it is"], said)),
    *rows(UNITS, ["sa1b as it is"], _NO_RLE),
    *(
        row
        for name, said in FORMS.items()
        for row in rows([f"polygon_forms/{name}"], [*LINES, *COCO], said)
    ),
    *rows([f"polygon_forms/{name}" for name in FORMS], ["sa1b as it is"], _NO_RLE),
    *(
        row
        for name, said in RUNS.items()
        for row in rows([f"polygon_forms/{name}"], [*LINES, *RLES], said)
    ),
    *rows(
        ["polygon_forms/size_wh"],
        [*LINES, *(way for way in RLES if way != "references as it is")],
        "the RLE's size is [96, 64], the image's [64, 96]: it is [width, height]; " + _RLE,
    ),
    *rows(
        ["polygon_forms/size_wh"],
        ["references as it is"],
        'one of them has its "size" as [width, height]',
    ),
    # What macOS leaves.
    *rows(["apple_double"], [*WHOLE_FILES, *ARCHIVES, *BATCHES], RIGHT),
    *rows(["ecssd_apple"], ["ecssd's layout", "ecssd's layout: doctor"], RIGHT),
    *rows(["refer_apple_double", "refer_only_apple"], IN_REFER, RIGHT),
    *rows(["finder_zip"], ["flat.zip", "mine.zip/mine"], RIGHT),
    *rows(["finder_zip"], ["mine.zip"], "it holds one folder, perhaps you mean --source_dir="),
    # Refer's layout as people's own sets have it.
    *rows(
        [
            *("refer_ok", "refer_string_all", "refer_string_category", "refer_string_image"),
            *("refer_coco2017_names", "refer_upper_jpg", "refer_two_folders", "refer_numpy_ids"),
        ],
        IN_REFER,
        RIGHT,
    ),
    *rows(["rvos_no_meta"], ["videos", "videos: doctor"], RIGHT),
    # Windows.
    *rows(["backslash"], ["jsonl", "doctor", "a zip"], RIGHT),
    *rows(["jsonl_encodings"], [*WHOLE_FILES, *ARCHIVES], RIGHT),
    *rows(
        ["jsonl_utf16"],
        [*WHOLE_FILES, *ARCHIVES],
        "train.jsonl: is UTF-16, not UTF-8; save it as UTF-8",
    ),
    *rows(["score_bom"], ["score P"], RIGHT),
    *rows(["score_bom"], ["score P16"], "P16.jsonl:1: is UTF-16, not UTF-8; save it as UTF-8"),
    # What was right before.
    *rows(["plain"], [*COCO, "phrasecut as it is", *ARCHIVES], RIGHT),
    *rows(["no_val"], [*WHOLE_FILES, *ARCHIVES], RIGHT),
    *rows(["two_spellings"], ["jsonl", *ARCHIVES], RIGHT),
    *rows(["panorama_40000"], ["jsonl", "refer as it is", "paco as it is"], RIGHT),
    # Spelt apart in train and val.
    *rows(["two_spellings"], ["doctor"], "e.g. val: image jsonl/a.png is in train"),
    *rows(["panorama_40000"], ["doctor"], "e.g. val: image jsonl/strip.png is in train"),
]


@pytest.fixture
def odd_files(shared_data: Path) -> Path:
    return shared_data / "odd_files"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: " ".join(row[:2]))
def test_right_or_one_clear_line(row: Row, odd_files: Path, tmp_path: Path) -> None:
    folder, way, said = row
    seen = {**WAYS, **MORE}[way](odd_files / folder, tmp_path)
    assert "Traceback" not in seen.said
    lines = [line for line in seen.said.splitlines() if line]
    if said:
        assert seen.code, seen.said
        about = [line for line in lines if said in line]
        assert len(about) == 1, seen.said
        assert len(about[0]) < 500
        return
    assert not seen.code, seen.said
    assert not any(line.startswith(("error", "fault")) for line in lines), seen.said
    if way.startswith("score"):
        assert "1.0" in seen.said or "100.00" in seen.said
    elif "doctor" not in way and "references" not in way:
        assert seen.pairs
    for name, picture, region in seen.pairs:
        _check_region(folder, way, name, region)
        assert picture.shape[:2] == region.shape


def _check_region(folder: str, way: str, name: str, region: np.ndarray) -> None:
    if folder == "panorama_40000":
        assert region.sum() == 600 * 80
    elif way in BATCHES:
        assert abs(region.mean() - BOX.mean()) < 0.02, name
    else:
        np.testing.assert_array_equal(region, BOX, name)


@pytest.mark.parametrize("name", ["jsonl-65bd7433", "jsonl-79e0a55c"])
@pytest.mark.parametrize("way", LINES)
def test_an_integer_beyond_floats_in_a_line(
    name: str, way: str, shared_data: Path, tmp_path: Path
) -> None:
    folder, room = tmp_path / "odd", tmp_path / "room"
    folder.mkdir()
    room.mkdir()
    shutil.copy(shared_data / "odd_files" / "plain" / "a.png", folder)
    shutil.copy(shared_data / "damaged_files" / name, folder / "train.jsonl")
    seen = WAYS[way](folder, room)
    assert seen.code
    assert "Traceback" not in seen.said
    reasons = ("'box' is [1e+308", "a polygon has the coordinate")
    assert any(reason in seen.said for reason in reasons), seen.said


def test_an_integer_beyond_floats_in_a_reference(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "damaged_files" / "score-79e0a55c"
    predictions, references, protocol = pickle.loads(path.read_bytes())
    (tmp_path / "P.jsonl").write_bytes(predictions)
    (tmp_path / "R.jsonl").write_bytes(references)
    flags = [f"--predictions={tmp_path / 'P.jsonl'}", f"--references={tmp_path / 'R.jsonl'}"]
    code, said = run(score.main, f"--protocol={protocol}", *flags)
    assert code == 1
    assert f"error: {tmp_path / 'R.jsonl'}:4: a polygon has the coordinate" in said


def test_all_odd_folders_of_these_kinds_are_tried(odd_files: Path) -> None:
    tried = {row[0] for row in TABLE}
    for name in (
        "polygon_*",
        "box_*",
        "refer_*",
        "*apple*",
        "*_zip",
        "jsonl_*",
        "score_*",
        "rvos_*",
    ):
        for folder in odd_files.glob(name):
            inner = [f"{folder.name}/{path.name}" for path in folder.iterdir() if path.is_dir()]
            assert folder.name in tried or set(inner) <= tried, folder


def test_lines_of_the_table_are_lines_of_json(odd_files: Path) -> None:
    """A folder that is not one line would be judged by its first alone."""
    for folder in (*UNITS, *(f"polygon_forms/{name}" for name in (*FORMS, *RUNS))):
        assert json.loads((odd_files / folder / "train.jsonl").read_text())


def test_companions_of_macos_are_no_groups_weights_or_pictures(tmp_path: Path) -> None:
    for name in ("image/Box/a.jpg", "binary/Box/a.png"):
        for path in (tmp_path / name, tmp_path / name.replace("Box/", "__MACOSX/._")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "binary" / "__MACOSX" / "._a.png").unlink()
    (tmp_path / "binary" / "__MACOSX").rmdir()
    plan = coca.read_plan(tmp_path)
    assert [item.names for item in plan.splits["test"]] == [("Box",)]
    assert not plan.problems
    for name in ("model.safetensors", "._model.safetensors", "b.png", "._b.png"):
        (tmp_path / name).touch()
    assert weight_file(tmp_path, ()).name == "model.safetensors"
    assert [picture.name for picture in find_pictures(tmp_path).pictures] == ["b.png"]
