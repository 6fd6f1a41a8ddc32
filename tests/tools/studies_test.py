import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import scenes_rela, scenes_unires
from refseg_jax.evaluation.predictions import encode
from refseg_jax.evaluation.protocols import build_protocols
from tools import trainings
from tools.studies import STUDIES, Study
from tools.studies.grser import GRSER_PARTS
from tools.studies.rela import NO_TARGET, RELA
from tools.studies.study import PAPER_MIN_PIXELS, by_matched_pixels, by_pixels, summary
from tools.studies.unilseg import UNILSEG_PARTS
from tools.trainings import resolved

_ROOT = Path(trainings.__file__).parents[1]


def _dump(folder: Path, targeted: list[int], absent: list[int]) -> None:
    """Predictions of so many of 480 x 480 pixels; `present` is what no pixel rule may ask."""
    folder.mkdir(parents=True)
    predictions, references = [], []
    for number, (pixels, there) in enumerate([(p, 1) for p in targeted] + [(p, 0) for p in absent]):
        mask = np.arange(480 * 480).reshape(480, 480) < pixels
        line = {"id": str(number), "segmentation": encode(mask), "present": not there}
        predictions.append(json.dumps(line))
        target = np.full((480, 480), bool(there))
        references.append(json.dumps({"id": str(number), "segmentation": encode(target)}))
    (folder / "predictions.jsonl").write_text("\n".join(predictions))
    (folder / "references.jsonl").write_text("\n".join(references))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The head finds half the targets of val and a quarter of those of test."""
    _dump(tmp_path / "dump" / "val", [20, 60, 200, 400], [10, 300, 600])
    _dump(tmp_path / "dump" / "test", [10, 30, 190, 500, 700], [40, 60, 100, 199, 201])
    scores = {"T_acc": 0.25, "N_acc": 0.9, "val/T_acc": 0.5, "val/N_acc": 0.8}
    (tmp_path / "summary.json").write_text(json.dumps(scores))
    return tmp_path


def test_the_run_s_own_scores_are_the_head_s(run: Path):
    assert (summary(run)["T_acc"], summary(run)["N_acc"]) == (0.25, 0.9)


def test_fifty_pixels_decide_on_test(run: Path):
    """On val 50 pixels would find 3 of 4 targets and 1 of 3 that are absent."""
    scores = by_pixels(run)
    assert (scores["T_acc"], scores["N_acc"]) == (3 / 5, 1 / 5)


def test_the_matched_rule_is_found_on_val_by_the_head_s_t_acc_there_and_scores_test(run: Path):
    """Of val's targets half have 200 pixels or more. Any other way to read it tells another pair.

    By the T_acc of test the rule would be 400 pixels, on the targets of test 500.
    """
    scores = by_matched_pixels(run)
    assert (scores["T_acc"], scores["N_acc"]) == (2 / 5, 4 / 5)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_studies_change_fields_that_there_are_and_tell_of_all_that_they_train(study: Study):
    for variant in study.variants.values():
        # An unknown field raises.
        resolved(_ROOT / (variant.config or study.config), (*study.fields, *variant.overrides))
    told = {row.variant for table in study.tables for row in table.rows}
    assert told == set(study.variants)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_training_of_a_study_gives_the_scores_of_its_tables(study: Study):
    """Else a training never counts as finished."""
    for variant in study.variants.values():
        fields = (*study.fields, *variant.overrides)
        config = resolved(_ROOT / (variant.config or study.config), fields)
        first, *others = build_protocols(config["eval"]["protocol"])
        there = {*first.columns, *(f"{p.name}/{column}" for p in others for column in p.columns)}
        plain = {re.sub(r"^(object|part|multi|category|salient)/", "", m) for m in study.metrics}
        assert plain <= there


def test_the_page_states_where_the_systems_recipes_differ():
    rela, unires = scenes_rela.get_config(), scenes_unires.get_config()
    head = resolved(_ROOT / "configs/scenes_unires.py", RELA.variants["unires head"].overrides)
    assert (rela.optim.muon, unires.optim.muon) == (r".*\.kernel", r"(?!head\.).*\.kernel")
    text = " ".join(" ".join(RELA.text).split())
    assert f"rate is {rela.optim.lr:g} for ReLA and {unires.optim.lr:g} for UniRES" in text
    cuts = (rela.eval.threshold, unires.eval.threshold)
    assert "{:g} for ReLA, {:g} for UniRES, as in its paper".format(*cuts) in text
    shares = (rela.objective.dice, head["objective"]["dice"] / head["objective"]["cross_entropy"])
    assert shares == (1, 1)
    assert {rela.objective.presence, head["objective"]["presence"]} == {1.0}
    assert "Cross entropy, Dice and the term of a presence head, equally weighted" in text


@pytest.mark.parametrize("study", [RELA, NO_TARGET], ids=["rela", "no_target"])
def test_what_is_matched_on_val_is_evaluated_there(study: Study):
    rows = {
        row.variant for table in study.tables for row in table.rows if row.read is by_matched_pixels
    }
    assert rows
    for name, variant in study.variants.items():
        config = resolved(
            _ROOT / (variant.config or study.config), (*study.fields, *variant.overrides)
        )
        assert (config["evals"]["val"]["when"] == "final") == (name in rows), name


def test_both_heads_of_the_paper_s_ablation_see_features_alone():
    for name, variant in RELA.variants.items():
        config = resolved(
            _ROOT / (variant.config or RELA.config), (*RELA.fields, *variant.overrides)
        )
        assert not config["model"]["mask_evidence"], name
    seeing = {
        name: resolved(_ROOT / NO_TARGET.config, (*NO_TARGET.fields, *variant.overrides))["model"]
        for name, variant in NO_TARGET.variants.items()
    }
    assert {name: model.pop("mask_evidence") for name, model in seeing.items()} == {
        "mask": True,
        "paper": False,
    }
    assert seeing["mask"] == seeing["paper"]


def test_the_study_of_the_head_is_of_the_recipe_s_length():
    assert NO_TARGET.steps == scenes_rela.get_config().steps


@pytest.mark.parametrize("study", [RELA, NO_TARGET], ids=["rela", "no_target"])
def test_who_says_that_nothing_is_there_is_compared_on_one_training(study: Study):
    """So that a row's bracket is the rule less the head, not less another system's head."""
    tables = [t for t in study.tables if any(row.read is not summary for row in t.rows)]
    assert len(tables) == (4 if study is RELA else 2)
    for table in tables:
        assert len({row.variant for row in table.rows}) == 1
        assert table.rows[0].read is summary
        assert by_pixels in [row.read for row in table.rows]


def test_table_8_adds_one_part_of_unilseg_after_the_other():
    names = {"PF": "pre_fusion", "LP": "language_path", "VP": "vision_path"}
    (table,) = UNILSEG_PARTS.tables
    for row in table.rows:
        variant = UNILSEG_PARTS.variants[row.variant]
        model = resolved(_ROOT / UNILSEG_PARTS.config, (*UNILSEG_PARTS.fields, *variant.overrides))[
            "model"
        ]
        on = {part for part, field in names.items() if model[field]}
        assert on == {part for part in names if f"+{part}" in row.label}, row.label
    assert [row.label.count("+") for row in table.rows] == [0, 1, 2, 3]


def test_labels_say_how_a_row_is_read():
    for row in (row for table in RELA.tables for row in table.rows):
        expected = {
            f"pixel rule, {PAPER_MIN_PIXELS}": by_pixels,
            "pixel rule, matched": by_matched_pixels,
        }
        assert row.read is expected.get(row.label, summary), row.label


def _rows_and_images(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Rows of a batch and images of a row, of every member of the mixture."""
    for member in ({}, *config["mixture"].values()):
        rows = member.get("batch_size") or config["batch_size"]
        yield rows, member.get("images", config["data"]["images"])


def test_grser_and_rela_learn_from_as_many_pairs_and_are_scored_on_the_same_pictures():
    found = {}
    for name in ("full", "one by one", "rela"):
        variant = GRSER_PARTS.variants[name]
        fields = (f"--config.steps={GRSER_PARTS.steps}", *GRSER_PARTS.fields, *variant.overrides)
        config = resolved(_ROOT / (variant.config or GRSER_PARTS.config), fields)
        steps, pairs = config["steps"], config["data"]["pairs"]
        assert {rows * images * pairs * steps for rows, images in _rows_and_images(config)} == {
            32 * GRSER_PARTS.steps
        }
        test = config["evals"]["test"]
        asked = test["granularities"] or config["data"]["granularities"]
        assert (test["split"], *asked) == ("test_groups", "group")
        found[name] = config
    alone = found["one by one"]
    assert {images for _, images in _rows_and_images(alone)} == {1}
    assert alone["model"]["group_size"] == 1
