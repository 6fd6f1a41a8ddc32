"""What is exported, and exported weights as what another run begins with."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from refseg_jax import sharding
from refseg_jax.checkpoints.params import OtherParametersError, load_params
from refseg_jax.errors import UserError
from refseg_jax.exports.exporter import export
from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.model_card import model_card
from refseg_jax.exports.source import Source, load_start, read_source, recorded_licences
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.models.graphs import forward_of
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.exports.folders import damaged, one_line, tiny_params, write_all
from tests.refseg_jax.prediction.grouped import MODEL, grouped_config, grouped_params
from tests.refseg_jax.training.tiny_run import UNIRES, save_unires, unires_run_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder


def expected(**changes: object) -> dict[str, jax.ShapeDtypeStruct]:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
    forward = Forward(lambda rngs: build_model({**UNIRES, **changes}, rngs=rngs))
    return sharding.abstract_params(forward.shapes, mesh)


@pytest.mark.parametrize("changes", [{}, {"image_size": 48}])
def test_a_run_begins_alike_with_the_checkpoint_and_with_its_export(folder, changes):
    wanted = expected(**changes)
    ours, step = load_start(folder / "run", wanted)
    theirs, same_step = load_start(folder / "safetensors", wanted)
    assert step == same_step == 1
    assert ours.keys() == theirs.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert theirs[path].sharding == leaf.sharding
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_what_does_not_fit_is_named(folder, tmp_path):
    for name in ("safetensors", "run"):
        with pytest.raises(OtherParametersError) as error:
            load_start(folder / name, expected(low_tokens=0))
        one_line(error, name, "is in the checkpoint only")
        assert error.value.model["low_tokens"] == UNIRES["low_tokens"]
    flipped = damaged(
        folder / "safetensors",
        tmp_path / "bad",
        "model.safetensors",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    )
    with pytest.raises(UserError) as error:
        load_start(flipped, expected())
    one_line(error, "bad/model.safetensors")


def test_a_model_is_not_scored_by_words_that_it_was_not_trained_with(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
    wanted = sharding.abstract_params(forward_of(MODEL).shapes, mesh)
    config = grouped_config()
    config["data"]["anti_prefix"] = "word"
    save_unires(tmp_path / "run", grouped_params(), config=config)
    export(tmp_path / "run", "safetensors", tmp_path / "safetensors", command=["make", "it"])
    for name in ("run", "safetensors"):
        load_start(tmp_path / name, wanted, config, scored=True)
        assert not caplog.messages
        with pytest.raises(UserError) as error:
            load_start(tmp_path / name, wanted, grouped_config(), scored=True)
        one_line(
            error, name, "with config.data.anti_prefix='word', now it is 'token'", "same value"
        )
        load_start(tmp_path / name, wanted, grouped_config())
        (told,) = caplog.messages
        assert "config.data.anti_prefix='word', now it is 'token'" in told
        caplog.clear()


def test_tokenizers_are_compared_by_their_vocabulary(folder: Path, tmp_path: Path) -> None:
    ours = folder / "safetensors" / "tokenizer.json"
    content = json.loads(ours.read_text())
    same, other = (tmp_path / name / "tokenizer.json" for name in ("same", "other"))
    for path in (same, other):
        path.parent.mkdir()
    same.write_text(json.dumps(content, indent=1))
    vocab = content["model"]["vocab"]
    vocab["dog</w>"], vocab["cat</w>"] = vocab["cat</w>"], vocab["dog</w>"]
    other.write_text(json.dumps(content))
    config = unires_run_config()
    for name in ("run", "safetensors"):
        for there in ("clip", str(ours), str(same.parent)):
            config["data"]["tokenizer"] = there
            load_start(folder / name, expected(), config, scored=True)
        config["data"]["tokenizer"] = str(other)
        with pytest.raises(UserError) as error:
            load_start(folder / name, expected(), config, scored=True)
        one_line(error, name, "config.data.tokenizer=", str(other))
    # A file that is not on this machine cannot be compared.
    gone = unires_run_config()
    gone["data"]["tokenizer"] = "/nowhere/tokenizer.json"
    save_unires(tmp_path / "run", tiny_params(), config=gone)
    load_start(tmp_path / "run", expected(), unires_run_config(), scored=True)


def test_a_checkpoint_is_read_as_before(folder):
    stored, _ = load_params(folder / "run")
    for path, value in load_start(folder / "run", expected())[0].items():
        np.testing.assert_array_equal(value, stored[path])


@pytest.mark.parametrize("read", [read_source, Predictor.from_checkpoint])
def test_an_export_holds_one_step(folder, read):
    for step in (7, "best"):
        with pytest.raises(UserError) as error:
            read(folder / "safetensors", step=step)
        one_line(error, str(folder / "safetensors"), f"step 1 alone, not {step}")
    read(folder / "safetensors", step=1)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"step": 1, "mIoU": 0.625, "steps": 1}, {"mIoU": 0.625}),
        ({"step": 2, "mIoU": 0.625}, {}),
        # Of a run that did not note it: whose scores they are is not known.
        ({"mIoU": 0.625}, {}),
    ],
)
def test_scores_of_a_run_without_evaluations_during_it_are_its_summarys(
    tmp_path, summary, expected
):
    save_unires(tmp_path, tiny_params())
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert read_source(tmp_path).metrics == expected


def card_of(source: Source) -> str:
    chosen: dict[str, Any] = {"model": source.model, "data": source.data, "eval": source.eval}
    return model_card(ExportConfig("safetensors", **chosen, step=1, metrics={}), "make", {})


def test_a_card_names_every_dataset_of_a_mixture_and_its_licence(tmp_path):
    config = unires_run_config()
    config["data"]["dataset"] = "refcoco/unc"
    config["mixture"] = {"a": {"weight": 2.0}, "b": {"dataset": "scenes"}, "c": {"pairs": 2}}
    config["licences"] = {"refcoco/unc": "images: Flickr's", "scenes": "Apache-2.0"}
    save_unires(tmp_path / "run", tiny_params(), config=config)
    source = read_source(tmp_path / "run")
    assert source.data["dataset"] == "refcoco/unc, scenes"
    card = card_of(source)
    assert "# unires on refcoco/unc, scenes\n" in card
    assert "licence of the data: refcoco/unc: images: Flickr's; scenes: Apache-2.0\n" in card
    # An export of the export says the same.
    export(tmp_path / "run", "safetensors", tmp_path / "first", command=["make"])
    export(tmp_path / "first", "safetensors", tmp_path / "second", command=["make"])
    for folder in ("first", "second"):
        stored = json.loads((tmp_path / folder / "config.json").read_text())
        assert stored["data"]["licences"] == config["licences"]
        assert "refcoco/unc: images: Flickr's; " in (tmp_path / folder / "README.md").read_text()


def test_licences_are_those_of_the_start_too(tmp_path):
    config = unires_run_config()
    config["data"]["dataset"] = "mine"
    config["licences"] = {"mine": "ours", "refcoco/unc": "theirs"}
    save_unires(tmp_path / "run", tiny_params(), config=config)
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["make"])
    for path in ("run", "run/checkpoints", "out"):
        assert recorded_licences(tmp_path / path) == config["licences"]
    assert "mine: ours; refcoco/unc: theirs\n" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="no such folder"):
        recorded_licences(tmp_path / "nothing")


def test_licences_of_a_run_that_recorded_none_are_not_made_up(tmp_path):
    config = unires_run_config()
    config["data"]["dataset"] = "refcoco/unc"
    assert "licences" not in config
    save_unires(tmp_path / "run", tiny_params(), config=config)
    assert "- licence of the data: not recorded\n" in card_of(read_source(tmp_path / "run"))
    export(tmp_path / "run", "safetensors", tmp_path / "early", command=["make"])
    assert "- licence of the data: not recorded\n" in card_of(read_source(tmp_path / "early"))
    config["mixture"] = {"a": {}, "b": {"dataset": "mine"}}
    config["licences"] = {"mine": "ours"}
    save_unires(tmp_path / "other", tiny_params(), config=config)
    card = card_of(read_source(tmp_path / "other"))
    assert "- licence of the data: mine: ours; refcoco/unc: not recorded\n" in card


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_summary_is_one_line(tmp_path, content):
    save_unires(tmp_path, tiny_params())
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_source(tmp_path)
    one_line(error, str(tmp_path / "summary.json"), "delete it")
