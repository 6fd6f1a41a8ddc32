"""UniLSeg's configs from end to end: two stages and the benchmarks, with a model that is not UniLSeg."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from configs import unilseg, unilseg_eval, unilseg_pretrain
from input_pipeline.datasets.registry import CONVERSIONS
from main import Experiment
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import UniRESConfig
from tests.configs.unilseg_sources import PSEUDO, SOURCES, build_datasets
from tests.input_pipeline.formats import map_files
from tests.refseg_jax.evaluation import every_class_test
from tests.refseg_jax.training.tiny_run import IMAGE_SIZE, MASK_STRIDE, ColourModel


class Colours(ColourModel):
    """A model that compiles in no time."""

    image_size, mask_stride = IMAGE_SIZE, MASK_STRIDE
    config = UniRESConfig()

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        logits = super().__call__(batch, rngs=rngs).mask_logits
        return SegOutput(logits, None, {"layer_logits": jnp.asarray(logits)[None]})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_datasets(tmp_path_factory.mktemp("sets"), (*SOURCES, PSEUDO))


@pytest.fixture(scope="module", autouse=True)
def colours() -> Iterator[None]:
    """Every model is `Colours`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("main.build_model", lambda config, rngs: Colours(rngs))
        yield


@pytest.fixture(scope="module")
def stage_1(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 1."""
    workdir = tmp_path_factory.mktemp("stage_1")
    run(small(unilseg_pretrain.get_config("tiny"), data_dir), workdir, train=True)
    return workdir


def small(config: Any, data_dir: Path) -> Any:
    """The config, to train two steps; nothing is evaluated after them."""
    config.update({"steps": 2, "epochs": 0.0, "batch_size": 2})
    config.data.update({"data_dir": str(data_dir), "num_workers": 0, "threads": 1})
    config.optim.lr_multipliers = ((r".*", 1.0),)
    config.loop.update({"log_every": 1, "eval_every": 0, "save_every": 0})
    config.eval.update({"batch_size": 2, "canvas": (64, 64), "pictures": 0})
    for entry in config.evals.values():
        entry.when = "never"
    return config


def run(config: Any, workdir: Path, *, train: bool = False) -> dict[str, float]:
    """Runs an experiment; returns its scores."""
    experiment = Experiment(config, workdir)
    try:
        experiment.train() if train else experiment.evaluate()
    finally:
        experiment.writer.close()
    return json.loads((workdir / "summary.json").read_text())


def test_stage_2_starts_from_stage_1(data_dir: Path, stage_1: Path, tmp_path: Path) -> None:
    config = small(unilseg.get_config(f"tiny,{PSEUDO}"), data_dir)
    config.init.checkpoint = str(stage_1)
    assert run(config, tmp_path, train=True)["steps"] == 2
    left_out = json.loads((tmp_path / "leakage.json").read_text())
    assert set(left_out) == {*unilseg.SUPERVISED, PSEUDO}


@pytest.mark.parametrize("choice", [*unilseg_eval.BENCHMARKS, "refcoco,released"])
def test_one_checkpoint_answers_every_task(
    choice: str, data_dir: Path, stage_1: Path, tmp_path: Path
) -> None:
    name = choice.split(",")[0]
    benchmark = unilseg_eval.BENCHMARKS[name]
    if benchmark.dataset not in SOURCES:
        pytest.skip(f"there is no small copy of {benchmark.dataset}")
    config = small(unilseg_eval.get_config(f"{choice},tiny"), data_dir)
    config.init.checkpoint = str(stage_1)
    split = next(iter(benchmark.scores))
    config.evals[split].when = "final"
    assert 0 <= run(config, tmp_path)[f"{split}/{benchmark.metric}"] <= 1


def test_real_scenes_of_ade20k_are_asked_for_150_classes(
    shared_data: Path, stage_1: Path, tmp_path: Path
) -> None:
    sample, source = shared_data / "ade20k_sceneparsing_sample", tmp_path / "source"
    for kind in ("images", "annotations"):
        shutil.copytree(sample / kind, source / kind / "validation")
    every_class_test.write_names(source, sample / "objectInfo150.csv")
    map_files.build(CONVERSIONS["ade20k/150"], source, tmp_path / "data")
    config = small(unilseg_eval.get_config("ade20k,tiny"), tmp_path / "data")
    config.init.checkpoint = str(stage_1)
    config.eval.canvas = (720, 720)
    config.evals.val.when = "final"
    workdir = tmp_path / "run"
    workdir.mkdir()
    scores = run(config, workdir)
    assert 0 <= scores["val/mIoU"] <= 1 and 0 <= scores["val/aAcc"] <= 1
