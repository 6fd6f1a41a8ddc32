"""Images a second of `Predictor.predict_many` on a folder, beside the bare model.

The bare model gets images of the network's size and encoded expressions from memory, and its logits are
not painted. `predict_many` reads JPEGs, resizes them, and paints masks at their own size.
"""

import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.predictor import Predictor
from tests.benchmarks.amdahl_bench import CONFIG, MODEL
from tests.benchmarks.turns import clocked, ratios, spread, take_turns
from tests.refseg_jax.training.tiny_run import random_params

ROUNDS, COUNTS, IMAGES = 3, (1, 8, 64), 8


@pytest.mark.bench
def test_images_a_second_of_a_folder(tmp_path: Path) -> None:
    predictor = Predictor(
        random_params(Forward(lambda rngs: build_model(MODEL, rngs=rngs))), CONFIG
    )
    paths = []
    for number in range(IMAGES):
        # Coarse noise, made smooth, has about the bytes of a photograph.
        coarse = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        paths.append(tmp_path / f"{number}.jpg")
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1])
    print(f"\nUniRES B/16 at {MODEL['image_size']}, {IMAGES} JPEGs of 640 x 480")
    print("  K   a folder, images/s   bare model, images/s   share")
    for count in COUNTS:
        texts = [f"the {number}th box from the left" for number in range(count)]

        def folder(texts: list[str] = texts) -> float:
            return clocked(lambda: [list(a) for a in predictor.predict_many(paths, texts)])

        bare = _bare(predictor, paths, texts)
        works = {"folder": folder, "bare": lambda bare=bare: clocked(bare)}
        for work in works.values():
            work()
        seconds = take_turns(works, ROUNDS)
        rates = {n: IMAGES / statistics.median(s) for n, s in seconds.items()}
        shares = ratios(seconds["bare"], seconds["folder"])
        print(f"{count:3} {rates['folder']:20.2f} {rates['bare']:22.2f}   {spread(shares, '.2f')}")


def _bare(predictor: Predictor, paths: list[Path], texts: list[str]) -> Any:
    engine, words = predictor._engine, predictor.words(texts)
    networks = [predictor._images.prepare(predictor.read(path).pixels).network for path in paths]

    def run() -> None:
        for network in networks:
            features = engine.encode_image(network[None])
            logits = [engine.decode(features, part) for _, part in words.parts]
            jax.block_until_ready(logits)

    return run
