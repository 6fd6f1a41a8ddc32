"""Many images at once answer as one by one, wherever they stand in a batch; tiles leave no seam."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.images.decoding import ImageError
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.many import Answer
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.prediction.tiles import Strip, Tiles, ramp
from tests.devices import run_on_devices
from tests.refseg_jax.prediction.grouped import grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import (
    UNIRES,
    WITH_PRESENCE,
    presence_params,
    random_params,
    unires_run_config,
)

THRESHOLD = 0.6
TEXTS = ["the red box", "both boxes", "the lid"]

pytestmark = pytest.mark.usefixtures("one_compilation")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(presence_params(-0.4), unires_run_config(THRESHOLD, WITH_PRESENCE))


def pictures(number: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 3 * n, 50 - 4 * n, 3), np.uint8) for n in range(number)]


def same(one: Prediction, other: Prediction) -> None:
    """Equal but where a probability is within 1e-4 of the threshold, in logits."""
    assert (one.present, one.thresholds) == (other.present, other.thresholds)
    assert one.score == pytest.approx(other.score, abs=1e-4)
    if one.margin is not None:
        assert one.margin == pytest.approx(other.margin, abs=1e-4)
    differ = one.uncleared != other.uncleared
    if differ.any():
        assert one.soft_map is not None
        level = 255 * one.thresholds.mask
        assert (np.abs(one.soft_map[differ].astype(float) - level) < 1.1).all()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_many_answer_as_one_by_one(predictor: Predictor, batch_size: int) -> None:
    images = pictures()
    answers = list(predictor.predict_many(images, TEXTS, maps=True, batch_size=batch_size))
    assert len(answers) == 5
    for image, answer in zip(images, answers, strict=True):
        assert answer.error is None and len(answer) == 3
        np.testing.assert_array_equal(answer.pixels, image)
        alone = predictor.predict(image, TEXTS, maps=True)
        for one, other in zip(answer, alone, strict=True):
            same(one, other)


def test_an_answer_depends_neither_on_its_place_nor_on_its_neighbours(predictor: Predictor) -> None:
    images = pictures(3)
    seen: dict[bytes, set[tuple[bytes, float]]] = {}
    for order in itertools.permutations(images):
        for answer in predictor.predict_many(order, TEXTS, batch_size=2):
            found = seen.setdefault(answer.pixels.tobytes(), set())
            found |= {(one.uncleared.tobytes(), one.score) for one in answer}
    assert [len(found) for found in seen.values()] == [3, 3, 3]


def test_each_image_has_its_own_expressions(predictor: Predictor) -> None:
    images, lists = pictures(3), [TEXTS, TEXTS[:1], ["the lid", "both boxes"]]
    answers = list(predictor.predict_many(images, lists, maps=True, batch_size=2))
    for image, texts, answer in zip(images, lists, answers, strict=True):
        assert answer.expressions == texts
        for one, other in zip(answer, predictor.predict(image, texts, maps=True), strict=True):
            same(one, other)
    for wrong, words in ((2, "2 lists for more images"), (4, "4 lists for 3 images")):
        given = [TEXTS[:1]] * wrong
        with pytest.raises(UserError, match=words):
            list(predictor.predict_many(images, given))


def test_a_picture_that_cannot_be_used_costs_itself_alone(
    predictor: Predictor, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    first, second = pictures(2)
    given = [bad, first, bad, bad, second]
    answers = list(predictor.predict_many(given, TEXTS, batch_size=2))
    assert [answer.error is None for answer in answers] == [False, True, False, False, True]
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(answers[0])
    for answer, image in ((answers[1], first), (answers[4], second)):
        for one, other in zip(answer, predictor.predict(image, TEXTS), strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_images_are_taken_a_few_ahead(predictor: Predictor) -> None:
    taken: list[int] = []

    def coming() -> Iterator[np.ndarray]:
        for number in range(200):
            taken.append(number)
            yield pictures(1)[0]

    answers = predictor.predict_many(coming(), TEXTS[:1], batch_size=2)
    most = 0
    for number, answer in enumerate(answers):
        list(answer)
        most = max(most, len(taken) - number)
    assert len(taken) == 200
    # A batch and as many as there are threads, at most 8, are read ahead; two batches are under way.
    assert most <= 2 + 8 + 4


def test_a_batch_that_fails_costs_its_images(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = predictor._engine.decode, itertools.count()

    def failing(*features: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return decode(*features)

    monkeypatch.setattr(predictor._engine, "decode", failing)
    answers = list(predictor.predict_many(pictures(), TEXTS, batch_size=2))
    assert [answer.error is None for answer in answers] == [True, True, False, False, True]
    with pytest.raises(ImageError, match=r"cannot be predicted .*RESOURCE_EXHAUSTED"):
        list(answers[2])


def test_a_model_of_groups_answers_as_for_groups_of_one() -> None:
    predictor = Predictor(grouped_params(), grouped_config())
    images = pictures(3)
    answers = list(predictor.predict_many(images, TEXTS[:2], maps=True, batch_size=2))
    for image, answer in zip(images, answers, strict=True):
        for one, other in zip(answer, predictor.predict(image, TEXTS[:2], maps=True), strict=True):
            same(one, other)


def test_batches_are_cut_over_all_devices() -> None:
    run_on_devices(
        2,
        """
