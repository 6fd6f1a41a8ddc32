"""UniLSeg's second stage with UniLSeg itself, as small as it goes; a benchmark from its checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import unilseg, unilseg_eval
from refseg_jax.checkpoints.params import load_params
from tests.configs.unilseg_run_test import run, small
from tests.configs.unilseg_sources import PSEUDO, build_datasets

pytestmark = pytest.mark.long

#: The public code's decoder with its batch normalisation and dropout.
MODEL: dict[str, Any] = {
    "form": "official",
    "norm": "batch",
    "dropout": 0.1,
    "drop_path": 0.1,
    "image_size": 32,
    "swin_width": 16,
    "swin_depths": (1, 1),
    "swin_heads": (1, 2),
    "window": 4,
    "text_width": 16,
    "text_layers": 1,
    "embedding_width": 16,
    "query_layers": 2,
}
STEPS = 8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    supervised = (fields["dataset"] for fields in unilseg.SUPERVISED.values())
    return build_datasets(tmp_path_factory.mktemp("sets"), (*supervised, PSEUDO, "ade20k/150"))


@pytest.fixture(scope="module")
def stage_2(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two evaluations."""
    workdir = tmp_path_factory.mktemp("stage_2")
    published: Any = unilseg.get_config(f"tiny,{PSEUDO}")
    config = small(published.copy_and_resolve_references(), data_dir)
    config.steps = STEPS
    config.model.update(MODEL)
    config.optim.lr_multipliers = published.optim.lr_multipliers
    config.loop.update({"eval_every": STEPS // 2, "log_batches": True})
    config.evals.val.when = "during"
    config.evals.testA.when = "final"
    scores = run(config, workdir, train=True)
    assert scores["steps"] == STEPS
    for name in ("val/oIoU", "val/mIoU", "testA/oIoU"):
        assert 0.0 <= scores[name] <= 1.0
    return workdir


def test_stage_2_trains_on_its_mixture(stage_2: Path) -> None:
    lines = [json.loads(line) for line in (stage_2 / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    members = {name.split("/")[0] for line in lines for name in line if name.endswith("/loss")}
    assert len(members) > 2 and members <= {*unilseg.SUPERVISED, PSEUDO}
    assert sum("val/oIoU" in line for line in lines) == 2
    params, stored = load_params(stage_2)
    assert stored["model"]["norm"] == "batch"
    for path, value in params.items():
        assert np.isfinite(value).all(), path
        if path.endswith((".norm.mean", ".norm.variance")):
            assert (value != float(path.endswith("variance"))).any(), path


def test_its_checkpoint_is_asked_for_150_classes(
    stage_2: Path, data_dir: Path, tmp_path: Path
) -> None:
    config = small(unilseg_eval.get_config("ade20k,released,tiny"), data_dir)
    config.model.update(MODEL)
    config.init.checkpoint = str(stage_2)
    config.evals.val.when = "final"
    scores = run(config, tmp_path)
    assert 0.0 <= scores["val/mIoU"] <= 1.0 and scores["step"] == STEPS
    assert scores["val/count"] % 150 == 0
