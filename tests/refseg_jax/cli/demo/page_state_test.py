"""What the page keeps and shows, without a browser: thresholds, legend, zip, memory, and the queue."""

import io
import json
import threading
import zipfile
from typing import Any

import numpy as np
import pytest

from refseg_jax.cli.demo.answers import (
    COLOURS,
    Asked,
    Times,
    drawing,
    heat,
    judged,
    legend,
    smaller,
    texts_of,
    told,
    zipped,
)
from refseg_jax.cli.demo.batching import BusyError, Question, Worker
from refseg_jax.cli.demo.desk import Desk, Upload
from refseg_jax.cli.demo.limits import Limits, TooLargeError
from refseg_jax.cli.demo.models import Model, names_of
from refseg_jax.cli.demo.sessions import Sessions, size_of
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.prediction.encoding import EncodedImages
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.cli.demo.serving import LIMITS, picture

TEXTS = ("the red box", "both boxes")


def _prediction(margin: float | None = None, size: tuple[int, int] = (4, 6)) -> Prediction:
    """Probabilities from 0 to 1 over the picture; the mask is its right half."""
    grey = np.tile(np.linspace(0, 255, size[1]).astype(np.uint8), (size[0], 1))
    mask = grey > 127
    present = True if margin is None else margin > 0
    presence = None if margin is None else 0.7 if present else 0.3
    cleared = mask if present else np.zeros_like(mask)
    return Prediction(cleared, 0.8, present, mask, Thresholds(0.5), grey, presence, margin)


def test_thresholds_decide_again() -> None:
    one = _prediction()
    low, none = judged(one, Thresholds(0.15)), judged(one, Thresholds(0.99))
    assert low.mask[0].tolist() == [False, True, True, True, True, True]
    assert low.score == pytest.approx(np.mean([51, 102, 153, 204, 255]) / 255)
    # Above a threshold, not at it: 255 is 1.0.
    assert none.mask[0].tolist() == [False] * 5 + [True]
    same = judged(one, Thresholds(0.5, 0.9))
    assert same.mask is one.uncleared and same.score == one.score and same.present


def test_the_presence_threshold_is_that_of_the_head() -> None:
    # A logit of -0.5 is a probability of 0.378.
    one = _prediction(-0.5)
    assert not one.mask.any()
    there, not_there = (judged(one, Thresholds(0.5, p)) for p in (0.37, 0.38))
    assert there.present and (there.mask == one.uncleared).all()
    assert not not_there.present and not not_there.mask.any()


def test_the_legend_says_what_is_there_and_escapes_words() -> None:
    shown = legend(("<i>a</i>", "b"), [_prediction(), _prediction(-0.5)])
    assert "&lt;i&gt;a" in shown and "<i>" not in shown
    assert "score 0.80 · 50% of the picture" in shown and shown.count("no match") == 1
    assert "rs-none" not in shown and "presence 0.30" in shown
    empty = judged(_prediction(0.5), Thresholds(0.999999))
    empty = Prediction(
        **{**vars(empty), "mask": empty.mask & False, "uncleared": empty.mask & False}
    )
    assert "no pixel shows it" in legend(("b",), [empty])
    assert "<strong>No match.</strong>" in legend(("b",), [_prediction(-0.5)])


def test_times_say_whether_the_picture_was_encoded() -> None:
    assert "First answer in <b>1.50 s</b>" in told(Times(1.0, 0.5, 2))
    assert "Asked again: 2 new expressions in <b>50 ms</b>" in told(Times(None, 0.05, 2))
    assert "nothing new" in told(Times(None, 0.0, 0))


def test_expressions_are_lines() -> None:
    assert texts_of(" the car \n\n\tthe tree\r\nthe car\n") == ["the car", "the tree"]


def test_pictures_are_drawn_small_enough_for_a_page() -> None:
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    large = _prediction(size=(2000, 3000))
    assert smaller(pixels).shape == drawing(pixels, [large]).shape == (853, 1280, 3)
    assert large.soft_map is not None
    shown = heat(pixels, large.soft_map)
    assert shown.shape == (853, 1280, 3) and shown[0, -1].sum() > shown[0, 0].sum()
    assert len({*COLOURS}) == len(COLOURS)


def test_names_in_a_zip_stay_in_its_folder() -> None:
    data = zipped("../../etc/pass wd.png", ["a"], [_prediction()])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["_.._etc_pass_wd.png-0-mask.png", "predictions.jsonl"]
        line = json.loads(archive.read("predictions.jsonl"))
    assert line["image"] == "../../etc/pass wd.png" and "map" not in line


