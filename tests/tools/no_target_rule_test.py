import json
from pathlib import Path

import numpy as np
import pytest

from refseg_jax.evaluation.predictions import encode
from tools.studies.no_target_rule import matched_min_pixels, scores_by_min_pixels


def _dump(folder: Path, pairs: list[tuple[int, bool]]) -> Path:
    """Pairs of (predicted pixels, whether there is a target) on images of 240 x 480."""
    predictions, references = [], []
    for number, (pixels, targeted) in enumerate(pairs):
        mask = np.arange(240 * 480).reshape(240, 480) < pixels
        target = np.full((240, 480), targeted)
        line = {"id": str(number), "segmentation": encode(mask), "present": True}
        predictions.append(json.dumps(line))
        references.append(json.dumps({"id": str(number), "segmentation": encode(target)}))
    (folder / "predictions.jsonl").write_text("\n".join(predictions))
    (folder / "references.jsonl").write_text("\n".join(references))
    return folder


def test_pixels_decide_and_not_the_head(tmp_path: Path):
    """Half the area of 480 x 480: 50 pixels are 25 there."""
    dump = _dump(tmp_path, [(24, True), (25, True), (24, False), (25, False), (0, False)])
    scores = scores_by_min_pixels(dump, 50)
    assert scores["T_acc"] == pytest.approx(1 / 2)
    assert scores["N_acc"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("t_acc", "pixels"),
    [(1.0, 20), (0.75, 60), (0.5, 200), (0.25, 400)],
)
def test_the_rule_is_as_strict_as_the_share_of_found_targets_allows(
    tmp_path: Path, t_acc: float, pixels: int
):
    targeted = [(10, True), (30, True), (100, True), (200, True)]
    dump = _dump(tmp_path, [*targeted, (1000, False), (5, False)])
    found = matched_min_pixels(dump, t_acc)
    assert found == pixels
    assert scores_by_min_pixels(dump, found)["T_acc"] == t_acc
    assert scores_by_min_pixels(dump, found + 1)["T_acc"] < t_acc


@pytest.mark.parametrize(("t_acc", "found"), [(0.8, 1.0), (0.51, 0.75), (0.01, 0.25)])
def test_between_two_shares_the_rule_finds_the_greater(tmp_path: Path, t_acc: float, found: float):
    dump = _dump(tmp_path, [(10, True), (30, True), (100, True), (200, True)])
    assert scores_by_min_pixels(dump, matched_min_pixels(dump, t_acc))["T_acc"] == found


def test_a_share_that_the_dump_has_is_met_and_not_exceeded(tmp_path: Path):
    """7 / 25 * 25 is a little more than 7."""
    dump = _dump(tmp_path, [(10 * number, True) for number in range(1, 26)])
    assert 7 / 25 * 25 > 7
    assert scores_by_min_pixels(dump, matched_min_pixels(dump, 7 / 25))["T_acc"] == 7 / 25


def test_where_no_rule_finds_as_many_it_is_the_mildest(tmp_path: Path):
    dump = _dump(tmp_path, [(0, True), (30, True), (30, False)])
    assert matched_min_pixels(dump, 1.0) == 1
    assert scores_by_min_pixels(dump, 1)["T_acc"] == 0.5


def test_who_finds_nothing_is_matched_by_a_rule_that_lets_nothing_pass(tmp_path: Path):
    dump = _dump(tmp_path, [(240 * 480, True)])
    assert scores_by_min_pixels(dump, matched_min_pixels(dump, 0.0))["T_acc"] == 0.0
