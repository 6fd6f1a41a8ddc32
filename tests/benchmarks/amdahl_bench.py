"""Time of K expressions on one image, which is encoded once, compared with Amdahl's limit.

The limit is `t_image + K * t_expression`. The two times are measured separately, with functions of the
predictor: preparing and encoding the image; tokenising one expression, decoding and scoring its mask.
The time of K expressions is that of `Predictor.predict`.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
import pytest

from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.encoding import EncodedImages
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor
from tests.benchmarks.turns import clocked, ratios, spread, take_turns
from tests.refseg_jax.training.tiny_run import random_params

#: UniRES B/16 on small images, so that a round takes seconds on two cores.
MODEL = {"name": "unires", "preset": "B/16", "image_size": 224}
ROUNDS, COUNTS, IMAGE = 4, (1, 4, 16), (480, 640, 3)
CONFIG = {
    "model": MODEL,
    "data": {"resize": "letterbox", "context_length": 17, "tokenizer": "clip"},
    "eval": {"threshold": 0.35},
}


@pytest.mark.bench
def test_share_of_amdahls_limit():
    forward = Forward(lambda rngs: build_model(MODEL, rngs=rngs))
    predictor = Predictor(random_params(forward), CONFIG)
    rgb = np.random.default_rng(0).integers(0, 256, IMAGE, np.uint8)
    see, express = parts_of(predictor, rgb)

    def predict(count: int) -> Callable[[], float]:
        texts = [f"the {number}th box from the left" for number in range(count)]
        return lambda: clocked(lambda: predictor.predict(rgb, texts))

    works = {
        "image": lambda: clocked(see),
        "expression": lambda: clocked(express),
        **{str(k): predict(k) for k in COUNTS},
    }
    for work in works.values():
        work()
    time.sleep(1)
    seconds = take_turns(works, ROUNDS)
    image, expression = seconds["image"], seconds["expression"]
    print(f"\nUniRES B/16 at {MODEL['image_size']}: image {spread(image)} s")
    print(f"{'expression':>24} {spread(expression)} s")
    print("  K   measured      limit   one by one   share of the limit, % (bar: >= 90)")
    for k in COUNTS:
        measured = seconds[str(k)]
        limits = [i + k * e for i, e in zip(image, expression, strict=True)]
        shares = [100 * ratio for ratio in ratios(limits, measured)]
        print(
            f"{k:3} {median(measured):8.3f} s {median(limits):8.3f} s "
            f"{k * median(seconds['1']):10.3f} s   {spread(shares, '.1f')}"
        )


def parts_of(predictor: Predictor, rgb: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The two parts of `predict`: the work for an image, and that for one expression on it."""

    def see() -> EncodedImages:
        return jax.block_until_ready(predictor.encode(rgb))

    encoded = see()

    def express() -> list[Prediction]:
        return list(predictor.predict_words(encoded, predictor.words(["the box on the left"])))

    return see, express
