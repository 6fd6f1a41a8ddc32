"""GRSer's configs from end to end: G-RefC/+/g, GRD and CoCA from their files to scores and predictions.

Training and scores are those of a model that compiles in no time; `predict_group` has a small GRSer.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from configs import coca_eval, grd_eval, grefc_grser
from input_pipeline import pipeline
from input_pipeline.datasets.registry import CONVERSIONS
from main import Experiment
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import GRSerConfig
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.text.tokenizers import CLIP_EOS, CLIP_VOCAB
from tests.input_pipeline.datasets import d3_test, refer_files, regrouped_test
from tests.input_pipeline.datasets.saliency_datasets_test import write_groups
from tests.refseg_jax.exports.folders import compiling_in_a_hurry
from tests.refseg_jax.prediction.grouped import MODEL, THRESHOLD, grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import (
    IMAGE_SIZE,
    MASK_STRIDE,
    ColourModel,
    data_config,
    make_evaluator,
)

IMAGES = 3
#: Dataset -> writes its files into a folder.
SOURCES: dict[str, Callable[[Path], object]] = {
    "g_refc/unc": lambda folder: regrouped_test.write_source(folder),
    "g_refc_plus/unc": lambda folder: _renamed(folder, "refcoco+", "unc"),
    "g_refcg/umd": lambda folder: _renamed(folder, "refcocog", "umd"),
    "d3/pres": d3_test.write_d3,
    "coca": write_groups,
}


class Colours(ColourModel):
    """Answers with what the objective of groups needs; an image is present if its red is strong."""

    image_size, mask_stride = IMAGE_SIZE, MASK_STRIDE
    config = GRSerConfig(vocab_size=CLIP_VOCAB + 1, eos_id=CLIP_EOS)

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        assert batch.anti_text is not None
        logits = super().__call__(batch, rngs=rngs).mask_logits
        # The prefix of anti-expressions has a row of the table of its own.
        far = jnp.asarray(batch.image, jnp.float32)[..., 0].mean((2, 3))[..., None] / 127.5
        near = jnp.full_like(far, 1.0)
        aux = {"mirror_logits": -jnp.asarray(logits), "d_pos": near, "d_neg": far}
        return SegOutput(logits, far - near, aux)


def _renamed(folder: Path, name: str, by: str) -> None:
    regrouped_test.write_source(folder)
    (folder / "refcoco").rename(folder / name)
    (folder / name / "refs(unc).p").rename(folder / name / f"refs({by}).p")


@pytest.fixture(scope="module", autouse=True)
def colours() -> Iterator[None]:
    """Every model of an experiment is `Colours`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("main.build_model", lambda config, rngs: Colours(rngs))
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name, write in SOURCES.items():
        write(folder / name)
        refer_files.build(CONVERSIONS[name], folder / name, folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on all members."""
    workdir = tmp_path_factory.mktemp("grefc")
    config = small(grefc_grser.get_config("tiny"), data_dir)
    for entry in config.evals.values():
        entry.when = "never"
    assert run(config, workdir, train=True)["steps"] == 3
    return workdir


def small(config: Any, data_dir: Path) -> Any:
    config.update({"steps": 3, "epochs": 0.0, "batch_size": 2})
    config.data.update({"data_dir": str(data_dir), "images": IMAGES, "threads": 1})
    config.loop.update({"log_every": 1, "eval_every": 0, "save_every": 0})
    config.eval.update({"batch_size": 2, "canvas": (64, 64), "pictures": 0, "dump": "dump"})
    return config


def run(config: Any, workdir: Path, *, train: bool = False) -> dict[str, float]:
    """Runs an experiment; returns its scores."""
    experiment = Experiment(config, workdir)
    try:
        experiment.train() if train else experiment.evaluate()
    finally:
        experiment.writer.close()
    return json.loads((workdir / "summary.json").read_text())


def lines(file: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in map(json.loads, file.read_text().splitlines())}


def test_the_union_is_a_mixture_in_the_sizes_of_the_paper(trained: Path) -> None:
    left_out = json.loads((trained / "leakage.json").read_text())
    assert set(left_out) == set(grefc_grser.SETS)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    names = {key.split("/")[0] for row in rows for key in row if "/" in key}
    assert len(names & set(grefc_grser.SETS)) > 1


def test_grd_is_scored_with_and_without_negatives(
    trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    config = small(grd_eval.get_config("tiny"), data_dir)
    config.init.checkpoint = str(trained)
    scores = run(config, tmp_path)
    # Of the three images of a group and the one of another, two have what is asked for.
    assert scores["count"] == scores["cris/count"] == 4
    assert scores["positives/count"] == scores["positives/cris/count"] == 2
    found = lines(tmp_path / "dump/test/predictions.jsonl")
    assert set(found) == {"0-1", "1-1", "2-1", "3-3"}
    absent = [not found[name]["present"] for name in ("1-1", "2-1")]
    assert scores["Rneg"] == np.mean(absent)
    assert 0 <= scores["mIoU"] <= 1 and 0 <= scores["Em"] <= 1


def test_groups_of_grd_are_predicted_as_they_are_scored(data_dir: Path, tmp_path: Path) -> None:
    config = data_config(
        data_dir,
        "test",
        sampling="group",
        granularities=("group",),
        anti_prefix="token",
        pairs=1,
        images=MODEL["group_size"],
    )
    config = dataclasses.replace(config, dataset="d3/pres")
    with compiling_in_a_hurry():
        make_evaluator(
            data_dir,
            forward_of(MODEL),
            batches=lambda: pipeline.eval_batches(config, batch_size=1),
            threshold=THRESHOLD,
            dump=tmp_path,
        ).evaluate(grouped_params(), 0)
        predictor = Predictor(grouped_params(), grouped_config())
        # In another order than that of their names.
        folder, order = data_dir.parent / "d3/pres/d3_images/a", (2, 0, 1)
        paths = [folder / f"{number}.jpg" for number in order]
        answers = predictor.predict_group(paths, ["a dog on a leash"])
    found = lines(tmp_path / "predictions.jsonl")
    for number, (answer,) in zip(order, answers, strict=True):
        line = found[f"{number}-1"]
        assert answer.present is line["present"]
        np.testing.assert_array_equal(answer.uncleared, coco_mask.decode(line["segmentation"]) > 0)


def test_groups_of_grd_are_cut_for_a_prediction_as_for_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the order of ids as texts (0, 1, 10, 11, 2) nor that of their numbers is that of names."""
    names = {0: "b/0.jpg", 1: "a/9.jpg", 2: "a/10.jpg", 10: "a/1.jpg", 11: "a-b.jpg"}
    stored = d3_test.tables()
    for number, name in names.items():
        new = {**stored["images"][2], "id": number}
        stored["images"][number] = {**stored["images"].get(number, new), "file_name": name}
    d3_test.write_pickles(tmp_path / "d3", stored)
    folder = tmp_path / "d3/d3_images"
    refer_files.write_jpegs(folder, [image["file_name"] for image in stored["images"].values()])
    refer_files.build(CONVERSIONS["d3/pres"], tmp_path / "d3", tmp_path / "data")
    config = dataclasses.replace(
        data_config(tmp_path / "data", "test", sampling="group", granularities=("group",)),
        **{"dataset": "d3/pres", "pairs": 1, "images": IMAGES},
    )
    evaluated = [
        [names[int(image_id.removeprefix("d3/"))] for image_id in meta.image_ids]
        for host in pipeline.eval_batches(config, batch_size=1)
        for meta in host.meta
        if meta.expressions == ("a dog on a leash",)
    ]
    predictor, asked = Predictor(grouped_params(), grouped_config()), []

    def remember(images: list[Path], *_: Any, **__: Any) -> list[list[Any]]:
        asked.append([image.relative_to(folder).as_posix() for image in images])
        return [[] for _ in images]

    monkeypatch.setattr(predictor, "predict_row", remember)
    predictor.predict_group([folder / name for name in names.values()], ["a dog on a leash"])
    assert asked == evaluated
    assert asked == [["a-b.jpg", "a/1.jpg", "a/10.jpg"], ["a/10.jpg", "a/9.jpg", "b/0.jpg"]]


def test_coca_is_scored_by_maps_of_all_images(
    trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    config = small(coca_eval.get_config("tiny"), data_dir)
    config.init.checkpoint = str(trained)
    scores = run(config, tmp_path)
    # Thirteen images, of which ten make rows of three, the last one filled up.
    assert scores["count"] == 13 and scores["quarantined"] == 0
    assert 0 < scores["MAE"] < 1 and 0 <= scores["Sm"] <= 1
    assert len(lines(tmp_path / "dump/test/predictions.jsonl")) == 13


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="PRESET,positives"):
        grefc_grser.get_config("B,negatives")
    config: Any = grefc_grser.get_config("tiny,positives")
    assert config.data.negatives == 0.0 and config.eval.protocol == "cris"
    assert all(entry.positives_only for entry in config.evals.values())
