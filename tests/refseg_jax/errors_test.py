import pickle

import pytest

from refseg_jax.errors import UserError, escaped
from refseg_jax.images.decoding import ImageError


def test_an_error_is_one_line_whatever_a_name_holds() -> None:
    name = "a\nb\x1b[31m\u202e\udcff\t.png"
    assert str(UserError(f"{name}: no")) == r"a\nb\x1b[31m\u202e\udcff\t.png: no"
    assert str(ImageError(f"{name}: no")) == str(UserError(f"{name}: no"))
    assert str(UserError("é 中文 🙂: no")) == "é 中文 🙂: no"
    assert str(UserError()) == ""


def test_an_error_that_lists_others_has_a_line_for_each() -> None:
    error = UserError("2 problems", "a\nb", "c")
    assert str(error) == "2 problems\na\\nb\nc"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("text", ["", "plain", "中文", "a\\nb"])
def test_what_prints_stays(text: str) -> None:
    assert escaped(text) == text
    assert escaped(escaped(f"{text}\n")) == escaped(f"{text}\n")
