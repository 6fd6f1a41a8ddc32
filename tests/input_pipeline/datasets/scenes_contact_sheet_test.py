import numpy as np
import pytest

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.contact_sheet import WANTED, choose, contact_sheet, group_sheet
from input_pipeline.datasets.scenes.records import make_record
from refseg_jax.images.drawing import TARGET_COLOUR

FEW = ScenesConfig(test=15)


def test_a_scene_for_each_thing_that_is_wanted():
    wanted = [("object", "largest"), ("none", ""), ("part", "of the"), ("multi", "")]
    choices = choose(FEW, wanted)
    assert len({choice.record.image_id for choice in choices}) == len(wanted)
    for choice, (granularity, word) in zip(choices, wanted, strict=True):
        assert choice.expression in choice.record.expressions
        assert choice.expression.granularity == granularity
        assert word in choice.expression.text
    assert choices[1].expression.form not in ("", "kind")


def test_the_sheet_shows_every_granularity_of_single_images():
    assert {name for name, _ in WANTED} == {
        "object",
        "part",
        "multi",
        "none",
        "category",
        "salient",
    }
    assert len(WANTED) == 12


def test_targets_are_outlined_and_absent_ones_are_not():
    choices = choose(FEW, [("none", ""), ("object", ""), ("multi", "")])
    sheet = contact_sheet(choices, columns=3)
    cells = np.array_split(sheet, 3, axis=1)
    marked = [int((np.abs(cell.astype(int) - TARGET_COLOUR).max(-1) < 12).sum()) for cell in cells]
    assert marked[0] == 0
    assert min(marked[1:]) > 50


def test_a_row_of_the_sheet_of_groups_is_a_group():
    config = ScenesConfig(test_groups=1, group_size=4)
    sheet = group_sheet(config, [0])
    views = np.array_split(sheet[6:122], 4, axis=1)
    records = [make_record(config, "test_groups", member) for member in range(4)]
    for view, record in zip(views, records, strict=True):
        # The sheet is smaller than the pictures, so that outlines are mixed with what is beside them.
        marked = int((np.abs(view.astype(int) - TARGET_COLOUR).max(-1) < 60).sum())
        assert (marked > 20) == bool(record.expressions[0].targets)


def test_a_split_that_lacks_what_is_wanted():
    with pytest.raises(ValueError, match="no object expression with 'zebra' left"):
        choose(ScenesConfig(test=2), [("object", "zebra")])
