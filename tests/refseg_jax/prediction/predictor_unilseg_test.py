"""The predictor of a UniLSeg with batch normalisation gives the masks of the evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.sources import RecordSource
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.models.small_unilseg import SMALL
from tests.refseg_jax.training.tiny_run import (
    IMAGE_SIZE,
    MASK_STRIDE,
    build_many_sizes,
    make_evaluator,
    random_params,
    save_unires,
    unires_run_config,
)

MODEL: dict[str, Any] = {**SMALL, "vocab_size": 49408, "eos_id": 49407}


def test_masks_are_the_evaluators_bit_by_bit(tmp_path: Path) -> None:
    assert (MODEL["image_size"], MODEL["mask_stride"]) == (IMAGE_SIZE, MASK_STRIDE)
    forward = forward_of(MODEL)
    # Other numbers would fill or empty the masks.
    params = random_params(forward, seed=4)
    build_many_sizes(tmp_path / "data")
    make_evaluator(tmp_path / "data", forward, threshold=0.5, dump=tmp_path / "dump").evaluate(
        params, 0
    )
    lines = (tmp_path / "dump" / "predictions.jsonl").read_text().splitlines()
    dumped = {line["id"]: line for line in map(json.loads, lines)}
    save_unires(tmp_path / "run", params, config=unires_run_config(0.5, MODEL))
    predictor = Predictor.from_checkpoint(tmp_path / "run")
    source = RecordSource(str(tmp_path / "data"), "tiny", "val")
    mixed = 0
    for record in (source[index] for index in range(len(source))):
        texts = [expression.text for expression in record.expressions]
        answers = predictor.predict(record.image, texts)
        for expression, answer in zip(record.expressions, answers, strict=True):
            theirs = coco_mask.decode(dumped.pop(expression.id)["segmentation"]).astype(bool)
            np.testing.assert_array_equal(answer.mask, theirs, expression.id)
            mixed += 0.02 < theirs.mean() < 0.98
    # Else equal masks would say nothing.
    assert not dumped and mixed > 3
