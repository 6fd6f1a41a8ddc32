"""The papers' ablations that `tools.ablation` repeats on Scenes: their trainings and their tables."""

from collections.abc import Mapping

from tools.studies.grser import GRSER_PARTS
from tools.studies.rela import NO_TARGET, RELA
from tools.studies.study import Row, Study, Table
from tools.studies.unilseg import UNILSEG_PARTS
from tools.studies.unires import GROUP_TOKENS

__all__ = ["STUDIES", "Row", "Study", "Table"]

STUDIES: Mapping[str, Study] = {
    "group_tokens": GROUP_TOKENS,
    "rela": RELA,
    "no_target": NO_TARGET,
    "unilseg_parts": UNILSEG_PARTS,
    "grser_parts": GRSER_PARTS,
}
