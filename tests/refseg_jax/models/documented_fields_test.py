"""The tables of fields in `docs/systems` name every field of a system, with its default."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.models import GRSerConfig, ReLAConfig, UniLSegConfig, UniRESConfig
from refseg_jax.training.objectives import (
    GroupObjective,
    MaskObjective,
    PromptObjective,
    RelationObjective,
)

_PAGES = Path(__file__).parents[3] / "docs" / "systems"


def _documented(page: Path, group: str) -> dict[str, str]:
    """Field -> default, as written, out of the table behind `--config.<group>.<field>=...`."""
    text = page.read_text()
    (start,) = re.finditer(rf"^`--config\.{group}\.<field>=\.\.\.`", text, re.M)
    table = re.search(
        r"\| field \| default \| meaning \|\n\|[-|]*\n((?:\|.*\n)*)", text[start.end() :]
    )
    assert table is not None
    found: dict[str, str] = {}
    for row in table[1].splitlines():
        names, defaults, meaning = (cell.strip() for cell in row.strip("|").split(" | "))
        assert meaning
        fields = re.findall(r"`(\w+)`", names)
        values = [value.strip("` ") for value in re.split(r",\s*(?![^(]*\))", defaults)]
        found |= dict(zip(fields, values, strict=True))
    return found


@pytest.mark.parametrize(
    ("page", "group", "fields"),
    [
        ("unires.md", "model", UniRESConfig),
        ("unires.md", "objective", MaskObjective),
        ("rela.md", "model", ReLAConfig),
        ("rela.md", "objective", RelationObjective),
        ("unilseg.md", "model", UniLSegConfig),
        ("unilseg.md", "objective", PromptObjective),
        ("grser.md", "model", GRSerConfig),
        ("grser.md", "objective", GroupObjective),
    ],
)
def test_every_field_is_documented_with_its_default(page: str, group: str, fields: Any):
    defaults = {field.name: str(field.default) for field in dataclasses.fields(fields)}
    assert _documented(_PAGES / page, group) == defaults