import jax, numpy as np
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.prediction.predict_many_test import TEXTS, pictures, same
from tests.refseg_jax.training.tiny_run import WITH_PRESENCE, presence_params, unires_run_config

predictor = Predictor(presence_params(-0.4), unires_run_config(0.6, WITH_PRESENCE))
images = pictures(3)
# Rounded up to 2, an image for each device.
answers = list(predictor.predict_many(images, TEXTS, maps=True, batch_size=1))
for image, answer in zip(images, answers, strict=True):
    for one, other in zip(answer, predictor.predict(image, TEXTS, maps=True), strict=True):
        same(one, other)
from refseg_jax.prediction.engines import over_local_devices
engine, count = over_local_devices(predictor._engine)
features = engine.encode_image(np.zeros((2, engine.image_size, engine.image_size, 3), np.uint8))
assert count == 2 and engine is over_local_devices(predictor._engine)[0]
for leaf in jax.tree.leaves(features):
    assert len(leaf.sharding.device_set) == 2 and leaf.addressable_shards[0].data.shape[0] == 1
""",
    )


def test_a_wrong_batch_size_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="batch_size=0 is less than 1"):
        predictor.predict_many([], TEXTS, batch_size=0)


@pytest.mark.parametrize(("length", "size", "overlap"), [(100, 40, 10), (41, 40, 0), (997, 64, 63)])
def test_tiles_cover_an_axis_and_overlap(length: int, size: int, overlap: int) -> None:
    starts = Tiles(size, overlap).starts(length)
    assert starts[0] == 0 and starts[-1] + size == length
    gaps = np.diff(starts)
    # Rounding moves a tile by a pixel at most.
    assert (gaps > 0).all() and gaps.max() <= size - overlap + 1


def test_a_seam_shows_no_step() -> None:
    """Tiles that say 0 and 1 are joined by a ramp as long as the overlap."""
    strip = Strip(1, 8, 28)
    weights = np.ones((8, 1), np.float32) * ramp(16, 4)
    strip.add(np.zeros((1, 8, 16), np.float32), 0, weights)
    strip.add(np.ones((1, 8, 16), np.float32), 12, weights)
    row = strip.finished(8)[0, 3]
    np.testing.assert_allclose(row[:12], 0.0)
    np.testing.assert_allclose(row[12:16], [0.2, 0.4, 0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(row[16:], 1.0)


def test_strips_give_what_a_whole_picture_would() -> None:
    rng, size, overlap, shape = np.random.default_rng(0), 32, 9, (101, 77)
    tiles = Tiles(size, overlap)
    tops, lefts = tiles.starts(shape[0]), tiles.starts(shape[1])
    weights = ramp(size, overlap)[:, None] * ramp(size, overlap)
    strip = Strip(2, size, shape[1])
    whole, weight, rows = np.zeros((2, *shape)), np.zeros(shape), []
    for top, below in zip(tops, [*tops[1:], shape[0]], strict=True):
        for left in lefts:
            logits = rng.normal(size=(2, size, size)).astype(np.float32)
            strip.add(logits, left, weights)
            place = slice(top, top + size), slice(left, left + size)
            whole[:, *place] += logits * weights
            weight[place] += weights
        rows.append(strip.finished(below))
    np.testing.assert_allclose(np.concatenate(rows, 1), whole / weight, atol=1e-5)


def test_a_picture_that_fits_in_a_tile_has_the_same_mask(predictor: Predictor) -> None:
    image = pictures(1)[0]
    whole = predictor.predict(image, TEXTS, maps=True)
    for one, other in zip(
        predictor.predict(image, TEXTS, maps=True, tiles=Tiles(50)), whole, strict=True
    ):
        np.testing.assert_array_equal(one.uncleared, other.uncleared)
        assert (one.score, one.margin) == (other.score, other.margin)


def test_tiles_answer_for_their_parts(predictor: Predictor) -> None:
    """Away from seams, a tile's mask is that of its part as a picture; a head's best tile counts."""
    image = np.random.default_rng(3).integers(0, 256, (40, 120, 3), np.uint8)
    tiles = Tiles(64, 8)
    found = predictor.predict(image, TEXTS, maps=True, tiles=tiles)
    lefts = tiles.starts(120)
    assert lefts == [0, 56]
    parts = [predictor.predict(image[:, x : x + 64], TEXTS, maps=True) for x in lefts]
    for whole, left, right in zip(found, *parts, strict=True):
        assert whole.uncleared.shape == (40, 120)
        assert whole.soft_map is not None and left.soft_map is not None
        np.testing.assert_allclose(whole.soft_map[:, :56], left.soft_map[:, :56], atol=1)
        np.testing.assert_allclose(whole.soft_map[:, 64:], right.soft_map[:, 8:], atol=1)
        assert whole.margin == pytest.approx(max(left.margin, right.margin), abs=1e-5)
        inside = whole.soft_map[whole.uncleared]
        assert whole.score == pytest.approx(inside.mean() / 255 if inside.size else 0.0, abs=3e-3)
    answer: Answer
    for answer in predictor.predict_many([image, image[:, :30]], TEXTS, maps=True, tiles=tiles):
        again = predictor.predict(answer.pixels, TEXTS, maps=True, tiles=tiles)
        for one, other in zip(answer, again, strict=True):
            same(one, other)


@pytest.mark.parametrize(
    ("size", "overlap", "words"),
    [(10, None, "tile=10: give at least 32"), (64, 64, "overlap=64: give 0 or more pixels, fewer")],
)
def test_tiles_that_do_not_advance_are_refused(size: int, overlap: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Tiles(size, overlap)


def test_encoded_images_answer_many_questions(predictor: Predictor) -> None:
    image = pictures(1)[0]
    encoded = predictor.encode(image)
    for texts in (TEXTS, TEXTS[:1]):
        for one, other in zip(
            predictor.predict_words(encoded, predictor.words(texts)),
            predictor.predict(image, texts),
            strict=True,
        ):
            np.testing.assert_array_equal(one.mask, other.mask)
            assert one.score == other.score


def test_presence_is_the_probability_of_the_head(predictor: Predictor) -> None:
    found = predictor.predict(pictures(1)[0], TEXTS)
    for one in found:
        assert one.margin is not None
        assert one.presence == pytest.approx(1 / (1 + np.exp(-one.margin)))
        assert one.present == (one.presence > 0.5)
    headless = Predictor(
        random_params(Forward(lambda rngs: build_model(UNIRES, rngs=rngs))),
        unires_run_config(THRESHOLD),
    )
    assert [one.presence for one in headless.predict(pictures(1)[0], TEXTS)] == [None] * 3
