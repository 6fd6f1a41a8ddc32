"""main.py on several datasets at once: what is trained on, told, stored, resumed and refused."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import mres_unires
from configs.common import evaluation, member
from input_pipeline.facts.published import UNKNOWN_LICENCE, facts_of
from main import Experiment
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.models import UniRESConfig
from refseg_jax.training.clock import Clock
from tests.input_pipeline.building.pools import build_pool
from tests.refseg_jax.training.tiny_run import IMAGE_SIZE, MASK_STRIDE, ColourModel

Make = Callable[..., Experiment]


class Colours(ColourModel):
    """A model that compiles in no time."""

    image_size, mask_stride = IMAGE_SIZE, MASK_STRIDE
    config = UniRESConfig()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` trains on 2 of `two`'s val images."""
    folder = tmp_path_factory.mktemp("pools")
    build_pool(folder, "one", train=range(8), val=[20, 21])
    build_pool(folder, "two", train=range(10, 15), val=[2, 3, 22])
    return folder


@pytest.fixture
def make(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes an experiment of a small model; arguments are fields of its config."""
    made: list[Experiment] = []

    def experiment(
        workdir: Path = tmp_path / "run", model: type[Colours] = Colours, **fields: Any
    ) -> Experiment:
        monkeypatch.setattr("main.build_model", lambda config, rngs: model(rngs))
        config: Any = mres_unires.get_config("tiny,one,two")
        config.update({"steps": 4, "epochs": 0.0, "batch_size": 2})
        config.data.update({"data_dir": str(data_dir), "pairs": 2, "num_workers": 0})
        config.loop.update({"log_every": 1, "eval_every": 0, "log_batches": True})
        config.eval.update({"batch_size": 2, "canvas": (32, 32), "pictures": 0})
        config.update_from_flattened_dict(fields)
        workdir.mkdir(exist_ok=True)
        made.append(Experiment(config, workdir))
        return made[-1]

    yield experiment
    for one in made:
        one.writer.close()


def rows(workdir: Path) -> list[list[str]]:
    """The keys of every step."""
    lines = (workdir / "batches-0.jsonl").read_text().splitlines()
    return [[key for key, *_ in json.loads(line)["rows"]] for line in lines]


def test_a_mixture_trains_and_is_scored_by_dataset_and_resumes(
    make: Make, data_dir: Path, tmp_path: Path
) -> None:
    make().train()
    workdir = tmp_path / "run"
    turns = [{key.split("/")[0] for key in step} for step in rows(workdir)]
    assert turns == [{"one"}, {"two"}, {"one"}, {"two"}]

    stored = json.loads((workdir / "leakage.json").read_text())
    assert stored["one"]["image_ids"] == ["2", "3"] and stored["one"]["by"] == {"two/val": 2}
    assert stored["two"]["image_ids"] == []
    told = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["one/loss"] for line in told if "one/loss" in line] == [
        line["loss"] for line in told if line.get("step") in (1, 3) and "loss" in line
    ]
    summary = json.loads((workdir / "summary.json").read_text())
    assert {"one/mIoU", "two/mIoU", "one/part/mIoU"} <= summary.keys()
    # Three objects' expressions and a part's of each image of its own val.
    assert (summary["one/count"], summary["two/count"]) == (8, 12)

    # Half of it, and then the other half after a third dataset was built: the same rows.
    half = tmp_path / "half"
    make(half, steps=2).train()
    build_pool(data_dir, "three", val=[5, 6, 7])
    make(half, steps=4).train()
    assert rows(half) == rows(workdir)
    assert json.loads((half / "leakage.json").read_text()) == stored
    # A fresh run leaves out the new set's images as well.
    fresh = make(tmp_path / "fresh", steps=1)
    assert fresh._mixture().exclusions["one"].image_ids == ("2", "3", "5", "6", "7")


def test_sigterm_during_the_last_save_stops_before_the_evaluations(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, summary = tmp_path / "run", Clock.summary

    def signalled(clock: Clock) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return summary(clock)

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "summary", signalled)
        assert not make(steps=2).train()
    assert not (workdir / "summary.json").exists()
    assert load_params(workdir)[1]["progress"]["step"] == 2
    # The same command goes on with them.
    assert make(steps=2).train()
    assert json.loads((workdir / "summary.json").read_text())["step"] == 2


def test_members_of_several_shapes_train_one_model(make: Make, tmp_path: Path) -> None:
    experiment = make(steps=4)
    experiment.config.mixture.two.update({"weight": 0.5})
    with experiment.config.unlocked():
        experiment.config.mixture.groups = member(
            weight=0.5,
            dataset="one",
            sampling="group",
            granularities=("group",),
            images=3,
            pairs=1,
            context_length=9,
        )
        del experiment.config.evals["two"]
        experiment.config.evals.parts = evaluation("val", granularities=("part",), prefix="parts/")
    experiment.train()
    assert sorted(step[0].split("/")[0] for step in rows(tmp_path / "run")) == [
        "groups",
        "one",
        "one",
        "two",
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["parts/count"] == 2 and "parts/object/mIoU" not in summary
    params, stored = load_params(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in params.values())
    assert stored["mixture"]["groups"]["images"] == 3


def test_a_checkpoint_records_the_licences_of_all_that_it_was_trained_on(
    make: Make, data_dir: Path, tmp_path: Path
) -> None:
    build_pool(data_dir, "lip", train=range(40, 43))
    experiment = make(steps=1)
    with experiment.config.unlocked():
        experiment.config.mixture.two.dataset = "lip"
        experiment.config.evals = {}
    experiment.train()
    _, stored = load_params(tmp_path / "run")
    assert stored["licences"] == {"lip": facts_of("lip").terms, "one": UNKNOWN_LICENCE}
    # A run that starts from it was trained on these, too.
    with experiment.config.unlocked():
        experiment.config.mixture = {}
    again = make(tmp_path / "again", **{"init.checkpoint": str(tmp_path / "run"), "steps": 1})
    with again.config.unlocked():
        again.config.mixture = {}
        again.config.evals = {}
    again.train()
    assert load_params(tmp_path / "again")[1]["licences"] == stored["licences"]


def test_a_single_dataset_keeps_its_published_splits(make: Make, tmp_path: Path) -> None:
    experiment = make()
    with experiment.config.unlocked():
        experiment.config.mixture = {}
    mixture = experiment._mixture()
    assert mixture.rows_per_epoch == 8 and not mixture.exclusions
    assert list(tmp_path.glob("**/leakage*")) == []


def test_rows_that_do_not_fit_the_model_are_told_before_anything_is_allocated(
    make: Make, tmp_path: Path
) -> None:
    class OneImage(Colours):
        def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
            if batch.image.shape[1] > 1:
                raise ValueError("this model takes one image a row")
            return super().__call__(batch, rngs=rngs)

    experiment = make(model=OneImage)
    experiment._mixture()
    with experiment.config.unlocked():
        experiment.config.mixture.two.update({"images": 2})
    with pytest.raises(
        UserError, match=r"config.mixture.two: .*\(2, 2, 17\): this model takes one"
    ):
        experiment.train()
    with experiment.config.unlocked():
        experiment.config.mixture.two.update({"images": 1, "context_length": 99})
    with pytest.raises(UserError, match=r"config.mixture.two: .*99"):
        experiment.train()
    assert not (tmp_path / "run" / "checkpoints").exists()
