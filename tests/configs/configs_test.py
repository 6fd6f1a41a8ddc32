"""Every file in configs/ builds all that it describes, and says how it is run."""

import ast
import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import common, mres_unires, scenes_unires
from input_pipeline.datasets.registry import DATASETS
from input_pipeline.mixtures import read_members
from input_pipeline.pipeline import PipelineConfig
from refseg_jax import sharding
from refseg_jax.batch import GRANULARITIES
from refseg_jax.evaluation.protocols import PROTOCOLS
from refseg_jax.models import build_model, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.naming import construct
from refseg_jax.text.tokenizers import CLIP_EOS, CLIP_VOCAB
from refseg_jax.training.loop import LoopConfig
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig, make_optimizer, unfrozen

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(name: str) -> Any:
    return importlib.import_module(f"configs.{name}").get_config()


def test_there_are_configs() -> None:
    assert {"scenes_unires", "refcoco_unires", "mres_unires"} <= set(NAMES)


def test_model_objective_and_optimiser_are_built_without_arrays(config: Any) -> None:
    forward = Forward(lambda rngs: build_model(config.model.to_dict(), rngs=rngs))
    model: Any = forward.model
    assert model.image_size == config.model.image_size
    sizes = {"image_size": model.image_size, "mask_stride": model.mask_stride}
    data = construct(PipelineConfig, {**config.data.to_dict(), **sizes}, what="config.data")
    assert data.image_size % data.mask_stride == 0
    build_objective(config.objective)
    optim = construct(OptimConfig, config.optim, what="config.optim")
    learn = unfrozen(forward.shapes, optim) - forward.statistics
    assert learn and learn <= forward.shapes.keys()
    make_optimizer(optim, 100)
    construct(LoopConfig, config.loop, what="config.loop")
    mesh = sharding.make_mesh(construct(sharding.MeshConfig, config.mesh, what="mesh"))
    assert sharding.param_shardings(forward.shapes, mesh).keys() == forward.shapes.keys()


def test_fields_fit_together(config: Any) -> None:
    assert bool(config.steps) != bool(config.epochs)
    assert config.data.dataset in {*DATASETS, "mine"}
    assert set(config.data.granularities) <= set(GRANULARITIES)
    assert config.data.context_length <= config.model.text_positions
    known = {"clip": (CLIP_VOCAB, CLIP_EOS), "bert-base-uncased": (30522, 102)}
    size, end = known[config.data.tokenizer]
    # Of the two, BERT's vocabulary has a free token for the prefix of anti-expressions.
    more = config.data.anti_prefix == "token" and config.data.tokenizer == "clip"
    assert (config.model.vocab_size, config.model.eos_id) == (size + more, end)
    assert 0 < config.eval.threshold < 1


def test_best_checkpoint_is_chosen_by_a_score_that_training_has(config: Any) -> None:
    keys = PROTOCOLS[config.eval.protocol.split(",")[0]].columns
    during = [entry.prefix for entry in config.evals.values() if entry.when == "during"]
    assert config.checkpoint.best_metric in [prefix + key for prefix in during for key in keys]


def test_evaluations_do_not_overwrite_one_another(config: Any) -> None:
    prefixes = [entry.prefix for entry in config.evals.values()]
    assert len(prefixes) == len(set(prefixes))
    assert {entry.when for entry in config.evals.values()} <= {"during", "final", "never"}


def test_a_killed_run_of_the_main_job_loses_little() -> None:
    config: Any = scenes_unires.get_config()
    assert 0 < config.loop.save_every <= config.steps // 7


@pytest.mark.parametrize(("choice", "processes"), [("tiny", 0), ("tiny,a,b", 0), ("B/16", 8)])
def test_a_laptop_starts_no_processes_to_read_images(choice: str, processes: int) -> None:
    config: Any = mres_unires.get_config(choice)
    assert config.data.num_workers == processes


def test_config_of_a_checkpoint_builds_the_same(config: Any) -> None:
    stored = json.loads(json.dumps(config.to_dict()))
    assert model_config(stored["model"]) == model_config(config.model)
    assert build_objective(stored["objective"]) == build_objective(config.objective)
    sizes = {"image_size": 32, "mask_stride": 4}
    one, other = (
        construct(PipelineConfig, {**data, **sizes}, what="data")
        for data in (stored["data"], config.data.to_dict())
    )
    assert one == other


def test_docstring_has_a_command_that_runs_this_file_with_fields_that_exist(
    name: str, config: Any
) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    commands = [line for line in text.splitlines() if "python main.py" in line]
    assert any(f"--config=configs/{name}.py" in line for line in commands)
    assert all("--workdir=" in line for line in commands)
    for path in re.findall(r"--config\.([\w.]+)=", text):
        at: Any = config
        for part in path.split("."):
            at = at[part]


def test_base_has_exactly_the_fields_of_the_dataclasses() -> None:
    base: Any = common.base_config()
    # An override of a field that is not in the config is refused, so all must be there.
    for fields, constructor in (
        (base.optim, OptimConfig),
        (base.loop, LoopConfig),
        (base.mesh, sharding.MeshConfig),
    ):
        assert set(fields) == set(constructor.__dataclass_fields__)
    # These follow from the model and from the evaluation.
    derived = {"image_size", "mask_stride", "canvas", "shuffled_text", "positives_only"}
    assert set(base.data) == set(PipelineConfig.__dataclass_fields__) - derived


def test_base_has_the_defaults_of_the_pipeline() -> None:
    base: Any = common.base_config()
    for field in dataclasses.fields(PipelineConfig):
        chosen = ("data_dir", "dataset", "split", "granularities")
        if field.name in base.data and field.name not in chosen:
            assert base.data[field.name] == field.default, field.name


def _data(config: Any) -> Callable[..., PipelineConfig]:
    """As main.py reads it."""
    fields = {**config.data.to_dict(), "image_size": 32, "mask_stride": 4}
    return lambda **changes: construct(PipelineConfig, {**fields, **changes}, what="config.data")


def test_the_mixture_of_the_documentation_is_one() -> None:
    text = (ROOT / "docs" / "pretraining.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    config = names["config"]
    found = {m.name: m for m in read_members(config.mixture.to_dict(), _data(config))}
    assert set(found) == {"objects", "parts", "groups"}
    assert (found["parts"].data.pairs, found["groups"].data.images) == (16, 4)
    assert found["objects"].weight == 2 * found["parts"].weight
    assert config.evals.mine.dataset == "mine"


def test_datasets_that_are_named_behind_the_size_are_mixed_and_scored_each() -> None:
    config: Any = mres_unires.get_config("tiny,refcocog/umd,mine")
    found = read_members(config.mixture.to_dict(), _data(config))
    assert {(m.name, m.data.dataset, m.weight) for m in found} == {
        ("refcocog_umd", "refcocog/umd", 1.0),
        ("mine", "mine", 1.0),
    }
    assert {(e.dataset, e.prefix) for e in config.evals.values()} == {
        ("refcocog/umd", "refcocog_umd/"),
        ("mine", "mine/"),
    }
    assert config.checkpoint.best_metric == "refcocog_umd/mIoU"
    assert not mres_unires.get_config("tiny").mixture
