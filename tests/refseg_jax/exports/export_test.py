"""Folders that leave the project: what is in them, that they answer alike, and damage."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hub
from safetensors.numpy import load_file

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import OtherParametersError
from refseg_jax.errors import UserError
from refseg_jax.exports.exporter import export
from refseg_jax.exports.source import load_start, read_source, recorded_licences
from refseg_jax.models.forward import Params
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.text.tokenizers import ClipTokenizer, build_tokenizer
from tests.refseg_jax.exports.folders import (
    TEXTS,
    THRESHOLD,
    compiling_once,
    damaged,
    flip,
    forged,
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


def test_another_threshold_is_an_argument(folder: Path, tmp_path: Path) -> None:
    """`config.json` may not be edited."""
    with compiling_once(tmp_path):
        for kind in ("run", "safetensors"):
            lower, own, higher = (
                Predictor.from_checkpoint(folder / kind, threshold=value).predict(picture(), TEXTS)
                for value in (0.5, None, 0.7)
            )
            for masks in zip(lower, own, higher, strict=True):
                one, two, three = (masks_of.uncleared for masks_of in masks)
                assert (one >= two).all() and (two >= three).all()
                assert one.sum() > two.sum() > three.sum()
    with pytest.raises(UserError, match=r"threshold=1\.5 is not between 0 and 1"):
        Predictor.from_checkpoint(folder / "safetensors", threshold=1.5)


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
    assert not isinstance(predictor._tokenizer, ClipTokenizer)
    found, expected = (t(TEXTS, 10) for t in (predictor._tokenizer, build_tokenizer()))
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
    ids, _ = predictor._tokenizer(["red cat"], 5)
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


def _edited(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


def _without(field: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        return json.dumps({k: v for k, v in json.loads(content).items() if k != field}).encode()

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", lambda content: content[:200], "not the config of an export"),
        ("config.json", lambda content: b"[]", "not the config of an export"),
        ("config.json", lambda content: b"\xff", "not the config of an export"),
        ("config.json", _edited(model=3), "'model' is no table"),
        ("config.json", _without("graphs"), "it has no 'graphs'"),
        ("config.json", _edited(version=99), "layout 99"),
        ("config.json", _edited(version="new"), "layout new"),
        ("config.json", _edited(eval={}), "no 'threshold'"),
        ("config.json", _edited(model={"name": "unires", "colour": 1}), "'colour'"),
    ],
)
def test_a_folder_that_another_hand_wrote_is_one_line(
    folder: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], words: str
) -> None:
    bad = forged(folder / "safetensors", tmp_path / "bad", name, change)
    for read in (Predictor.from_checkpoint, read_source):
        with pytest.raises(UserError) as caught:
            read(bad)
        one_line(caught, str(bad), words)


#: What reads an export, and how much of it.
READERS: dict[str, Callable[[Path], Any]] = {
    "predict": Predictor.from_checkpoint,
    "export": read_source,
    "init.checkpoint": lambda path: load_start(path, {}),
    "licences": recorded_licences,
}


def _with(section: str, **fields: Any) -> Callable[[bytes], bytes]:
    """Changes fields of a section of `config.json`, and leaves all else as it is written."""

    def change(content: bytes) -> bytes:
        config = json.loads(content)
        config[section] |= fields
        return (json.dumps(config, indent=2) + "\n").encode()

    return change


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "change",
    [
        _with("eval", threshold=0.3),
        _with("data", context_length=9),
        _with("data", resize="stretch"),
        _with("model", text_heads=1),
        lambda content: content[:200],
        lambda content: content + b" ",
        flip,
    ],
)
def test_a_changed_config_is_refused_by_all_readers(
    folder: Path, tmp_path: Path, reader: str, change: Callable[[bytes], bytes]
) -> None:
    bad = damaged(folder / "safetensors", tmp_path / "bad", "config.json", change)
    with pytest.raises(UserError) as caught:
        READERS[reader](bad)
    one_line(caught, f"{bad / 'config.json'}: ", "copy the whole exported folder again")


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("change", ["flip", "cut", "delete"])
def test_damage_to_any_file_is_refused_by_what_reads_weights(
    folder: Path, tmp_path: Path, change: str
) -> None:
    names = _names(folder / "safetensors")
    assert {"clip/model.safetensors", "vocab.json", "merges.txt", "manifest.json"} < {*names}
    for number, name in enumerate(names):
        bad = tmp_path / f"{number}"
        shutil.copytree(folder / "safetensors", bad)
        content = (bad / name).read_bytes()
        if change == "delete":
            (bad / name).unlink()
        else:
            (bad / name).write_bytes(flip(content) if change == "flip" else content[:-9])
        for reader in ("predict", "export", "init.checkpoint"):
            if name == "README.md":
                continue
            with pytest.raises(UserError) as caught:
                READERS[reader](bad)
            one_line(caught, f"{bad / name}: ", "export again")
        shutil.rmtree(bad)


def test_the_card_may_be_edited_and_added_files_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("absl").propagate = True
    out = tmp_path / "out"
    shutil.copytree(folder / "safetensors", out)
    for name in (".gitattributes", ".cache/huggingface/x", "clip/.DS_Store"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    Predictor.from_checkpoint(out)
    assert not caplog.records
    (out / "README.md").write_text("Our model")
    (out / "clip" / "notes.txt").write_text("mine")
    for reader in ("predict", "export", "init.checkpoint"):
        caplog.clear()
        with contextlib.suppress(OtherParametersError):
            READERS[reader](out)
        card, added = (record.getMessage() for record in caplog.records)
        assert card.startswith(f"{out / 'README.md'}: ") and "the model is whole" in card
        assert added == f"{out / 'clip' / 'notes.txt'}: not part of the export, not read"
    (out / "README.md").unlink()
    Predictor.from_checkpoint(out)


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_manifest_is_told_from_damaged_files(
    folder: Path, tmp_path: Path, reader: str
) -> None:
    bad = damaged(folder / "safetensors", tmp_path / "bad", "manifest.json", flip)
    (bad / "model.safetensors").write_bytes(flip((bad / "model.safetensors").read_bytes()))
    with pytest.raises(UserError) as caught:
        READERS[reader](bad)
    one_line(caught, f"{bad / 'manifest.json'}: damaged", "nothing proves the files beside it")
    (bad / "manifest.json").unlink()
    with pytest.raises(UserError) as caught:
        READERS[reader](bad)
    one_line(caught, f"{bad / 'manifest.json'}: missing", "exports of early versions have none")


def test_what_a_manifest_does_not_cover_is_not_read(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        bad = tmp_path / f"{number}"
        shutil.copytree(folder / "safetensors", bad)
        content = (bad / name).read_bytes()
        (bad / name).unlink()
        manifest.write(bad)
        (bad / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            Predictor.from_checkpoint(bad)
        one_line(caught, f"{bad / 'manifest.json'}: it has no digest of {name}")


def test_an_export_without_its_weights_is_still_told_as_an_export(
    folder: Path, tmp_path: Path
) -> None:
    bad = damaged(folder / "safetensors", tmp_path / "bad", "README.md", bytes)
    (bad / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, f"{bad / 'model.safetensors'}: missing")


def test_a_folder_of_another_program_is_told_as_what_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["CLIPModel"], "model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    for read in (Predictor.from_checkpoint, read_source):
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        one_line(caught, str(tmp_path), "another program's", "--config.init.clip")


def test_a_file_in_place_of_its_folder_is_told(folder: Path) -> None:
    path = folder / "safetensors" / "model.safetensors"
    with pytest.raises(UserError) as caught:
        read_source(path)
    one_line(caught, str(path), "it is a file", "name the folder")


def test_a_path_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint("nothing")
    assert str(caught.value).count("nothing") == 1


def test_a_file_that_is_no_safetensors_is_one_line(tmp_path: Path, folder: Path) -> None:
    """Its digest is right: a hostile folder has its own."""
    huge = (2**40).to_bytes(8, "little") + b"{}"

    for number, content in enumerate((b"", b"\x80\x04cposix\nsystem\n", huge)):
        bad = forged(
            folder / "safetensors",
            tmp_path / f"{number}",
            "model.safetensors",
            lambda _, c=content: c,
        )
        with pytest.raises(UserError) as caught:
            Predictor.from_checkpoint(bad)
        one_line(caught, str(bad / "model.safetensors"), "not a safetensors file")


def test_an_unknown_format_names_the_nearest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export(folder / "run", "safetensor", tmp_path / "out", command=["x"])
    one_line(caught, "--format", "did you mean 'safetensors'")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_unknown_format_names_the_nearest(folder: Path, tmp_path: Path) -> None:
    """As a later version may write it."""
    change = _edited(format="safetensors2")
    bad = forged(folder / "safetensors", tmp_path / "bad", "config.json", change)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad), "did you mean 'safetensors'")


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
