"""Damaged, changed and forged exports: every reader refuses them with file, reason and cure."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.params import OtherParametersError
from refseg_jax.errors import UserError
from refseg_jax.exports.source import load_start, read_source, recorded_licences
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.exports.folders import damaged, flip, forged, one_line, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_all(folder, "safetensors")
    return folder


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


def test_a_folder_of_an_unknown_format_names_the_nearest(folder: Path, tmp_path: Path) -> None:
    """As a later version may write it."""
    change = _edited(format="safetensors2")
    bad = forged(folder / "safetensors", tmp_path / "bad", "config.json", change)
    with pytest.raises(UserError) as caught:
        Predictor.from_checkpoint(bad)
    one_line(caught, str(bad), "did you mean 'safetensors'")
