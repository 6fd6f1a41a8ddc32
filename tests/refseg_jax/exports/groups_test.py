"""Exports of a model of groups: an axis of images more, anti-expressions, and the same answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.exports.exporter import export
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.exports.folders import (
    compiling_in_a_hurry,
    engine_outputs,
    forged,
    graph_inputs,
    one_line,
    picture,
    written_graphs,
)
from tests.refseg_jax.models.small_grser import SMALL
from tests.refseg_jax.prediction.grouped import MODEL, grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import save_unires

TEXTS = ("the red box", "both boxes")


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with compiling_in_a_hurry():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, and its exports."""
    folder = tmp_path_factory.mktemp("exports")
    save_unires(folder / "run", grouped_params(), config=grouped_config())
    for name in ("safetensors", "stablehlo"):
        export(folder / "run", name, folder / name, command=["make", "it"])
    return folder


@pytest.fixture(scope="module")
def run(exported: Path) -> Predictor:
    return Predictor.from_checkpoint(exported / "run")


@pytest.fixture(scope="module")
def graphs(exported: Path) -> Predictor:
    return Predictor.from_checkpoint(exported / "stablehlo")


@pytest.mark.parametrize("format", ["safetensors", "stablehlo"])
def test_a_folder_answers_groups_as_its_run(
    exported: Path, run: Predictor, graphs: Predictor, format: str
) -> None:
    """Rows of three images, one of which is asked twice, and a row of two."""
    predictor = graphs if format == "stablehlo" else Predictor.from_checkpoint(exported / format)
    assert predictor.group_size == run.group_size == 3
    said = set()
    for count in (4, 2):
        images = [picture(seed) for seed in range(count)]
        expected = run.predict_group(images, TEXTS)
        found = predictor.predict_group(images, TEXTS)
        for answers, others in zip(found, expected, strict=True):
            for one, other in zip(answers, others, strict=True):
                # Only logits within rounding of the threshold may differ.
                assert (one.uncleared != other.uncleared).mean() < 1e-3
                assert one.present is other.present
                assert one.margin == pytest.approx(other.margin, abs=1e-5)
                said.add(one.present)
    assert said == {True, False}


@pytest.mark.parametrize(("rows", "images", "count"), [(2, 3, 2), (1, 1, 1), (1, 5, 3)])
def test_graphs_take_any_number_of_groups_images_and_expressions(
    run: Predictor, graphs: Predictor, rows: int, images: int, count: int
) -> None:
    inputs = graph_inputs(rows, count, eos=MODEL["eos_id"], length=10, images=images)
    found, expected = (engine_outputs(each._engine, inputs) for each in (graphs, run))
    assert found["mask_logits"].shape == (rows, images, count, 16, 16)
    for name, logits in expected.items():
        largest = np.abs(logits).max()
        np.testing.assert_allclose(found[name], logits, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    "changes",
    [
        {"inference_rank": "random", "channels": "last", "language_heatmap": False},
        {"inference_rank": "negative", "pooling": ("mean",), "distance": "raw", "mask_stride": 4},
    ],
    ids=lambda changes: changes["inference_rank"],
)
def test_every_choice_has_graphs_for_any_number_of_images(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = {**SMALL, **changes}
    graphs, engine = written_graphs(tmp_path, model, length=10)
    inputs = graph_inputs(1, 2, eos=model["eos_id"], length=10, images=7)
    found, expected = (engine_outputs(each, inputs) for each in (graphs, engine))
    assert found.keys() == expected.keys() == {"mask_logits", "present_logits"}
    for name, logits in expected.items():
        largest = np.abs(logits).max()
        np.testing.assert_allclose(found[name], logits, rtol=0, atol=1e-5 * largest)


def test_the_config_describes_the_axis_of_images_and_the_anti_expressions(exported: Path) -> None:
    config = json.loads((exported / "stablehlo" / "config.json").read_text())
    assert config["data"]["anti_prefix"] == "token"
    size = MODEL["image_size"]
    graphs = config["graphs"]
    assert graphs["encode_image"]["inputs"]["image"] == ["uint8", ["b", "n", size, size, 3]]
    assert graphs["encode_text"]["inputs"] == {
        "text": ["int32", ["b", "k", 10]],
        "text_valid": ["bool", ["b", "k", 10]],
        "anti_text": ["int32", ["b", "k", 10]],
    }
    assert graphs["decode"]["outputs"] == {
        "mask_logits": ["float32", ["b", "n", "k", 16, 16]],
        "present_logits": ["float32", ["b", "n", "k"]],
    }
    taken = {path for graph in graphs.values() for path in graph["params"]}
    assert taken == set(forward_of(MODEL).shapes)


def test_graphs_have_no_heatmaps(graphs: Predictor) -> None:
    with pytest.raises(UserError) as caught:
        graphs.heat_maps([picture()], graphs.words(TEXTS))
    one_line(caught, "exported graphs give no maps of heat", "--format=safetensors")


def test_a_folder_without_a_prefix_is_one_line(exported: Path, tmp_path: Path) -> None:
    def without(content: bytes) -> bytes:
        config = json.loads(content)
        del config["data"]["anti_prefix"]
        return json.dumps(config).encode()

    bad = forged(exported / "safetensors", tmp_path / "bad", "config.json", without)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad), "config.data.anti_prefix is empty")
