import codecs

import pytest

from refseg_jax.text.encoding import EncodingError, check_start, decoded, is_blank, json_of

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
