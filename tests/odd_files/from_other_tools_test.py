"""Files as other programs leave them: right, told, or one clear line with the cure."""

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.conversion import BuildError, check_record
from input_pipeline.building.own import build_records
from input_pipeline.formats.mask_files import read_mask
from input_pipeline.schema import Expression, Record, Target, encode_mask
from refseg_jax.cli import score
from refseg_jax.images.decoding import CLEAR, ImageError, UnreadError, decode
from refseg_jax.images.placement import NESTED
from refseg_jax.text.encoding import EncodingError, lines_of_any
from tests.odd_files.made import BOX, PICTURE, POLYGON
from tests.odd_files.ways import WAYS, Seen, _png, run

PICTURE_FILE, MASK_FILE = _png(PICTURE), _png(np.where(BOX, 255, 0))
LINE: dict[str, Any] = {"image": "a.png", "expression": "the box", "segmentation": POLYGON}
HOLE = [[30, 20, 50, 20, 50, 40, 30, 40]]


def _lines(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _send(way: str, room: Path, files: dict[str, bytes], *flags: str) -> Seen:
    folder = room / "odd"
    folder.mkdir()
    (room / "room").mkdir()
    for name, data in {"a.png": PICTURE_FILE, **files}.items():
        (folder / name).write_bytes(data)
    return WAYS[way](folder, room / "room", *flags)


def _error(seen: Seen) -> str:
    assert seen.code, seen.said
    assert "Traceback" not in seen.said
    (line,) = [line for line in seen.said.splitlines() if line.startswith("error: ")]
    return line


def _tar(key: str) -> bytes:
    line = {"expression": "the box", "mask": f"{key}.m.png"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for ending, data in (("png", PICTURE_FILE), ("json", _lines(line)), ("m.png", MASK_FILE)):
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x93NUMPY\x01\0v\0", "a NumPy array is not read here; save it as PNG"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "a MAT-file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(9), "NIfTI"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "a video"),
        (b"PK\3\4" + bytes(40), "a zip archive (perhaps NumPy's .npz)"),
        (gzip.compress(PICTURE_FILE), "a file that gzip compressed is not read here; unpack it"),
        (base64.b64encode(PICTURE_FILE), "base64 is not read here; decode it"),
        (b"data:image/png;base64," + base64.b64encode(PICTURE_FILE), "base64"),
        (b'{"error": {"code": 403}}', "JSON is not read here; give the picture itself"),
        (b'<?xml version="1.0"?>\n<Error>AccessDenied</Error>', "XML"),
        (PICTURE_FILE.replace(b"\r\n", b"\n"), "a picture that was copied as text"),
        (bytes(4000), "a file of zeros"),
        (b"P7\nWIDTH 1\n", "PAM"),
        (b"\x0a\x05\x01\x08" + bytes(90), "PCX"),
        (PICTURE_FILE[:8] + b"\0\0\0\4CgBI", "a PNG of an iPhone's app (CgBI)"),
        (bytes(60) + b"TRUEVISION-XFILE.\0", "TGA"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_named_and_not_called_damaged(data: bytes, what: str) -> None:
    with pytest.raises(UnreadError) as caught:
        decode(data, name="a.jpg")
    assert str(caught.value).startswith(f"a.jpg: {what}")
    with pytest.raises(ImageError) as caught:
        read_mask(data, name="m.png")
    assert str(caught.value).startswith(f"m.png: is {what.partition(' is not')[0]}")
    assert "JPEG" not in str(caught.value)


@pytest.mark.parametrize("shape", [(64, 96), (1, 1)])
def test_a_mask_of_one_colour_covers_the_picture_as_one_of_one_level(
    shape: tuple[int, int],
) -> None:
    """`plt.imsave` draws a mask without a pixel in purple: the build's note tells of it."""
    purple = np.broadcast_to(np.array([68, 1, 84, 255], np.uint8), (*shape, 4))
    for picture in (purple, np.full(shape, 255)):
        mask = read_mask(_png(picture), name="m.png")
        assert mask.region.all() and mask.notes
    black = read_mask(
        _png(np.broadcast_to(np.array([0, 0, 0, 255], np.uint8), (*shape, 4))), name="m"
    )
    assert not black.region.any() and not black.notes


@pytest.mark.parametrize("way", ["jsonl", "doctor"])
@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("val.jsonl.gz", "unpack it to val.jsonl"),
        ("val.JSONL", "call it val.jsonl"),
        ("val.jsonl.txt", "call it val.jsonl"),
        ("val.ndjson", "call it val.jsonl"),
        ("train-00001.tar.gz", "unpack it to train-00001.tar"),
        ("train-00001.tgz", "unpack it to train-00001.tar"),
    ],
)
def test_files_that_were_meant_for_a_split_are_not_left_out(
    tmp_path: Path, way: str, name: str, cure: str
) -> None:
    seen = _send(way, tmp_path, {"train.jsonl": _lines(LINE), name: b"x"})
    assert _error(seen).endswith(f"{name}: only *.jsonl and plain *.tar are read; {cure}, or move it "
                                 "elsewhere")  # fmt: skip


