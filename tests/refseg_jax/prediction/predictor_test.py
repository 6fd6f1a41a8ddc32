"""A checkpoint alone answers as the evaluator did, and bad inputs get one line."""

import copy
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import CLEAR, ImageError, ImageWarning, decode_image
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward, Params
from refseg_jax.prediction.engines import ParameterEngine
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.pictures import read_picture, to_rgb
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.training.tiny_run import (
    SIZES,
    UNIRES,
    build_many_sizes,
    make_evaluator,
    random_params,
    save_unires,
    unires_run_config,
)

#: Such that random parameters give masks that are neither empty nor full.
THRESHOLD = 0.6
#: Padded to 8, as every count from 5 on: compiling one more count would take seconds.
TEXTS = ["the red box", "both boxes", "the lid", "a box on the left", "purple"]


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(Forward(lambda rngs: build_model(UNIRES, rngs=rngs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """`data`, `run` with a checkpoint, and `dump` with what the evaluator said."""
    folder = tmp_path_factory.mktemp("predictor")
    build_many_sizes(folder / "data")
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
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


def _by(predictor: Predictor, count: int) -> Predictor:
    """Another number of expressions at once; shares what was compiled."""
    other = copy.copy(predictor)
    other._at_once = count
    return other


def _same(one: Prediction, other: Prediction) -> None:
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.present == other.present
    assert one.score == pytest.approx(other.score, abs=1e-6)


def test_masks_are_the_evaluators_bit_by_bit(
    folder: Path, predictor: Predictor, dumped: dict[str, dict[str, Any]]
) -> None:
    source = RecordSource(str(folder / "data"), "tiny", "val")
    mixed, seen = 0, set()
    # All six expressions of an image at once, or in two chunks.
    for asked, index in itertools.product((predictor, _by(predictor, 3)), range(len(source))):
        record = source[index]
        texts = [expression.text for expression in record.expressions]
        predictions = asked.predict(record.image, texts)
        assert len(predictions) == len(texts)
        for expression, prediction in zip(record.expressions, predictions, strict=True):
            line = dumped[expression.id]
            seen.add(expression.id)
            theirs = coco_mask.decode(line["segmentation"]).astype(bool)
            np.testing.assert_array_equal(prediction.mask, theirs, expression.id)
            assert prediction.mask.shape == (record.height, record.width)
            assert prediction.present == line["present"]
            assert prediction.score == pytest.approx(line["score"], abs=1e-6)
            mixed += 0.02 < theirs.mean() < 0.98
    assert seen == set(dumped)
    # Else equal masks would say nothing.
    assert mixed > 2 * len(SIZES)


def test_masks_are_the_evaluators_where_both_resample_as_cris_does(
    folder: Path, params: Params, dumped: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    config = unires_run_config(THRESHOLD)
    config["eval"]["resample"] = "cris"
    forward = Forward(lambda rngs: build_model(UNIRES, rngs=rngs))
    save_unires(tmp_path / "run", params, config=config)
    fields: dict[str, Any] = {"threshold": THRESHOLD, "resample": "cris", "dump": tmp_path}
    make_evaluator(folder / "data", forward, **fields).evaluate(params, 0)
    lines = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    theirs = {line["id"]: line for line in lines}
    predictor = Predictor.from_checkpoint(tmp_path / "run")
    source = RecordSource(str(folder / "data"), "tiny", "val")
    others = 0
    for index in range(len(source)):
        record = source[index]
        texts = [expression.text for expression in record.expressions]
        answers = predictor.predict(record.image, texts)
        for expression, prediction in zip(record.expressions, answers, strict=True):
            line = theirs.pop(expression.id)
            expected = coco_mask.decode(line["segmentation"]).astype(bool)
            np.testing.assert_array_equal(prediction.mask, expected, expression.id)
            assert prediction.score == pytest.approx(line["score"], abs=1e-6)
            others += line["segmentation"] != dumped[expression.id]["segmentation"]
    assert not theirs and others > len(SIZES)


def test_a_map_is_the_probability_in_256_steps(folder: Path, predictor: Predictor) -> None:
    record = RecordSource(str(folder / "data"), "tiny", "val")[0]
    texts = [expression.text for expression in record.expressions]
    levels = set()
    asked, plain = (predictor.predict(record.image, texts, maps=maps) for maps in (True, False))
    for one, other in zip(asked, plain, strict=True):
        _same(one, other)
        assert other.soft_map is None
        assert one.soft_map is not None
        assert one.soft_map.dtype == np.uint8
        assert one.soft_map.shape == one.mask.shape
        levels.update(np.unique(one.soft_map).tolist())
        assert one.uncleared[one.soft_map > 255 * THRESHOLD].all()
        assert not one.uncleared[one.soft_map < 255 * THRESHOLD].any()
        inside = one.soft_map[one.uncleared]
        assert inside.size == 0 or abs(inside.mean() / 255 - one.score) < 0.5 / 255 + 1e-6
    assert len(levels) > 20


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


def test_expressions_are_decoded_in_chunks_of_an_image_encoded_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, paint = predictor._engine.encode_image, predictor._painter._paint
    encoded, painted = [], []

    def encoding(image: Any) -> Any:
        encoded.append(image.shape)
        return encode(image)

    def painting(*arguments: Any) -> Any:
        answer = paint(*arguments)
        painted.append([x.shape for x in answer])
        return answer

    monkeypatch.setattr(predictor._engine, "encode_image", encoding)
    monkeypatch.setattr(predictor._painter, "_paint", painting)
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    # 8, 8 and 5: what lies on the device does not grow with the number of expressions.
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS] + ["the box"]
    together = predictor.predict(image, texts)
    size = UNIRES["image_size"]
    assert encoded == [(1, size, size, 3)]
    assert painted == [[(1, 1, 8, 128, 128)] * 2] * 3
    assert len(together) == 21
    for start in (0, 8, 16):
        alone = predictor.predict(image, texts[start : start + 8])
        for one, other in zip(together[start : start + 8], alone, strict=True):
            _same(one, other)
    assert len({prediction.score for prediction in together}) > 5


def test_many_sizes_and_counts_take_one_compilation(predictor: Predictor) -> None:
    predictor.predict(np.zeros((8, 9, 3), np.uint8), TEXTS)
    engine: Any = predictor._engine
    paint: Any = predictor._painter._paint
    compiled = (engine._encode_text, engine._decode, paint)
    before = [function._cache_size() for function in compiled]
    for height, width, count in ((1, 1, 5), (100, 128, 6), (128, 1, 7), (64, 64, 8)):
        predictor.predict(np.zeros((height, width, 3), np.uint8), ["box"] * count)
    assert engine._encode_image._cache_size() == 1
    assert [function._cache_size() for function in compiled] == before


def test_a_step_folder_holds_what_its_run_holds(folder: Path, predictor: Predictor) -> None:
    other = Predictor.from_checkpoint(folder / "run" / "checkpoints" / "1")
    ours, theirs = _params(predictor), _params(other)
    assert theirs.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(theirs[path], value, path)


def _params(predictor: Predictor) -> Params:
    assert isinstance(predictor._engine, ParameterEngine)
    return predictor._engine.params


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


def _without(*path: str) -> dict[str, Any]:
    config = unires_run_config()
    section = config
    for name in path[:-1]:
        section = section[name]
    del section[path[-1]]
    return config


def _with(section: str, **fields: Any) -> dict[str, Any]:
    config = unires_run_config()
    config[section].update(fields)
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "no 'model'"),
        (_without("model", "name"), "unknown model 'None'"),
        (_without("data"), "no 'data'"),
        (_without("eval"), "no 'eval'"),
        (_without("eval", "threshold"), "no 'threshold'"),
        (_without("data", "context_length"), "no 'context_length'"),
        (_without("model", "text_width"), "parameter 'word_adapter.bias' is only in"),
        (_with("model", low_tokens=4), "parameter 'vision.low_tokens' is (5, 32), the model's is"),
        (_with("model", high_tokens=0), "parameter 'high_filter.attention.key.bias' is not in"),
        (_with("model", colour="red"), "unknown field of model 'unires' 'colour'"),
        (_with("model", name="nothing"), "unknown model 'nothing'"),
        (_with("model", image_size="large"), "version ("),
        (_with("model", eos_id=7), "config.data.tokenizer 'clip' ends texts by token 49407"),
        (_with("data", resize="leterbox"), "did you mean 'letterbox'"),
        (_with("data", context_length=1), "config.data.context_length=1"),
        (_with("data", context_length=None), "version ("),
        (_with("eval", threshold=1.0), "config.eval.threshold=1.0"),
        (_with("eval", threshold=None), "version ("),
        (_with("eval", resample="chris"), "config.eval.resample 'chris': did you mean 'cris'"),
    ],
)
def test_a_checkpoint_of_another_version_is_one_line_that_names_it(
    tmp_path: Path, params: Params, config: dict[str, Any], words: str
) -> None:
    save_unires(tmp_path / "run", params, config=config)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run'}: ")
    assert words in message
    assert "\n" not in message


