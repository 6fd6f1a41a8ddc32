"""A presence head from the evaluation to the answer: who decides, and which mask is whose."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.sources import RecordSource
from refseg_jax.evaluation.picture import Picture
from refseg_jax.evaluation.protocols import build_protocols
from refseg_jax.exports.exporter import export
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.prediction.painting import Prediction
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.training.tiny_run import (
    WITH_PRESENCE,
    build_many_sizes,
    make_evaluator,
    presence_params,
    save_unires,
    unires_run_config,
)

#: Such that masks are neither empty nor full, and that the head says yes to about half of the pairs.
THRESHOLD, BIAS = 0.6, -0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `run` with a checkpoint, and `out` with its export."""
    folder = tmp_path_factory.mktemp("presence")
    build_many_sizes(folder / "data")
    config = unires_run_config(THRESHOLD, WITH_PRESENCE)
    save_unires(folder / "run", presence_params(BIAS), config=config)
    export(folder / "run", "safetensors", folder / "out", command=["make", "it"])
    return folder


@pytest.fixture(scope="module")
def evaluated(
    folder: Path,
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any], list[Picture]]:
    """Scores, predictions and references by id, pictures."""
    shown: list[Picture] = []
    scores = make_evaluator(
        folder / "data",
        Forward(lambda rngs: build_model(WITH_PRESENCE, rngs=rngs)),
        threshold=THRESHOLD,
        dump=folder / "dump",
        pictures=12,
        show=lambda step, found: shown.extend(found),
        protocols=build_protocols("gres,gres_paper"),
    ).evaluate(presence_params(BIAS), 0)
    dumped = [
        {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}
        for path in (folder / "dump" / f"{n}.jsonl" for n in ("predictions", "references"))
    ]
    return scores, dumped[0], dumped[1], shown


@pytest.fixture(scope="module")
def predicted(folder: Path) -> dict[str, dict[str, Prediction]]:
    """By the kind of folder, by the expression's id."""
    source = RecordSource(str(folder / "data"), "tiny", "val")
    found: dict[str, dict[str, Prediction]] = {}
    for kind in ("run", "out"):
        predictor = Predictor.from_checkpoint(folder / kind)
        found[kind] = {}
        for record in (source[index] for index in range(len(source))):
            texts = [expression.text for expression in record.expressions]
            answers = predictor.predict(record.image, texts)
            names = [expression.id for expression in record.expressions]
            found[kind] |= dict(zip(names, answers, strict=True))
    return found


def _mask(line: dict[str, Any]) -> np.ndarray:
    return coco_mask.decode(line["segmentation"]).astype(bool)


def test_the_predictor_answers_as_the_evaluator_dumps(evaluated: Any, predicted: Any) -> None:
    _, lines, _, _ = evaluated
    assert lines.keys() == predicted["run"].keys()
    answers = {"cleared": 0, "kept": 0}
    for name, one in predicted["run"].items():
        line = lines[name]
        assert one.present is line["present"]
        np.testing.assert_array_equal(one.uncleared, _mask(line), name)
        assert one.score == pytest.approx(line["score"], abs=1e-6)
        if one.present:
            np.testing.assert_array_equal(one.mask, one.uncleared)
        else:
            assert one.mask.shape == one.uncleared.shape and not one.mask.any()
        answers["kept" if one.present else "cleared"] += one.uncleared.any()
    # Else the head would not be seen to decide.
    assert min(answers.values()) > 5, answers


def test_an_export_answers_as_its_run(predicted: Any) -> None:
    for name, one in predicted["run"].items():
        other = predicted["out"][name]
        np.testing.assert_array_equal(other.mask, one.mask)
        np.testing.assert_array_equal(other.uncleared, one.uncleared)
        assert (other.present, other.score) == (one.present, one.score)


def test_gres_counts_the_masks_that_were_cleared_and_its_paper_does_not(evaluated: Any) -> None:
    """From the dump, in plain words; both protocols differ in a missed target's union alone."""
    scores, lines, references, _ = evaluated
    both = either = paper = right = none = 0
    ious = []
    for name, reference in references.items():
        mask, target, present = _mask(lines[name]), _mask(reference), lines[name]["present"]
        none += not target.any()
        right += not target.any() and not present
        if not target.any():
            ious.append(float(not present))
            either, paper = (x + present * mask.sum() for x in (either, paper))
        elif not present:
            ious.append(0.0)
            either, paper = either + (mask | target).sum(), paper + target.sum()
        else:
            ious.append((mask & target).sum() / (mask | target).sum())
            both += (mask & target).sum()
            either, paper = (x + (mask | target).sum() for x in (either, paper))
    assert none == 6
    assert scores["N_acc"] == right / none
    assert scores["gIoU"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert scores["cIoU"] == pytest.approx(both / either, abs=1e-12)
    assert scores["gres_paper/cIoU"] == pytest.approx(both / paper, abs=1e-12)
    assert either > paper


def test_pictures_show_what_a_person_is_told(evaluated: Any, predicted: Any) -> None:
    _, lines, _, shown = evaluated
    by_words = {}
    for name, line in lines.items():
        by_words.setdefault(line["expression"], []).append(predicted["run"][name])
    cleared = 0
    for picture in shown:
        same = [
            one
            for one in by_words[picture.expression]
            if np.array_equal(one.mask, picture.predicted)
        ]
        assert same
        cleared += not picture.predicted.any()
        union = (picture.predicted | picture.target).sum()
        overlap = (picture.predicted & picture.target).sum()
        assert picture.iou == (overlap / union if union else 0.0)
    assert 0 < cleared < len(shown)
