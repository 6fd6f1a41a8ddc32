"""A checkpoint alone answers as the evaluator did, and bad inputs get one line."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.models import build_model
from refseg_jax.predictor import Prediction, Predictor
from refseg_jax.preprocess import decode_image
from refseg_jax.train_state import Forward
from tests.refseg_jax.tiny_run import (
    SIZES,
    UNIRES,
    build_many_sizes,
    make_evaluator,
    random_params,
    save_unires,
)

#: Such that random parameters give masks that are neither empty nor full.
THRESHOLD = 0.6
#: Padded to 8, as every count from 5 on: compiling one more count would take seconds.
TEXTS = ["the red box", "both boxes", "the lid", "a box on the left", "purple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `run` with a checkpoint, and `dump` with what the evaluator said."""
    folder = tmp_path_factory.mktemp("predictor")
    build_many_sizes(folder / "data")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    params = random_params(forward)
    save_unires(folder / "run", params, THRESHOLD)
    make_evaluator(folder / "data", forward, threshold=THRESHOLD, dump=folder / "dump").evaluate(
        params, 0
    )
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.from_checkpoint(folder / "run")


@pytest.fixture(scope="module")
def dumped(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "dump" / "predictions.jsonl").read_text().splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


def _same(one: Prediction, other: Prediction) -> None:
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.present == other.present
    assert one.score == pytest.approx(other.score, abs=1e-6)


def test_masks_are_the_evaluators_bit_by_bit(
    folder: Path, predictor: Predictor, dumped: dict[str, dict[str, Any]]
) -> None:
    source = RecordSource(str(folder / "data"), "tiny", "val")
    mixed = 0
    for index in range(len(source)):
        record = source[index]
        texts = [expression.text for expression in record.expressions]
        predictions = predictor.predict(record.image, texts)
        assert len(predictions) == len(texts)
        for expression, prediction in zip(record.expressions, predictions, strict=True):
            line = dumped.pop(expression.id)
            theirs = coco_mask.decode(line["segmentation"]).astype(bool)
            np.testing.assert_array_equal(prediction.mask, theirs, expression.id)
            assert prediction.mask.shape == (record.height, record.width)
            assert prediction.present == line["present"]
            assert prediction.score == pytest.approx(line["score"], abs=1e-6)
            mixed += 0.02 < theirs.mean() < 0.98
    assert not dumped
    # Else equal masks would say nothing.
    assert mixed > len(SIZES)


def test_file_bytes_pillow_and_array_give_the_same(tmp_path: Path, predictor: Predictor) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue())
    array = decode_image(buffer.getvalue(), name="a.jpg")
    (expected,) = predictor.predict(array, ["the box"])
    for image in (path, str(path), buffer.getvalue(), Image.fromarray(array)):
        _same(predictor.predict(image, ["the box"])[0], expected)


def test_expressions_together_answer_as_one_by_one(predictor: Predictor) -> None:
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    together = predictor.predict(image, TEXTS)
    assert len(together) == len(TEXTS)
    assert len({prediction.score for prediction in together}) > 1
    for text, prediction in zip(TEXTS, together, strict=True):
        _same(predictor.predict(image, [text])[0], prediction)


def test_image_is_encoded_once_for_all_expressions(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, seen = predictor._encode_image, []

    def counting(params: Any, image: Any) -> Any:
        seen.append(image.shape)
        return inner(params, image)

    monkeypatch.setattr(predictor, "_encode_image", counting)
    image = np.zeros((32, 32, 3), np.uint8)
    predictor.predict(image, TEXTS)
    size = UNIRES["image_size"]
    assert seen == [(1, 1, size, size, 3)]
    predictor.predict(image, TEXTS)
    assert len(seen) == 2


def test_many_sizes_and_counts_take_one_compilation(predictor: Predictor) -> None:
    predictor.predict(np.zeros((8, 9, 3), np.uint8), TEXTS)
    encode: Any = predictor._encode_image
    decode: Any = predictor._decode
    before = decode._cache_size()
    for height, width, count in ((1, 1, 5), (100, 128, 6), (128, 1, 7), (64, 64, 8)):
        predictor.predict(np.zeros((height, width, 3), np.uint8), ["box"] * count)
    assert encode._cache_size() == 1
    assert decode._cache_size() == before


def test_a_step_folder_holds_what_its_run_holds(folder: Path, predictor: Predictor) -> None:
    other = Predictor.from_checkpoint(folder / "run" / "checkpoints" / "1")
    assert other._params.keys() == predictor._params.keys()
    for path, value in predictor._params.items():
        np.testing.assert_array_equal(other._params[path], value, path)


def _float_image() -> np.ndarray:
    return np.zeros((4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("image", "texts", "words"),
    [
        ("missing.jpg", ["a"], "missing.jpg"),
        (b"no image at all", ["a"], "no image"),
        (b"\xff\xd8\xff\xe0damaged", ["a"], "damaged"),
        (_float_image(), ["a"], "uint8"),
        (np.zeros((4, 4), np.uint8), ["a"], "uint8"),
        (np.zeros((0, 4, 3), np.uint8), ["a"], "uint8"),
        (7, ["a"], "int"),
        (np.zeros((4, 4, 3), np.uint8), [], "at least one"),
        (np.zeros((4, 4, 3), np.uint8), "the red box", "list"),
        (np.zeros((4, 4, 3), np.uint8), ["a", "  "], "empty"),
        (np.zeros((4, 4, 3), np.uint8), [b"\xff\xfe"], "UTF-8"),
        (np.zeros((4, 4, 3), np.uint8), [3], "not text"),
        (np.zeros((4, 4, 3), np.uint8), [None], "not text"),
    ],
)
def test_bad_inputs_are_one_line(predictor: Predictor, image: Any, texts: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        predictor.predict(image, texts)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_no_checkpoint_is_one_line_that_names_the_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError) as caught:
            Predictor.from_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
