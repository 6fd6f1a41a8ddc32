"""Groups: answers are those of the evaluation, whatever the order in which images are given."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline import pipeline
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Record
from input_pipeline.sources import RecordSource
from refseg_jax.errors import UserError
from refseg_jax.images.decoding import ImageError
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.pictures import names_of
from refseg_jax.prediction.predictor import Predictor
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.exports.folders import compiling_in_a_hurry
from tests.refseg_jax.models.rela_test import SMALL as RELA
from tests.refseg_jax.models.small_unilseg import SMALL as UNILSEG
from tests.refseg_jax.prediction.grouped import MODEL, THRESHOLD, grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import (
    UNIRES,
    data_config,
    make_evaluator,
    random_params,
    unires_run_config,
)

TEXTS = ("the red box", "both boxes", "purple")
#: Two groups of five images: rows of three, the last of which has an image of the row before.
SCENES = ScenesConfig(image_size=64, val_groups=2, group_size=5)


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry():
        yield


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(grouped_params(), grouped_config())


def pictures(count: int) -> list[np.ndarray]:
    """Coarse noise of different sizes."""
    found = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        found.append(np.asarray(Image.fromarray(coarse).resize((30 + number, 33 - number))))
    return found


def same(one: Prediction, other: Prediction) -> None:
    """To rounding in the logits."""
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.uncleared, other.uncleared)
    assert one.present is other.present
    assert one.score == pytest.approx(other.score, abs=1e-5)
    if one.margin is not None:
        assert one.margin == pytest.approx(other.margin, abs=1e-5)


def _of_scenes(record: Record) -> Record:
    return make_record(SCENES, "val_groups", int(record.image_id.removeprefix("val")))


def test_masks_are_the_evaluators_bit_by_bit(predictor: Predictor, tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path / "data", {"val": 10}, change=_of_scenes)
    fields = {"sampling": "group", "granularities": ("group",), "anti_prefix": "token"}
    config = data_config(tmp_path / "data", pairs=1, images=MODEL["group_size"], **fields)
    make_evaluator(
        tmp_path / "data",
        forward_of(MODEL),
        batches=lambda: pipeline.eval_batches(config, batch_size=1),
        threshold=THRESHOLD,
        dump=tmp_path,
    ).evaluate(grouped_params(), 0)
    written = (tmp_path / "predictions.jsonl").read_text().splitlines()
    dumped = {line["id"]: line for line in map(json.loads, written)}
    source = RecordSource(str(tmp_path / "data"), "tiny", "val")
    records = [source[index] for index in range(len(source))]
    answers, mixed = [], 0
    for text in {record.expressions[0].text for record in records}:
        # In an order that is not that of their names.
        group = [record for record in reversed(records) if record.expressions[0].text == text]
        names = [record.image_id for record in group]
        assert len(group) == SCENES.group_size and names != sorted(names)
        found = predictor.predict_group([record.image for record in group], [text], names=names)
        for record, (one,) in zip(group, found, strict=True):
            line = dumped.pop(record.expressions[0].id)
            theirs = coco_mask.decode(line["segmentation"]).astype(bool)
            np.testing.assert_array_equal(one.uncleared, theirs, record.image_id)
            assert one.present is line["present"]
            assert one.score == pytest.approx(line["score"], abs=1e-6)
            answers.append(one.present)
            mixed += 0.02 < theirs.mean() < 0.98
    # Else equal answers would say nothing.
    assert not dumped and mixed > 5 and {True, False} == set(answers)


@pytest.mark.parametrize("named", [True, False], ids=["names", "pixels"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_order_in_which_images_are_given_changes_no_answer(
    predictor: Predictor, count: int, named: bool
) -> None:
    images, rng = pictures(count), np.random.default_rng(0)
    names = [f"{number}.png" for number in rng.permutation(count)]
    order = rng.permutation(count)[::-1]
    mixed = [names[i] for i in order]
    expected = predictor.predict_group(images, TEXTS, names=names if named else None)
    assert [len(answers) for answers in expected] == [len(TEXTS)] * count
    found = predictor.predict_group(
        [images[i] for i in order], TEXTS, names=mixed if named else None
    )
    for place, image in enumerate(order):
        for one, other in zip(found[place], expected[image], strict=True):
            same(one, other)
        assert expected[image][0].mask.shape == images[image].shape[:2]


def test_images_ask_each_other(predictor: Predictor) -> None:
    """Else the test of their order would say nothing: another neighbour gives another answer."""
    first, second, third, other = pictures(4)
    margins = [
        predictor.predict_group([first, second, last], TEXTS)[0][0].margin
        for last in (third, other)
    ]
    assert None not in margins and abs(margins[0] - margins[1]) > 1e-4  # pyright: ignore


def test_an_image_alone_is_a_group_of_one(predictor: Predictor) -> None:
    (image,) = pictures(1)
    for one, other in zip(
        predictor.predict(image, TEXTS), predictor.predict_group([image], TEXTS)[0], strict=True
    ):
        same(one, other)
    words = predictor.words(TEXTS)
    for one, other in zip(
        predictor.predict_words(image, words), predictor.predict(image, TEXTS), strict=True
    ):
        same(one, other)


def test_expressions_together_answer_as_one_by_one(predictor: Predictor) -> None:
    images = pictures(4)
    together = predictor.predict_group(images, TEXTS)
    for k, text in enumerate(TEXTS):
        for answers, (alone,) in zip(
            together, predictor.predict_group(images, [text]), strict=True
        ):
            same(answers[k], alone)


def test_pairs_of_a_row_are_as_many_as_expressions_of_an_image(predictor: Predictor) -> None:
    for images, expected in ((1, [8, 1]), (3, [2, 2, 2, 2, 1]), (8, [1] * 9)):
        parts = predictor.words([f"box {k}" for k in range(9)], images=images).parts
        assert [count for count, _ in parts] == expected


def test_maps_of_groups_are_those_of_their_masks(predictor: Predictor) -> None:
    for answers in predictor.predict_group(pictures(2), TEXTS, maps=True):
        for one in answers:
            assert one.soft_map is not None
            assert one.uncleared[one.soft_map > 255 * THRESHOLD + 0.5].all()
            assert not one.uncleared[one.soft_map < 255 * THRESHOLD - 0.5].any()


@pytest.mark.parametrize("model", [UNIRES, RELA, UNILSEG], ids=lambda model: model["name"])
def test_other_models_answer_image_by_image(model: dict[str, Any]) -> None:
    model = {**model, "vocab_size": 49408, "eos_id": 49407}
    params = random_params(forward_of(model))
    predictor = Predictor(params, unires_run_config(0.5, model))
    assert predictor.group_size == 1
    images = pictures(3)
    found = predictor.predict_group(images, TEXTS[:2])
    for image, answers in zip(images, found, strict=True):
        for one, other in zip(answers, predictor.predict(image, TEXTS[:2]), strict=True):
            same(one, other)
    with pytest.raises(UserError, match="the model has no heatmaps"):
        predictor.heat_maps(images[:1], predictor.words(TEXTS))


@pytest.mark.parametrize(
    ("images", "names", "words"),
    [
        ([], None, "give a list of one or more"),
        ("a.png", None, "give a list of one or more"),
        (pictures(2), ["a"], "there are 1 for 2 images"),
        (pictures(3), ["a", "b", "a"], "a: 2 images have this name"),
        (["a.png", "b.png", "a.png"], None, "a.png: 2 images have this name"),
    ],
)
def test_images_without_names_of_their_own_are_one_line(
    predictor: Predictor, images: Any, names: Any, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        predictor.predict_group(images, TEXTS, names=names)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_paths_are_their_own_names_and_other_images_are_named_by_their_pixels() -> None:
    assert names_of(["b/a.png", Path("a/b.png")]) == ["b/a.png", "a/b.png"]
    one, other = pictures(2)
    stored = io.BytesIO()
    Image.fromarray(one).save(stored, "PNG")
    forms = [one, np.asfortranarray(one), Image.fromarray(one), stored.getvalue()]
    digests = [names_of([form])[0] for form in forms]
    assert len(set(digests)) == 1 and digests != names_of([other])
    # Equal bytes in another shape are another picture.
    assert names_of([one.reshape(one.shape[1], one.shape[0], 3)]) != digests[:1]
    many = names_of([one] * 11)
    assert many == sorted(many) and len(set(many)) == 11
    with pytest.raises(ImageError, match="array of float64"):
        names_of([one / 1.0])


@pytest.mark.parametrize(
    ("prefix", "words"),
    [("", "config.data.anti_prefix is empty"), ("maybe", "config.data.anti_prefix='maybe'")],
)
def test_a_model_of_groups_needs_anti_expressions(prefix: str, words: str) -> None:
    config = grouped_config()
    config["data"]["anti_prefix"] = prefix
    with pytest.raises(UserError, match=words):
        Predictor(grouped_params(), config)


def test_a_text_whose_anti_expression_alone_is_cut_counts_as_cut(predictor: Predictor) -> None:
    # With SOS and EOS, 9 and 10 tokens; the context has 10.
    texts = ["red box " * 3 + "red", "red box " * 4]
    assert predictor.cut_short(texts) == texts[1:]
    other = Predictor(random_params(forward_of(UNIRES)), unires_run_config())
    assert other.cut_short([*texts, "red box " * 5]) == ["red box " * 5]


def test_heatmaps_follow_the_images_and_their_trust(predictor: Predictor) -> None:
    # Their sums of ranks are not all equal.
    images = pictures(5)[2:]
    words = predictor.words(TEXTS, images=3)
    found = predictor.heat_maps(images, words)
    assert [len(maps) for maps in found] == [len(TEXTS)] * 3
    turned = predictor.heat_maps([images[2], images[0], images[1]], words)
    orders = set()
    for n, maps in enumerate(found):
        for k, one in enumerate(maps):
            other = turned[(n + 1) % 3][k]
            assert one.size == images[n].shape[:2] and one.vision.shape == (3, 8, 8)
            np.testing.assert_allclose(one.language, other.language, atol=1e-5)
            # The axis of the images turns with them.
            np.testing.assert_allclose(one.vision, other.vision[[1, 2, 0]], atol=1e-5)
            # All images of a row trust each other alike.
            np.testing.assert_array_equal(one.order, found[0][k].order)
            assert sorted(one.order.tolist()) == [0, 1, 2]
            assert np.abs(one.vision).max() <= 1 + 1e-6 and np.ptp(one.vision) > 0.1
            orders.add(tuple(one.order.tolist()))
    assert len(orders) > 1


def test_a_row_of_fewer_images_has_a_heatmap_of_each(predictor: Predictor) -> None:
    for count in (1, 2):
        found = predictor.heat_maps(pictures(count), predictor.words(TEXTS, images=count))
        for maps in found:
            assert [one.vision.shape[0] for one in maps] == [count] * len(TEXTS)
            assert sorted(maps[0].order.tolist()) == list(range(count))