def _asked(size: int) -> Asked:
    encoded = EncodedImages({"features": np.zeros(size // 2, np.uint8)}, ())
    return Asked("m", "a", b"", np.zeros((1, size // 6, 3), np.uint8), encoded, {})


def test_users_keep_their_own_and_the_oldest_are_forgotten() -> None:
    sessions, first, second = Sessions(3000), _asked(1200), _asked(1200)
    assert size_of(first) == 1200
    one, two = sessions.keep(None, first), sessions.keep(None, second)
    assert one != two and sessions.get(one) is first and sessions.get(two) is second
    # In place of the first.
    assert sessions.keep(one, second) == one and sessions.size == 2400
    sessions.get(two)
    third = sessions.keep(None, _asked(1200))
    assert sessions.get(one) is None and sessions.get(two) and sessions.size == 2400
    # What alone is too large is kept until the next.
    sessions.keep(third, _asked(6000))
    assert sessions.get(two) is None and sessions.get(third)
    sessions.drop(third)
    sessions.drop(None)
    assert sessions.size == 0 and sessions.get("unknown") is None


def test_a_mask_is_counted_once() -> None:
    one = _prediction()
    found = {"a": one, "b": _prediction(-0.5)}
    asked = _asked(1200)._replace(found=found)
    # Mask and probabilities of the first; of the second, the mask is a cleared copy.
    assert size_of(asked) == 1200 + 2 * 24 + 3 * 24


@pytest.fixture(scope="module")
def desk(predictor: Predictor) -> Any:
    worker = Worker({"tiny": predictor}, 4)
    yield Desk({"tiny": Model("tiny", predictor, True)}, worker, LIMITS)
    worker.close()


def test_a_picture_is_encoded_once_and_only_new_words_are_asked(
    desk: Desk, predictor: Predictor
) -> None:
    upload = Upload("a.png", picture())
    token, asked, times = desk.ask(None, "tiny", upload, TEXTS)
    assert times.encoding is not None and times.new == 2
    for one, known in zip(predictor.predict(picture(), TEXTS), asked.found.values(), strict=True):
        assert (one.mask == known.mask).all() and one.present == known.present
        assert one.score == pytest.approx(known.score, abs=1e-6)
    again, more, times = desk.ask(token, "tiny", upload, (TEXTS[1], "a circle"))
    assert again == token and times.encoding is None and times.new == 1
    assert more.encoded is asked.encoded and more.found[TEXTS[1]] is asked.found[TEXTS[1]]
    # Another picture, and another user with the same one.
    assert desk.ask(token, "tiny", Upload("a.png", picture(3)), TEXTS)[2].encoding is not None
    other, _, times = desk.ask(None, "tiny", upload, TEXTS)
    assert other != token and times.encoding is not None


def test_a_group_has_names_and_an_order(desk: Desk) -> None:
    uploads = [Upload("a.png", picture(seed)) for seed in (1, 2)]
    members = desk.ask_group("tiny", uploads, TEXTS[0])
    assert [(one.name, one.found) for one in members] == [("a.png (2)", True), ("a.png", False)]
    for bad, words in (
        ([], "0 are given"),
        ([uploads[0]] * 17, "17 are given"),
        ([Upload("b.png", picture(0, 101, 100))], "b.png: 100 x 101 pixels"),
    ):
        with pytest.raises(UserError, match=words):
            desk.ask_group("tiny", bad, TEXTS[0])


def test_what_the_page_may_not_ask_is_told(desk: Desk) -> None:
    upload = Upload("a.png", picture())
    with pytest.raises(TooLargeError, match=r"a\.png: 1,048,577 bytes"):
        desk.ask(None, "tiny", Upload("a.png", bytes(2**20 + 1)), TEXTS)
    with pytest.raises(UserError, match="5 are more than the allowed 4"):
        desk.ask(None, "tiny", upload, ("a", "b", "c", "d", "e"))
    with pytest.raises(UserError, match="no such model"):
        desk.ask(None, "other", upload, TEXTS)
    with pytest.raises(UserError, match="image of 3 bytes"):
        desk.ask(None, "tiny", Upload("a.png", b"abc"), TEXTS)
    with pytest.raises(UserError, match="waiting=0"):
        Limits(waiting=0)


def test_the_queue_is_bounded_and_batches_what_waits(predictor: Predictor) -> None:
    worker = Worker({"tiny": predictor}, 3)
    started, go_on = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        assert go_on.wait(20)

    def ask(seed: int, expressions: tuple[str, ...] = TEXTS) -> Any:
        made = lambda answer: [one.score for one in answer]  # noqa: E731
        return worker.ask(Question("tiny", picture(seed), expressions, False, made))

    first = worker.call(block)
    assert started.wait(20)
    asked = [ask(1), ask(2), ask(3)]
    with pytest.raises(BusyError, match="3 requests wait already"):
        ask(4)
    with pytest.raises(BusyError):
        worker.call(lambda: None)
    assert worker.waiting == worker.most == 3
    go_on.set()
    first.result(20)
    for seed, future in zip((1, 2, 3), asked, strict=True):
        expected = [one.score for one in predictor.predict(picture(seed), TEXTS)]
        assert future.result(20) == pytest.approx(expected, abs=1e-6)
    assert worker.batches == 1 and worker.waiting == 0
    worker.close()
    with pytest.raises(BusyError):
        ask(1)


def test_a_fault_costs_itself_alone(predictor: Predictor) -> None:
    worker = Worker({"tiny": predictor}, 8)
    go_on = threading.Event()
    worker.call(lambda: go_on.wait(20))
    scores = lambda answer: [one.score for one in answer]  # noqa: E731

    def fail(answer: Any) -> None:
        raise ZeroDivisionError

    sound = Question("tiny", picture(1), TEXTS, False, scores)
    asked = [
        worker.ask(question)
        for question in (
            sound,
            sound._replace(picture=b"no picture"),
            sound._replace(made=fail),
            # The whole batch is refused for it.
            sound._replace(expressions=("a", "")),
            sound,
        )
    ]
    go_on.set()
    errors = [future.exception(20) for future in asked]
    assert [type(error).__name__ for error in errors] == [
        *("NoneType", "ImageError", "ZeroDivisionError", "ExpressionError", "NoneType")
    ]
    assert asked[0].result() == asked[4].result()
    worker.close()


def test_models_are_named_by_what_tells_them_apart() -> None:
    assert names_of(["/a/runs/x", "/a/runs/y"]) == {"x": "/a/runs/x", "y": "/a/runs/y"}
    assert [*names_of(["/a/x/run", "/a/y/run"])] == ["x/run", "y/run"]
    assert [*names_of(["hf://a/b", "runs/b"])] == ["hf://a/b", "b"]
    assert [*names_of(["/", "."])] == ["/", "."]
    with pytest.raises(UserError, match="given twice"):
        names_of(["a", "a"])
