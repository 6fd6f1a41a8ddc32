"""Folders that leave the project: what is in them, that they answer alike, and damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hub
from safetensors.numpy import load_file

from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.exports.exporter import export
from refseg_jax.models.forward import Params
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.text.tokenizers import ClipTokenizer, build_tokenizer
from tests.refseg_jax.exports.folders import (
    TEXTS,
    THRESHOLD,
    compiling_once,
    one_line,
    picture,
    tiny_params,
    write_all,
)
from tests.refseg_jax.training.tiny_run import UNIRES, save_unires, unires_run_config


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    return tiny_params()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder


def test_parameters_load_back_bit_by_bit(folder: Path, params: Params) -> None:
    stored = load_file(folder / "safetensors" / "model.safetensors")
    assert stored.keys() == params.keys()
    for path, value in params.items():
        assert stored[path].dtype == np.float32
        assert stored[path].tobytes() == np.asarray(value).tobytes(), path


def test_masks_are_identical_to_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    with compiling_once(tmp_path):
        expected, found = (
            Predictor.from_checkpoint(folder / kind).predict(picture(), TEXTS)
            for kind in ("run", "safetensors")
        )
    # Else equal masks would say nothing.
    assert any(0.02 < one.mask.mean() < 0.98 for one in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert (one.score, one.present) == (other.score, other.present)


def test_other_thresholds_are_an_argument(folder: Path, tmp_path: Path) -> None:
    """`config.json` may not be edited."""
    with compiling_once(tmp_path):
        for kind in ("run", "safetensors"):
            lower, own, higher = (
                Predictor.from_checkpoint(folder / kind, thresholds=value).predict(picture(), TEXTS)
                for value in (Thresholds(0.5), "config", Thresholds(0.7))
            )
            for masks in zip(lower, own, higher, strict=True):
                one, two, three = (masks_of.uncleared for masks_of in masks)
                assert (one >= two).all() and (two >= three).all()
                assert one.sum() > two.sum() > three.sum()
    for name, value in (("mask", 1.5), ("presence", 0.0)):
        with pytest.raises(UserError, match=rf"thresholds\.{name}={value} is not between 0 and 1"):
            Thresholds(**{"mask": 0.5, name: value})
    with pytest.raises(UserError, match="thresholds 'calibratd': did you mean 'calibrated'"):
        Predictor.from_checkpoint(folder / "safetensors", thresholds="calibratd")


def test_masks_are_resampled_as_the_run_says(folder: Path, params: Params, tmp_path: Path) -> None:
    config = unires_run_config(THRESHOLD)
    config["eval"]["resample"] = "cris"
    save_unires(tmp_path / "run", params, config=config)
    export(tmp_path / "run", "safetensors", tmp_path / "cris", command=["make", "it"])
    assert json.loads((tmp_path / "cris" / "config.json").read_text())["eval"]["resample"] == "cris"
    assert "resampled as `cris`" in (tmp_path / "cris" / "README.md").read_text()
    with compiling_once(tmp_path / "cache"):
        expected, found, plain = (
            Predictor.from_checkpoint(path).predict(picture(), TEXTS)
            for path in (tmp_path / "run", tmp_path / "cris", folder / "safetensors")
        )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    assert any((one.mask != other.mask).any() for one, other in zip(found, plain, strict=True))


def test_an_export_of_an_export_is_the_same(folder: Path, tmp_path: Path) -> None:
    first, again = folder / "safetensors", tmp_path / "again"
    export(first, "safetensors", again, command=["make", "it"])
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == names
    assert Path("clip") / "model.safetensors" in names
    for name in names:
        assert (again / name).read_bytes() == (first / name).read_bytes(), name


def test_the_config_holds_what_a_predictor_needs_and_no_paths(folder: Path) -> None:
    config = json.loads((folder / "safetensors" / "config.json").read_text())
    assert config["model_type"] == "unires"
    assert UNIRES.items() <= config["model"].items()
    # Also the fields that the run's config leaves to their defaults.
    assert config["model"]["filter_norm"] is True
    expected = {"threshold": THRESHOLD, "protocol": "cris", "resample": "logits"}
    assert config["eval"] == expected
    assert config["step"] == 1
    assert str(folder) not in json.dumps(config)


def test_the_tokenizer_is_read_from_the_folder(folder: Path, tmp_path: Path) -> None:
    path = folder / "safetensors"
    predictor = Predictor.from_checkpoint(path)
    assert not isinstance(predictor._texts.tokenizer, ClipTokenizer)
    found, expected = (t(TEXTS, 10) for t in (predictor._texts.tokenizer, build_tokenizer()))
    np.testing.assert_array_equal(found[0], expected[0])
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    assert json.loads((path / "vocab.json").read_text()) == model["vocab"]
    merges = (path / "merges.txt").read_text().splitlines()
    assert [line.split() for line in merges[1:]] == model["merges"]


def test_another_tokenizer_goes_along(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "red"]
    model = hub.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    config = unires_run_config(THRESHOLD)
    config["data"]["tokenizer"] = str(tmp_path / "words.json")
    config["model"]["eos_id"] = 3
    save_unires(tmp_path / "run", tiny_params(), config=config)
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    (tmp_path / "words.json").unlink()
    predictor = Predictor.from_checkpoint(tmp_path / "out")
    ids, _ = predictor._texts.tokenizer(["red cat"], 5)
    assert ids.tolist() == [[2, 5, 4, 3, 0]]
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "[SEP]"
    assert not (tmp_path / "out" / "merges.txt").exists()


def test_a_vocabulary_that_replaced_another_under_its_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    for words in (["[CLS]", "[SEP]", "cat"], ["[CLS]", "[SEP]", "dog", "cat"]):
        model = hub.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[SEP]")
        hub.Tokenizer(model).save(str(path))
        ids, _ = build_tokenizer(str(path))(["cat"], 4)
        assert ids.tolist() == [[0, words.index("cat"), 1, 0]]


def test_a_run_with_an_average_exports_it(tmp_path: Path) -> None:
    params = tiny_params()
    average = {path: value + 1 for path, value in params.items()}
    saver = Checkpointer(tmp_path / "run" / "checkpoints", keep_latest=1)
    state = {"step": np.int32(1), "params": params, "ema": average}
    saver.save(1, state, data_state={}, config=unires_run_config(), metrics={})
    saver.close()
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == params.keys()
    for path, value in average.items():
        np.testing.assert_array_equal(stored[path], value, path)


def _save_scored(workdir: Path, scores: dict[int, float]) -> None:
    saver = Checkpointer(workdir / "checkpoints", keep_latest=9, best_metric="val/mIoU")
    params = tiny_params()
    config: dict[str, Any] = unires_run_config()
    config["data"]["dataset"] = "scenes"
    config["licences"] = {"scenes": "Apache-2.0"}
    for step, score in scores.items():
        state = {
            "step": np.int32(step),
            "params": {**params, "vision.class_token": step + 0 * params["vision.class_token"]},
        }
        saver.save(step, state, data_state={}, config=config, metrics={"val/mIoU": score})
    saver.close()


def test_the_card_has_the_scores_of_the_exported_step_alone(tmp_path: Path) -> None:
    _save_scored(tmp_path / "run", {1: 0.75, 2: 0.5})
    summary = {"val/mIoU": 0.5, "mIoU": 0.625, "part/mIoU": 0.375, "steps": 2, "train_seconds": 3}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    for step, value in (("latest", 2), ("best", 1), (1, 1)):
        out = tmp_path / f"{step}"
        export(tmp_path / "run", "safetensors", out, step=step, command=["make", "a model"])  # pyright: ignore
        card = (out / "README.md").read_text()
        stored = json.loads((out / "config.json").read_text())
        assert stored["step"] == value
        assert (load_file(out / "model.safetensors")["vision.class_token"] == value).all()
        # The summary tells of step 2.
        assert ("62.50" in card) == ("37.50" in card) == ("50.00" in card) == (value == 2)
        assert ("75.00" in card) == (value == 1)
        assert "Apache-2.0" in card
        assert "make 'a model'" in card
        assert "train_seconds" not in stored["metrics"]


def test_a_step_is_chosen_for_a_predictor_too(tmp_path: Path) -> None:
    _save_scored(tmp_path / "run", {1: 0.75, 2: 0.5})
    for step, value in (("latest", 2), ("best", 1), (1, 1)):
        engine: Any = Predictor.from_checkpoint(tmp_path / "run", step=step)._engine  # pyright: ignore
        assert (np.asarray(engine.params["vision.class_token"]) == value).all()


def test_an_unknown_format_names_the_nearest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export(folder / "run", "safetensor", tmp_path / "out", command=["x"])
    one_line(caught, "--format", "did you mean 'safetensors'")
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError) as caught:
        export(folder / "run", "safetensors", tmp_path / "out", command=["x"])
    one_line(caught, str(tmp_path / "out"), "exists already", "delete it")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("where", ["nothing", "version"])
def test_a_checkpoint_that_cannot_be_exported_leaves_nothing(tmp_path: Path, where: str) -> None:
    source = tmp_path / "run"
    if where == "version":
        save_unires(source, tiny_params(), config={"model": dict(UNIRES), "data": {}, "eval": {}})
    with pytest.raises(UserError) as caught:
        export(source, "safetensors", tmp_path / "out", command=["x"])
    one_line(caught, str(source))
    assert not list(tmp_path.glob("out*"))
