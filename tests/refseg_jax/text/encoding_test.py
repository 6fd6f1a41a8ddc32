import codecs

import pytest

from refseg_jax.text.encoding import (
    EncodingError,
    check_start,
    decoded,
    is_blank,
    json_of,
    lines_of_any,
)

TEXT = '{"expression": "die größere Tür 門"}'


def test_utf8_with_and_without_a_byte_order_mark():
    assert decoded(TEXT.encode()) == TEXT
    assert decoded(codecs.BOM_UTF8 + TEXT.encode()) == TEXT
    assert decoded(b"") == ""


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("utf-16", "is UTF-16, not UTF-8; save it as UTF-8"),
        ("utf-32", "is UTF-32, not UTF-8; save it as UTF-8"),
        ("utf-16-le", "is UTF-16 or no text"),
        ("utf-16-be", "is UTF-16 or no text"),
        ("latin-1", r"is not UTF-8 \(invalid .* byte\); save it as UTF-8"),
        ("gbk", r"is not UTF-8 \(invalid .* byte\); save it as UTF-8"),
    ],
)
def test_other_encodings_are_told_with_the_cure(encoding: str, reason: str):
    data = TEXT.encode(encoding, "replace")
    with pytest.raises(EncodingError, match=reason):
        decoded(data)
    if "utf" in encoding:
        with pytest.raises(EncodingError, match=reason):
            check_start(data[:4])


def test_a_field_that_is_stated_twice_is_no_json():
    assert json_of(b'{"a": [{"b": 1}], "c": null}\r\n') == {"a": [{"b": 1}], "c": None}
    assert json_of(b'{"a": 1, "a": 1}') == {"a": 1}
    for line in (b'{"a": 1, "a": 2}', b'{"x": [{"a": [1], "a": [2], "a": [1]}]}'):
        with pytest.raises(ValueError, match="the field 'a' stands there twice"):
            json_of(line)


def test_blank_lines():
    assert all(map(is_blank, (b"", b" \r\n", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\n")))
    assert not is_blank(codecs.BOM_UTF8 + b"{}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_of_texts_in_any_encoding_of_unicode(encoding: str):
    text = "die größere Tür\r\n門\ra\u2028b\x0bc\x85d\n\nlast"
    expected = ["die größere Tür", "門", "a\u2028b\x0bc\x85d", "", "last"]
    assert lines_of_any(text.encode(encoding)) == expected
    # The end of the last line begins no other.
    assert lines_of_any(f"{text}\n".encode(encoding)) == expected
    assert lines_of_any(b"") == []


def test_marks_of_joined_files_are_no_text():
    one, other = ("a\n".encode("utf-8-sig"), "b\n".encode("utf-8-sig"))
    assert lines_of_any(one + other) == ["a", "b"]
    big_endian = codecs.BOM_UTF16_BE + "門".encode("utf-16-be")
    assert lines_of_any(big_endian) == ["門"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfea", r"is damaged UTF-16 \(truncated data\); save it as UTF-8"),
        ("a b".encode("utf-16-le"), "is UTF-16 or no text, not UTF-8"),
        ("Tür".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_lines_of_other_bytes_are_refused(data: bytes, reason: str):
    with pytest.raises(EncodingError, match=reason):
        lines_of_any(data)
