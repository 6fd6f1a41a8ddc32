"""What an evaluation needs is looked for before the training."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import scenes_grser, scenes_unires
from input_pipeline.schema import Expression, Record
from main import Experiment
from refseg_jax import sharding
from refseg_jax.errors import UserError
from tests.input_pipeline.tiny_dataset import build_tiny_dataset


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Experiment]:
    build_tiny_dataset(tmp_path / "data", {"train": 8, "val": 3, "test": 4})
    config: Any = scenes_unires.get_config()
    config.data.update({"data_dir": str(tmp_path / "data"), "dataset": "tiny"})
    built = Experiment(config, tmp_path / "run")
    yield built
    built.writer.close()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("evals.val.split", "nothing", r"config\.evals\.val: .*'nothing'.*evals\.val\.when=never"),
        ("evals.test.when", "finally", r"config\.evals\.test\.when='finally'.*final"),
        ("eval.oracle", "nothing", r"config\.eval\.oracle: .*'nothing'.*config\.eval\.oracle="),
        ("eval.resample", "chris", r"config\.eval\.resample 'chris': did you mean 'cris'"),
        ("eval.protocol", "cris,every_class", r"config\.eval\.protocol=.*alone, --config\.eval"),
        ("eval.batch_size", 3, r"config\.eval\.batch_size=3.*2 pieces.*evals\.\w+\.when=never"),
        ("eval.batch_size", 0, r"config\.eval\.batch_size=0.*2 pieces.*evals\.\w+\.when=never"),
        ("eval.threshold", 1.0, r"config\.eval\.threshold=1: give a probability between 0 and 1"),
        ("eval.threshold", math.nan, r"config\.eval\.threshold=nan: give a probability"),
    ],
)
def test_an_evaluation_that_cannot_run_is_told_before_training(
    experiment: Experiment, field: str, value: object, named: str
) -> None:
    mesh: Any = jax.sharding.AbstractMesh((2, 1, 1), sharding.AXES)
    experiment.evaluations.mesh = mesh
    experiment.evaluations.check()
    experiment.config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=named) as caught:
        experiment.evaluations.check()
    assert "\n" not in str(caught.value)


def test_an_evaluation_that_never_runs_is_not_checked(experiment: Experiment) -> None:
    experiment.config.evals.val.update({"split": "nothing", "when": "never"})
    experiment.evaluations.check()


def test_every_class_needs_one_kind_of_class(experiment: Experiment) -> None:
    experiment.config.eval.protocol = "every_class"
    experiment.config.evals.shuffled.when = "never"
    with pytest.raises(UserError, match=r"evals\.\w+\.granularities: classes are either") as caught:
        experiment.evaluations.check()
    assert "\n" not in str(caught.value)
    experiment.config.eval.pairs = 0
    with pytest.raises(UserError, match=r"config\.eval\.pairs=0: give the number of classes"):
        experiment.evaluations.check()


def test_every_class_is_not_asked_of_a_model_of_groups(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path / "data", {"val": 3})
    config: Any = scenes_grser.get_config()
    config.data.update({"data_dir": str(tmp_path / "data"), "dataset": "tiny"})
    config.eval.protocol = "every_class"
    built = Experiment(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"'every_class' asks one image.*take grd, gres or sod"):
        built.evaluations.check()
    built.writer.close()


@pytest.mark.parametrize(("images", "told"), [(8, False), (2, True)])
def test_rows_of_another_size_than_those_of_predictions_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, images: int, told: bool
) -> None:
    build_tiny_dataset(tmp_path / "data", {"train": 3})
    config: Any = scenes_grser.get_config()
    config.data.update({"data_dir": str(tmp_path / "data"), "dataset": "tiny", "images": images})
    member = {"split": "train", "sampling": "text", "granularities": ("object",)}
    config.mixture = {"texts": {**config.mixture.texts.to_dict(), **member}}
    config.evals.val.when = config.evals.test.when = "never"
    config.eval.threshold = 1.0
    built = Experiment(config, tmp_path / "run")
    # It ends behind the warning.
    with pytest.raises(UserError, match=r"config\.eval\.threshold"):
        built.train()
    built.writer.close()
    assert told == any("config.model.group_size=8: the run" in line for line in caplog.messages)


@pytest.mark.long
def test_every_class_is_scored_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking(record: Record) -> Record:
        asked = Expression(f"{record.image_id}-a", "all boxes", (0, 1), "category")
        other = Expression(f"{record.image_id}-b", "all lids", (2,), "category")
        return dataclasses.replace(record, expressions=(asked, other))

    build_tiny_dataset(tmp_path / "data", {"train": 1, "val": 3, "test": 4}, change=asking)
    config: Any = scenes_unires.get_config()
    config.data.update(
        {
            "data_dir": str(tmp_path / "data"),
            "dataset": "tiny",
            "granularities": ("category",),
        }
    )
    config.eval.update({"protocol": "every_class", "background": "class", "dump": "dump"})
    config.eval.update({"oracle": "", "batch_size": 2, "pairs": 1, "canvas": (64, 64)})
    built = Experiment(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"evals\.shuffled\.shuffled: every_class.*when=never"):
        built.evaluations.check()
    config.evals.shuffled.when = "never"
    built.evaluations.check()
    params = jax.jit(built.forward.init)(jax.random.key(0))
    built.evaluations.report(params, 0)
    built.writer.close()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["count"] == 4 * 3 and 0 <= summary["mIoU"] <= 1
    assert {"mAcc", "aAcc", "fg_mIoU", "IoU/background"} <= summary.keys()
    assert "every_class: comparable with mIoU over" in capsys.readouterr().out
    assert len((tmp_path / "run/dump/test/predictions.jsonl").read_text().splitlines()) == 12