def test_pillow_images_are_what_their_files_are() -> None:
    """Deep, transparent and other images, whose ways to RGB are several."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 7), np.uint8)
    deep = rng.integers(0, 65536, (9, 7)).astype(np.uint16)
    palette = Image.fromarray(noise // 4).convert("P")
    for image, extra, said in (
        (Image.fromarray(deep), {}, ()),
        (Image.fromarray(noise), {}, ()),
        (Image.fromarray(np.dstack([noise] * 4)), {}, (CLEAR,)),
        (palette, {"transparency": bytes(range(64))}, (CLEAR,)),
        (palette, {"transparency": bytes([255] * 64)}, ()),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **extra)
        pixels = read_picture(buffer.getvalue())
        opened = read_picture(Image.open(buffer))
        assert pixels.pixels.std() > 5
        np.testing.assert_array_equal(opened.pixels, pixels.pixels, image.mode)
        assert pixels.notes == opened.notes == said


def test_a_depth_that_is_guessed_is_told() -> None:
    """12 bits in 16, once as a file and once as its opened image."""
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    for image in (buffer.getvalue(), Image.open(buffer)):
        with pytest.warns(ImageWarning, match="read as of 12 bits by their largest sample"):
            pixels = to_rgb(image)
        np.testing.assert_array_equal(pixels[..., 0], np.round(deep * (255 / 4095)))


def test_a_flag_turns_files_bytes_and_opened_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path, exif=exif)
    for image in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(to_rgb(image), np.rot90(noise, -1))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a pipe, no file; name an image file"):
        to_rgb(tmp_path / "a.png")


def test_a_pillow_image_whose_file_is_cut_is_one_line() -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    # Pillow reads the header alone when it opens a file.
    cut = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(ImageError, match="Pillow image: the image is damaged"):
        to_rgb(cut)


def test_no_expressions_at_once_are_refused(params: Params) -> None:
    with pytest.raises(UserError, match="expressions_at_once=0"):
        Predictor(params, unires_run_config(), expressions_at_once=0)
