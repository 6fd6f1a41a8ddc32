"""Experiments that begin with what another run has left, without a dataset."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import main
from configs import scenes_unires, unilseg
from main import Experiment
from refseg_jax.checkpoints import workdir
from refseg_jax.errors import UserError
from refseg_jax.models import model_config
from tests.refseg_jax.exports.folders import one_line, tiny_params
from tests.refseg_jax.training.tiny_run import UNIRES, save_unires, unires_run_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that was stopped at step 7."""
    workdir = tmp_path_factory.mktemp("other")
    save_unires(workdir, tiny_params(), step=7)
    return workdir


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """Makes one that evaluates nothing; arguments are fields of its model."""
    made: list[Experiment] = []

    def make(checkpoint: Path, **model: Any) -> Experiment:
        config: Any = scenes_unires.get_config()
        config.model.update(model)
        config.data.context_length = 10
        config.init.checkpoint = str(checkpoint)
        config.eval.oracle = ""
        for entry in config.evals.values():
            entry.when = "never"
        made.append(Experiment(config, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.writer.close()


def test_another_runs_checkpoint_is_scored_as_of_its_own_step(experiment, other, tmp_path) -> None:
    experiment(other, **dataclasses.asdict(model_config(UNIRES))).evaluate()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"step": 7}


@pytest.mark.parametrize("own", [False, True])
def test_a_checkpoint_of_another_preset_names_both(experiment, tmp_path, own: bool) -> None:
    config = {**unires_run_config(), "model": {"name": "unires", "preset": "L/14"}}
    workdir = tmp_path if own else tmp_path / "other"
    save_unires(workdir, tiny_params(), config=config)
    with pytest.raises(UserError) as error:
        experiment(Path("/nowhere") if own else workdir).evaluate()
    one_line(error, str(workdir), "its model is of preset 'L/14', this run's of 'tiny'")


@pytest.mark.parametrize("own", [False, True])
def test_a_checkpoint_of_another_anti_prefix_is_not_scored(
    experiment, tmp_path: Path, own: bool
) -> None:
    config = unires_run_config()
    config["data"]["anti_prefix"] = "word"
    workdir = tmp_path if own else tmp_path / "other"
    save_unires(workdir, tiny_params(), config=config)
    made = experiment(
        Path("/nowhere") if own else workdir, **dataclasses.asdict(model_config(UNIRES))
    )
    made.config.data.anti_prefix = "token"
    with pytest.raises(UserError) as error:
        made.evaluate()
    one_line(error, str(workdir), "config.data.anti_prefix='word', now it is 'token'")


@pytest.mark.parametrize("allowed", [False, True])
def test_accumulation_over_batch_norm_is_refused_before_anything_is_read(
    tmp_path: Path, allowed: bool
) -> None:
    config: Any = unilseg.get_config("tiny")
    config.model.norm = "batch"
    config.data.data_dir = "/nowhere"
    config.optim.update({"accumulation": 2, "microbatch_statistics": allowed})
    experiment = Experiment(config, tmp_path)
    with pytest.raises(UserError) as error:
        experiment.train()
    experiment.writer.close()
    fields = ("config.optim.accumulation=2", "--config.optim.microbatch_statistics=True")
    one_line(error, *(("/nowhere",) if allowed else fields))


def test_a_second_run_in_a_workdir_is_refused_with_one_line(tmp_path: Path) -> None:
    command = (sys.executable, "main.py", "--config=configs/scenes_unires.py", "--mode=eval")
    with workdir.opened(tmp_path):
        before = set(tmp_path.iterdir())
        done = subprocess.run(
            [*command, f"--workdir={tmp_path}"],
            cwd=Path(main.__file__).parent,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert set(tmp_path.iterdir()) == before
    assert done.returncode == 1
    assert done.stderr.count("error") == 1
    said = f"error: {tmp_path}: another run (process {os.getpid()} on {platform.node()}) is at it: "
    assert said in done.stderr