def test_other_files_beside_the_lines_do_no_harm(tmp_path: Path) -> None:
    files = ("train.jsonl.gz", "train.jsonl~", "train.jsonl.bak", "images.tar.gz", "val.json")
    seen = _send("jsonl", tmp_path, {"train.jsonl": _lines(LINE), **dict.fromkeys(files, b"x")})
    assert (seen.code, len(seen.pairs)) == (0, 1)


@pytest.mark.parametrize("way", ["jsonl", "doctor"])
def test_tars_that_were_joined_by_cat_lose_nothing(tmp_path: Path, way: str) -> None:
    seen = _send(way, tmp_path, {"train-00000.tar": _tar("0") + _tar("1")})
    assert "a second tar follows behind its end" in _error(seen)


def test_what_fills_the_last_block_of_a_tape_is_no_second_tar(tmp_path: Path) -> None:
    seen = _send("jsonl", tmp_path, {"train-00000.tar": _tar("0") + b"\xe5" * 5120})
    assert (seen.code, len(seen.pairs)) == (0, 1)


def test_a_compressed_tar_is_told(tmp_path: Path) -> None:
    seen = _send("jsonl", tmp_path, {"train-00000.tar": gzip.compress(_tar("0"))})
    assert "is a file that gzip compressed, which its name does not say" in _error(seen)


@pytest.mark.parametrize("way", ["jsonl", "shards", "tar", "doctor"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_id": "COCO_train2014_000000000139.jpg"}, "of COCO; write its id, '139'"),
        ({"image_id": "000000000139.jpg"}, "names an image of COCO; write its id, '139'"),
        ({"image_id": "coco/139"}, "names an image of COCO; write its id, '139'"),
        ({"image_id": "139.0"}, "names an image of COCO; write its id, '139'"),
        ({"image_id": " 139"}, "begins or ends with a blank"),
        ({"image_id": "-1"}, "is no id of COCO"),
        ({"box": [20, 14, 60, 50]}, "is [left, top, right, bottom]; write [x, y, width, height]"),
    ],
)
def test_ids_and_boxes_as_others_write_them(
    tmp_path: Path, way: str, fields: dict[str, Any], said: str
) -> None:
    seen = _send(way, tmp_path, {"train.jsonl": _lines({**LINE, **fields})})
    if way == "doctor" and "box" in fields:
        assert said in seen.said
    else:
        assert said in _error(seen)


@pytest.mark.parametrize("image_id", ["139", "vg/12", "2007_000032", "00012.png", "sa1b/0"])
def test_other_ids_are_as_they_are(tmp_path: Path, image_id: str) -> None:
    seen = _send("jsonl", tmp_path, {"train.jsonl": _lines({**LINE, "image_id": image_id})})
    assert not seen.code


def test_ids_of_records_are_checked_alike(tmp_path: Path) -> None:
    target = Target(encode_mask(BOX), "box")
    expression = Expression("1", "the box", (0,), "object")
    record = Record(
        PICTURE_FILE, "COCO_val2014_000000000042", "a.png", *BOX.shape, "odd", (target,),
        (expression,),
    )  # fmt: skip
    with pytest.raises(BuildError, match="names an image of COCO; write its id, '42'"):
        check_record(record)
    with pytest.raises(BuildError, match="write its id, '42'"):
        build_records("odd", {"train": [record]}, lambda item: item, data_dir=tmp_path)
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize("name", ["https://x.org/a.png", "file:///a.png", "s3://b/a.png"])
@pytest.mark.parametrize("field", ["image", "mask"])
def test_addresses_are_no_names(tmp_path: Path, name: str, field: str) -> None:
    line = {"image": "a.png", "expression": "the box", "mask": "m.png", field: name}
    seen = _send("jsonl", tmp_path, {"m.png": MASK_FILE, "train.jsonl": _lines(line)})
    assert f"{name} is an address, no file; download it" in _error(seen)


def test_one_picture_under_two_names_is_one_record(tmp_path: Path) -> None:
    lines = [{**LINE, "id": "whole"}, {**LINE, "image": "./a.png", "expression": "its lid"}]
    lines[1] |= {"segmentation": HOLE, "parent": "whole"}
    seen = _send("jsonl", tmp_path, {"train.jsonl": _lines(*lines)})
    assert [name for name, _, _ in seen.pairs] == ["a.png", "a.png"]


