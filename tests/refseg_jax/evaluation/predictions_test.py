"""Masks as COCO RLE read back by a slow decoder, and files that are whole or not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.evaluation.predictions import encode, jsonl_writer, prediction_line
from refseg_jax.evaluation.thresholds import Thresholds

USED = Thresholds(0.35, origin="config")


def _decode(segmentation: dict[str, Any]) -> np.ndarray:
    """COCO's `rleFrString` and `rleDecode`: run lengths down the columns, from the third on as
    differences to the last but one, in groups of five bits from letter 48 on."""
    height, width = segmentation["size"]
    letters, runs = list(segmentation["counts"].encode()), []
    while letters:
        value, shift, more = 0, 0, True
        while more:
            group = letters.pop(0) - 48
            value |= (group & 31) << shift
            more, shift = bool(group & 32), shift + 5
            if not more and group & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    pixels = np.repeat(np.arange(len(runs)) % 2, runs)
    return pixels.reshape(width, height).T.astype(bool)


def _masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) < 0.4 for shape in [(1, 1), (7, 1), (1, 9), (31, 17), (200, 300)]]
    blob = np.zeros((480, 640), bool)
    blob[100:300, 50:600] = True
    return [*masks, blob, ~blob, np.zeros((5, 6), bool), np.ones((5, 6), bool)]


@pytest.mark.parametrize("mask", _masks(), ids=lambda m: f"{m.shape}")
def test_masks_survive_their_encoding(mask: np.ndarray) -> None:
    found = encode(mask)
    assert json.loads(json.dumps(found)) == found
    assert found["size"] == list(mask.shape)
    np.testing.assert_array_equal(_decode(found), mask)


def test_type_and_order_of_a_mask_do_not_matter() -> None:
    mask = np.random.default_rng(1).random((9, 14)) < 0.5
    wide = np.zeros((18, 28), bool)
    wide[::2, ::2] = mask
    for other in (mask.astype(np.uint8), np.asfortranarray(mask), wide[::2, ::2], mask * 1.0):
        assert encode(other) == encode(mask)


def test_a_line_of_predictions() -> None:
    mask = np.eye(4, 6, dtype=bool)
    line = prediction_line("7", "a.jpg", "the “red” one\n", mask, 0.75, thresholds=USED)
    read = json.loads(json.dumps(line))
    np.testing.assert_array_equal(_decode(read.pop("segmentation")), mask)
    assert read == {
        "id": "7",
        "image": "a.jpg",
        "expression": "the “red” one\n",
        "score": 0.75,
        "present": True,
        "presence": None,
        "thresholds": {"mask": 0.35, "presence": 0.5, "origin": "config"},
    }
    empty = prediction_line(
        "7", "a", "x", np.zeros((2, 2), bool), 0.0, presence=0.75, thresholds=USED
    )
    assert (empty["present"], empty["presence"]) == (False, 0.75)


def test_every_object_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "predictions.jsonl"
    lines = [{"id": "1", "expression": "two\nlines\u2028 日本"}, {"id": "2"}]
    with jsonl_writer(path) as write:
        for line in lines:
            write(line)
        assert not path.exists()
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == lines
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with jsonl_writer(path) as write:
        write({"id": "old"})
    with pytest.raises(KeyboardInterrupt), jsonl_writer(path) as write:
        write({"id": "new"})
        raise KeyboardInterrupt
    assert path.read_text() == '{"id": "old"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), jsonl_writer(tmp_path / "a.jsonl") as write:
        write({"score": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []
