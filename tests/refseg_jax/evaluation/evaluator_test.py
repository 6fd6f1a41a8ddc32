"""Scores are what anybody computes from the dumped masks, whatever the batches were."""

import dataclasses
import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline import pipeline
from input_pipeline.making import collate
from input_pipeline.schema import Expression, Record
from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError
from refseg_jax.evaluation.evaluator import mask_score
from refseg_jax.evaluation.picture import Picture
from refseg_jax.evaluation.protocols import build_protocols
from refseg_jax.models.forward import Forward
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.training.tiny_run import (
    CANVAS,
    SIZES,
    build_many_sizes,
    colour_forward,
    colour_params,
    data_config,
    make_evaluator,
)

PAIRS = 6 * len(SIZES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_many_sizes(folder)
    return folder


@pytest.fixture(scope="module")
def forward() -> Forward:
    return colour_forward()


@pytest.fixture(scope="module")
def params(forward: Forward) -> dict[str, jax.Array]:
    return colour_params(forward)


@pytest.fixture(scope="module")
def dumped(
    data_dir: Path, forward: Forward, params: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], Path]:
    folder = tmp_path_factory.mktemp("dump")
    return make_evaluator(data_dir, forward, dump=folder).evaluate(params, 0), folder


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


def _mask(line: dict[str, Any]) -> np.ndarray:
    return coco_mask.decode(line["segmentation"]).astype(bool)


def _plain_scores(ious: list[float], both: list[int], either: list[int]) -> dict[str, float]:
    values = np.array(ious)
    precision = {f"Pr@{x}": (values > x).mean() for x in (0.5, 0.6, 0.7, 0.8, 0.9)}
    return {
        "mIoU": values.mean(),
        "oIoU": sum(both) / max(sum(either), 1),
        "count": float(len(ious)),
        **precision,
    }


def test_scores_equal_those_of_the_dumped_masks(dumped: tuple[dict[str, float], Path]) -> None:
    scores, folder = dumped
    predictions = _lines(folder / "predictions.jsonl")
    references = _lines(folder / "references.jsonl")
    assert predictions.keys() == references.keys()
    assert len(predictions) == PAIRS
    expected: dict[str, float] = {"quarantined": 0.0}
    for granularity in ("", "object", "part", "multi", "none"):
        ious, both, either = [], [], []
        for name, reference in references.items():
            if granularity not in ("", reference["granularity"]):
                continue
            predicted, target = _mask(predictions[name]), _mask(reference)
            both.append(int((predicted & target).sum()))
            either.append(int((predicted | target).sum()))
            ious.append(both[-1] / either[-1] if either[-1] else 0.0)
        prefix = f"{granularity}/" if granularity else ""
        plain = _plain_scores(ious, both, either)
        expected |= {prefix + name: value for name, value in plain.items()}
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
    # Else the comparison would say nothing.
    assert 0.02 < scores["mIoU"] < 0.98
    assert 0 < scores["Pr@0.5"] < 1


def test_dumped_masks_have_the_images_own_sizes(dumped: tuple[dict[str, float], Path]) -> None:
    _, folder = dumped
    for file in ("predictions.jsonl", "references.jsonl"):
        for name, line in _lines(folder / file).items():
            number = int(name.removeprefix("val").split("-")[0])
            assert tuple(line["segmentation"]["size"]) == SIZES[number], (file, name)


def test_dumped_references_are_the_datasets_masks(
    data_dir: Path, dumped: tuple[dict[str, float], Path]
) -> None:
    references = _lines(dumped[1] / "references.jsonl")
    for host in pipeline.eval_batches(data_config(data_dir), batch_size=1):
        for k, name in enumerate(host.meta[0].pair_ids):
            if name:
                height, width = host.batch.size[0, 0]
                native = np.asarray(host.batch.native)[0, 0, k, :height, :width]
                np.testing.assert_array_equal(_mask(references.pop(name)), native)
    assert not references


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_scores_do_not_depend_on_the_batch_size(
    data_dir: Path,
    forward: Forward,
    params: Any,
    dumped: tuple[dict[str, float], Path],
    batch_size: int,
    tmp_path: Path,
) -> None:
    evaluator = make_evaluator(data_dir, forward, batch_size, dump=tmp_path)
    assert evaluator.evaluate(params, 0) == dumped[0]
    mine, theirs = _lines(tmp_path / "predictions.jsonl"), _lines(dumped[1] / "predictions.jsonl")
    assert mine.keys() == theirs.keys()
    for name, line in mine.items():
        assert line["segmentation"] == theirs[name]["segmentation"], name


def test_scores_do_not_depend_on_the_order(
    data_dir: Path, forward: Forward, params: Any, dumped: tuple[dict[str, float], Path]
) -> None:
    def mixed() -> list[HostBatch]:
        rows = list(pipeline.eval_batches(data_config(data_dir), batch_size=1))
        random.Random(3).shuffle(rows)
        return [collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]

    assert make_evaluator(data_dir, forward, batches=mixed).evaluate(params, 0) == dumped[0]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that share an expression; in the first one nothing matches it."""

    def shared(record: Record) -> Record:
        there = record.image_id != "val0"
        words, said = "the red box", ((0,), "object") if there else ((), "none")
        one = Expression(f"{record.image_id}/red", words, *said, group="video")
        return dataclasses.replace(record, expressions=(one,))

    folder = tmp_path_factory.mktemp("videos")
    build_tiny_dataset(folder, {"val": 5}, change=shared)
    return folder


@pytest.mark.parametrize("images", [2, 3, 8])
def test_images_of_a_row_are_scored_and_named_as_they_are_alone(
    videos: Path, forward: Forward, params: Any, images: int, tmp_path: Path
) -> None:
    """Else a dump of groups could not be compared with anybody's, nor with that of another N."""
    found = {}
    for n in (1, images):
        config = data_config(
            videos, sampling="group", granularities=("object", "none"), images=n, pairs=1
        )
        evaluator = make_evaluator(
            videos,
            forward,
            batches=lambda config=config: pipeline.eval_batches(config, batch_size=2),
            dump=tmp_path / str(n),
            protocols=build_protocols("cris,gres,rvos"),
        )
        scores = evaluator.evaluate(params, 0)
        found[n] = scores, _lines(tmp_path / str(n) / "references.jsonl")
    assert found[1] == found[images]
    scores, references = found[1]
    said = {name: (line["granularity"], line["group"]) for name, line in references.items()}
    kinds = ("none", "object", "object", "object", "object")
    assert said == {f"val{n}/red": (kind, "video") for n, kind in enumerate(kinds)}
    assert scores["object/count"] == 4 and scores["none/count"] == 1


def test_images_of_many_sizes_take_one_compilation(
    data_dir: Path, forward: Forward, params: Any
) -> None:
    evaluator = make_evaluator(data_dir, forward, batch_size=1)
    sizes = {tuple(h.batch.size[0, 0]) for h in evaluator.batches() if h.meta[0].pair_ids[0]}
    assert sizes == set(SIZES)
    evaluator.evaluate(params, 0)
    evaluator.evaluate(params, 1)
    compiled: Any = evaluator._compiled
    assert compiled._cache_size() == 1


def test_keeping_some_logits_changes_no_score(
    data_dir: Path, forward: Forward, params: Any, dumped: tuple[dict[str, float], Path]
) -> None:
    shown: list[tuple[int, list[Picture]]] = []
    evaluator = make_evaluator(
        data_dir, forward, pictures=5, show=lambda step, found: shown.append((step, found))
    )
    assert evaluator.evaluate(params, 7) == dumped[0]
    ((step, found),) = shown
    assert step == 7
    assert len(found) == 5
    assert max(Counter(picture.image.tobytes() for picture in found).values()) == 2
    predictions = _lines(dumped[1] / "predictions.jsonl")
    masks = {(line["image"], line["expression"]): _mask(line) for line in predictions.values()}
    for picture in found:
        both = (picture.predicted & picture.target).sum()
        either = (picture.predicted | picture.target).sum()
        assert picture.iou == (both / either if either else 0.0)
        same = [m for (_, words), m in masks.items() if words == picture.expression]
        assert any(np.array_equal(m, picture.predicted) for m in same)


def test_threshold_is_of_probabilities(data_dir: Path, forward: Forward, params: Any) -> None:
    def foreground(threshold: float, folder: Path) -> dict[str, np.ndarray]:
        evaluator = make_evaluator(data_dir, forward, threshold=threshold, dump=folder)
        evaluator.evaluate(params, 0)
        return {k: _mask(v) for k, v in _lines(folder / "predictions.jsonl").items()}

    folder = data_dir.parent / "thresholds"
    low, high = foreground(0.35, folder / "low"), foreground(0.9, folder / "high")
    assert all((low[name] >= mask).all() for name, mask in high.items())
    scores = _lines(folder / "high" / "predictions.jsonl")
    assert all(scores[name]["score"] > 0.9 for name, mask in high.items() if mask.any())
    assert any(mask.any() for mask in high.values())


def test_keys_begin_with_the_prefix(
    data_dir: Path, forward: Forward, params: Any, dumped: tuple[dict[str, float], Path]
) -> None:
    scores = make_evaluator(data_dir, forward, prefix="val/").evaluate(params, 0)
    assert scores == {f"val/{name}": value for name, value in dumped[0].items()}


def test_damaged_images_are_left_out_and_counted(
    tmp_path: Path, forward: Forward, params: Any
) -> None:
    def damage(record: Record) -> Record:
        bad = record.image_id == "val1"
        return dataclasses.replace(record, image=record.image[:100]) if bad else record

    build_tiny_dataset(tmp_path, {"val": 3}, change=damage)
    evaluator = make_evaluator(tmp_path, forward, dump=tmp_path / "dump")
    scores = evaluator.evaluate(params, 0)
    # Its 6 expressions are two rows of at most 4.
    assert scores["quarantined"] == 2
    assert scores["count"] == 12
    names = _lines(tmp_path / "dump" / "predictions.jsonl")
    assert {name.split("-")[0] for name in names} == {"val0", "val2"}


def test_only_the_step_that_is_asked_for_is_dumped(
    data_dir: Path, tmp_path: Path, forward: Forward, params: Any
) -> None:
    evaluator = make_evaluator(data_dir, forward, dump=tmp_path / "dump", dump_at=2)
    before = evaluator.evaluate(params, 1)
    assert not (tmp_path / "dump").exists()
    assert evaluator.evaluate(params, 2) == before
    assert _lines(tmp_path / "dump" / "predictions.jsonl")


def test_an_id_that_stands_twice_is_one_line_and_no_dump(
    tmp_path: Path, forward: Forward, params: Any
) -> None:
    def alike(record: Record) -> Record:
        said = (dataclasses.replace(e, id=e.id.split("-")[1]) for e in record.expressions)
        return dataclasses.replace(record, expressions=tuple(said))

    build_tiny_dataset(tmp_path, {"val": 2}, change=alike)
    evaluator = make_evaluator(tmp_path, forward, dump=tmp_path / "dump")
    with pytest.raises(UserError, match="val: two pairs have the id '0'; build the dataset again"):
        evaluator.evaluate(params, 0)
    assert not list((tmp_path / "dump").iterdir())


def test_score_of_a_mask_is_the_mean_probability_inside() -> None:
    logits = np.array([[0.0, 2.0], [-1.0, 5.0]], np.float32)
    inside = np.array([[True, True], [False, False]])
    assert mask_score(logits, inside) == pytest.approx((0.5 + 1 / (1 + np.exp(-2.0))) / 2)
    assert mask_score(logits, np.zeros((2, 2), bool)) == 0.0


def test_an_image_beyond_the_canvas_is_one_line_that_names_the_field(data_dir: Path) -> None:
    config = data_config(data_dir, canvas=(CANVAS[0] - 1, CANVAS[1]))
    with pytest.raises(Exception, match=r"64 x 64.*config\.eval\.canvas") as caught:
        pipeline.eval_batches(config, batch_size=1)
    assert "\n" not in str(caught.value)


def test_an_evaluation_tells_that_it_begins(
    data_dir: Path, forward: Forward, params: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "absl"):
        make_evaluator(data_dir, forward).evaluate(params, 7)
    assert "evaluating val at step 7 ..." in caplog.messages