@pytest.mark.parametrize("way", ["jsonl", "tar", "doctor"])
def test_a_polygon_in_another_is_told(tmp_path: Path, way: str) -> None:
    """COCO unites polygons; GeoJSON's and OpenCV's inner ones are holes."""
    seen = _send(way, tmp_path, {"train.jsonl": _lines({**LINE, "segmentation": POLYGON + HOLE})})
    assert NESTED in seen.said
    for _, _, region in seen.pairs:
        np.testing.assert_array_equal(region, BOX)


def test_polygons_side_by_side_are_not_told(tmp_path: Path) -> None:
    apart = [[0, 0, 9, 0, 9, 9], [20, 14, 60, 14, 60, 50], [20, 14, 60, 50, 20, 50]]
    seen = _send("jsonl", tmp_path, {"train.jsonl": _lines({**LINE, "segmentation": apart})})
    assert (seen.code, NESTED in seen.said) == (0, False)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "GIF", "WEBP"])
def test_transparent_pixels_of_a_picture_are_told(tmp_path: Path, kind: str) -> None:
    """The colours below them are read, whatever they are; opaque pictures are not told."""
    for alpha, notes in ((np.where(BOX, 255, 0), (CLEAR,)), (np.full(BOX.shape, 255), ())):
        image = Image.fromarray(np.dstack([PICTURE, alpha.astype(np.uint8)]))
        options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        if kind in ("P", "GIF"):
            image = Image.fromarray(np.where(BOX, 0, 1).astype(np.uint8), "P")
            image.putpalette([200, 30, 30, 120, 160, 200])
            options = {"transparency": 1} if notes else {}
        elif kind == "LA":
            image = image.convert("LA")
        buffer = io.BytesIO()
        image.save(buffer, kind if kind in ("GIF", "WEBP") else "PNG", **options)
        assert decode(buffer.getvalue(), name="a").notes == notes
        files = {"b.png": buffer.getvalue(), "train.jsonl": _lines({**LINE, "image": "b.png"})}
        room = tmp_path / str(bool(notes))
        room.mkdir()
        seen = _send("jsonl", room, files)
        assert (seen.code, CLEAR in seen.said) == (0, bool(notes))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'["red", "blue"]', "JSON"),
        (b'[\n "red",\n "blue"\n]\n', "JSON"),
        (_lines(LINE, LINE), "JSON"),
        (rb"{\rtf1\ansi red}", "RTF"),
    ],
)
def test_texts_of_programs_are_told(data: bytes, what: str) -> None:
    with pytest.raises(EncodingError, match=f"is {what}, no list of texts; write one text a line"):
        lines_of_any(data)


def test_texts_in_brackets_are_texts() -> None:
    assert lines_of_any(b"[the] red box\n{a} dog\n") == ["[the] red box", "{a} dog"]


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (("Car", "car"), "the category 'car' is 'Car' in line 1; spell it in one way"),
        (("caf\u00e9", "cafe\u0301"), "spell it in one way"),
        (("car ", "car"), "'car ' begins or ends with a blank"),
        (("car", "cart"), ""),
    ],
)
def test_categories_spelt_apart_are_not_two_classes(
    tmp_path: Path, categories: tuple[str, str], said: str
) -> None:
    rle = {"size": list(BOX.shape), "counts": encode_mask(BOX).decode()}
    pairs = [{"id": k, "segmentation": rle, "category": c} for k, c in enumerate(categories)]
    (tmp_path / "r.jsonl").write_bytes(_lines(*pairs))
    files = [f"--predictions={tmp_path / 'r.jsonl'}", f"--references={tmp_path / 'r.jsonl'}"]
    code, printed = run(score.main, "--protocol=semseg", *files, f"--json={tmp_path / 'o.json'}")
    assert (code, said in printed, (tmp_path / "o.json").exists()) == (bool(said), True, not said)


@pytest.mark.parametrize("soft", ["data:image/png;base64,AAAA", "m.npy", "AAAA\nAAAA\n"])
def test_maps_in_other_forms_are_one_line_with_the_cure(tmp_path: Path, soft: str) -> None:
    rle = {"size": list(BOX.shape), "counts": encode_mask(BOX).decode()}
    (tmp_path / "r.jsonl").write_bytes(_lines({"id": 1, "segmentation": rle}))
    (tmp_path / "p.jsonl").write_bytes(_lines({"id": 1, "segmentation": rle, "map": soft}))
    files = [f"--predictions={tmp_path / 'p.jsonl'}", f"--references={tmp_path / 'r.jsonl'}"]
    code, printed = run(score.main, "--protocol=sod", *files)
    assert code == 1
    assert "give base64 of a PNG without line ends or a prefix, or the name of a .png" in printed
