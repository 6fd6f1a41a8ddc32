import json
import random

import pytest

from input_pipeline.building.conversion import SourceError
from input_pipeline.formats import json_stream
from input_pipeline.formats.json_stream import elements, integer

COCO = {
    "info": {"year": 2017, "lists": [1, 2]},
    "images": [{"id": 1, "file_name": "ä\u2028.jpg"}, {"id": 2}],
    "empty": [],
    "number": 12345,
    "annotations": [{"id": n, "segmentation": [[0.5, n, 1e3]]} for n in range(50)],
    "text": 'a "quoted" ] } text',
}


def write(folder, text):
    path = folder / "a.json"
    path.write_text(text, encoding="utf-8")
    return path


def flat(stored):
    """What `elements` is to give of an object."""
    return [
        (key, element)
        for key, value in stored.items()
        for element in (value if isinstance(value, list) else [value])
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_are_those_of_json_however_the_file_is_cut(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = write(tmp_path, json.dumps(COCO, indent=indent, ensure_ascii=False))
    assert list(elements(path)) == flat(COCO)
    numbers: list[float] = [random.Random(n).randint(-(10**n), 10**n) for n in range(1, 40)]
    numbers += [1.5, 2e300, -3e-7, 0.0]
    path = write(tmp_path, json.dumps(numbers, indent=indent))
    assert list(elements(path)) == [("", number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "expected"), [("[]", []), (" {}\n", []), ('{"a": 1 }', [("a", 1)])]
)
def test_small_files(tmp_path, text, expected):
    assert list(elements(write(tmp_path, text))) == expected


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_truncated_file_is_one_line(tmp_path, cut):
    path = write(tmp_path, json.dumps(COCO)[:-cut])
    with pytest.raises(SourceError, match=r"a\.json: damaged JSON \(.*\); download it again"):
        list(elements(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the end is missing"),
        ("3", "'3' in the place of '\\[' or '{'"),
        ("[1 2]", "'2' in the place of ',' or ']'"),
        ("[1,]", "Expecting value"),
        ("{1: 2}", "no name of a field, at character 1"),
        ("[1] [", "something follows the end"),
        ("[" * 200_000, "recursion"),
        ("version 1", "'v' in the place"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path, text, reason):
    with pytest.raises(SourceError, match=reason) as caught:
        list(elements(write(tmp_path, text)))
    assert "\n" not in str(caught.value)


def test_other_encodings_and_missing_files_are_one_line(tmp_path):
    (tmp_path / "b.json").write_bytes(b'["\xff"]')
    with pytest.raises(SourceError, match=r"b\.json: damaged JSON"):
        list(elements(tmp_path / "b.json"))
    with pytest.raises(SourceError, match=r"c\.json: not there; download it"):
        list(elements(tmp_path / "c.json"))
    with pytest.raises(SourceError, match="Is a directory"):
        list(elements(tmp_path))


def test_one_element_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 100)
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    with pytest.raises(SourceError, match="more than 1,000 characters"):
        list(elements(write(tmp_path, '["' + "a" * 5000)))


def test_a_part_of_the_file_is_held_at_a_time(tmp_path, monkeypatch):
    """However long the list, and whatever stands before it."""
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    monkeypatch.setattr(json_stream, "_LONGEST", 3000)
    stored = {"info": {}, "text": "x", "number": 5, "images": [{"id": n} for n in range(5000)]}
    assert len(list(elements(write(tmp_path, json.dumps(stored))))) == 5003


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_told_with_the_cure(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(COCO, ensure_ascii=False).encode(encoding))
    with pytest.raises(SourceError, match=r"a\.json: is UTF-\d\d.*; save it as UTF-8"):
        list(elements(path))


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(COCO), encoding="utf-8-sig")
    assert list(elements(path)) == flat(COCO)


@pytest.mark.parametrize("value", [7, "7", " 7\n", "007", 7.0])
def test_whole_numbers_as_people_write_them(value):
    assert integer(value) == 7
    assert type(integer(value)) is int


@pytest.mark.parametrize(
    "value",
    ["", "7a", "7.0", "٧", 7.5, float("inf"), float("nan"), True, None, [7], 5001 * "7", b"7"],
)
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match=r"is no whole number|Exceeds the limit"):
        integer(value)


def test_negative_and_large_whole_numbers():
    assert integer("-1") == -1
    assert integer(10**400) == 10**400
