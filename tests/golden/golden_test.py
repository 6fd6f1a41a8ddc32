"""Each system's first steps and its scores are those of the golden file.

Measured between Python 3.11 (jax 0.10.2) and 3.12 (jax 0.12.0.1), the same machine: the first loss
differs by 6e-8, the last by 2e-4, a score by 0.3 points.
"""

import json
from pathlib import Path

import pytest

from tests.golden.runs import CONFIGS, GOLDEN, run


@pytest.mark.long
@pytest.mark.parametrize("system", CONFIGS)
def test_the_first_steps_and_the_scores_are_the_golden_ones(system: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[system]
    found = run(system, tmp_path)
    assert found["loss"][0] == pytest.approx(golden["loss"][0], rel=1e-5)
    assert found["loss"][-1] == pytest.approx(golden["loss"][-1], rel=1e-3)
    assert found["scores"] == pytest.approx(golden["scores"], abs=0.005)
