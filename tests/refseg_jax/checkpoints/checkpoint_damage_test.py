"""Damaged, unverified and hostile checkpoints, and a disk that is full before the manifest."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from tests.refseg_jax.checkpoints.saved_states import (
    CONFIG,
    absl_warnings,
    abstract,
    assert_same,
    checkpoints_folder,
    flip,
    open_saver,
    save,
    state_of,
    step_names,
)

directory = pytest.fixture(checkpoints_folder)
saver = pytest.fixture(open_saver)
warnings = pytest.fixture(absl_warnings)


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, _truncate, Path.unlink])
def test_damage_to_any_file_falls_back(
    directory: Path, damage: Any, warnings: pytest.LogCaptureFixture
) -> None:
    saver = Checkpointer(directory, keep_latest=3)
    save(saver, 1)
    save(saver, 2)
    saver.wait()
    backup = directory.parent / "backup"
    shutil.copytree(directory / "2", backup)
    files = _files(directory / "2")
    assert len(files) >= 8
    for path in files:
        damage(path)
        warnings.clear()
        restored = saver.restore_latest(abstract(state_of()))
        assert restored is not None
        assert restored.step == 1, path
        assert_same(restored.state, state_of(1))
        assert str(path) in warnings.text
        shutil.rmtree(directory / "2")
        shutil.copytree(backup, directory / "2")
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 2
    saver.close()


def test_unverified_is_used_last(
    saver: Checkpointer, directory: Path, warnings: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save(saver, step)
    saver.wait()
    (directory / "3" / manifest.NAME).unlink()
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 2
    flip(next((directory / "2" / "state" / "d").iterdir()))
    (directory / "1" / "run" / "run.json").unlink()
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 3
    assert "unverified" in warnings.text


def test_a_damaged_manifest_beside_a_damaged_checkpoint_is_no_proof(
    saver: Checkpointer, directory: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """Nothing would tell the flipped bit of the arrays, so that the checkpoint is not used."""
    save(saver, 1)
    save(saver, 2)
    saver.wait()
    flip(next((directory / "2" / "state" / "d").iterdir()))
    flip(directory / "2" / manifest.NAME)
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 1
    assert f"{directory / '2' / manifest.NAME}: damaged" in warnings.text
    flip(directory / "1" / manifest.NAME)
    for read in (
        lambda: saver.restore_latest(abstract(state_of())),
        lambda: load_params(directory),
    ):
        with pytest.raises(UserError, match="delete one that is damaged itself") as caught:
            read()
        assert "\n" not in str(caught.value)
    # The cure.
    (directory / "1" / manifest.NAME).unlink()
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 1


def test_a_renamed_checkpoint_is_refused_with_the_cure(
    saver: Checkpointer, directory: Path
) -> None:
    """It would pass for another step, although an older one is sound."""
    save(saver, 10)
    save(saver, 20)
    saver.wait()
    (directory / "20").rename(directory / "30")
    reads: list[Callable[[], object]] = [
        lambda: saver.restore_latest(abstract(state_of())),
        lambda: load_params(directory.parent),
        lambda: load_params(directory / "30"),
        lambda: load_params(directory.parent, step=30),
    ]
    for read in reads:
        with pytest.raises(UserError, match="rename the folder to 20") as caught:
            read()
        assert str(caught.value).startswith(f"{directory / '30'}: it holds checkpoint 20")
        assert "\n" not in str(caught.value)
    # Without its manifest it is told as well.
    (directory / "30" / manifest.NAME).unlink()
    with pytest.raises(UserError, match="rename the folder to 20"):
        load_params(directory / "30")
    for name in ("best", "0020", "step_20"):
        shutil.copytree(directory / "30", directory.parent / name)
        with pytest.raises(UserError, match="rename the folder to 20"):
            load_params(directory.parent / name)
    (directory / "30").rename(directory / "20")
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 10, "20 has no manifest"


def test_backups_beside_the_checkpoints_are_left_alone(
    saver: Checkpointer, directory: Path, warnings: pytest.LogCaptureFixture
) -> None:
    save(saver, 10)
    saver.wait()
    names = ["10.backup", "10.2", "010", "best"]
    for name in names:
        shutil.copytree(directory / "10", directory / name)
    (directory / "9.orbax-checkpoint-tmp-3").mkdir()
    (directory / "8.outdated").mkdir()
    (directory / "10" / "notes.txt").write_text("mine")
    save(saver, 20)
    saver.wait()
    assert {path.name for path in directory.iterdir()} == {"10", "20", *names}
    assert load_params(directory, step=10)[1] == CONFIG
    assert "notes.txt is no part of it, not used" in warnings.text


def test_damaged_and_unverified_do_not_push_out_sound_ones(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=2)
    for step in (1, 2, 3):
        save(saver, step)
    saver.wait()
    flip(next((directory / "3" / "state" / "d").iterdir()))
    assert saver.restore_latest(abstract(state_of())) is not None
    save(saver, 4)
    saver.wait()
    assert step_names(directory) == ["2", "3", "4"]
    save(saver, 5)
    saver.close()
    assert step_names(directory) == ["4", "5"]


def test_damaged_step_is_replaced_and_sound_one_is_left(
    saver: Checkpointer, directory: Path
) -> None:
    save(saver, 1)
    save(saver, 2)
    saver.wait()
    sound = (directory / "1" / manifest.NAME).stat().st_mtime_ns
    flip(next((directory / "2" / "state" / "d").iterdir()))
    save(saver, 2)
    save(saver, 1)
    saver.wait()
    assert step_names(directory) == ["1", "2"]
    assert (directory / "1" / manifest.NAME).stat().st_mtime_ns == sound
    assert manifest.check(directory / "2").soundness is manifest.Soundness.SOUND


def test_none_is_sound(saver: Checkpointer, directory: Path) -> None:
    save(saver, 1)
    saver.wait()
    flip(directory / "1" / "run" / "run.json")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        saver.restore_latest(abstract(state_of()))
    with pytest.raises(UserError, match="no sound checkpoint"):
        load_params(directory.parent)
    assert (directory / "1").is_dir()


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2", b"\xff\xfe\x00", b"[]", b'"x"', b"{}", b"[" * 100_000, b'{"arrays": 3}'],
)
def test_hostile_record_without_manifest(
    saver: Checkpointer, directory: Path, content: bytes
) -> None:
    save(saver, 1)
    saver.wait()
    (directory / "1" / manifest.NAME).unlink()
    (directory / "1" / "run" / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        saver.restore_latest(abstract(state_of()))


def test_other_model_is_an_error_and_not_damage(saver: Checkpointer) -> None:
    save(saver, 1)
    other = state_of()
    other["params"]["head.bias"] = jnp.zeros((9,), jnp.bfloat16)
    with pytest.raises(UserError, match=r"head\.bias.*bfloat16\[8\].*bfloat16\[9\]"):
        saver.restore_latest(abstract(other))
    other = state_of(ema=True)
    with pytest.raises(UserError, match=r"ema/.* is absent in the checkpoint"):
        saver.restore_latest(abstract(other))


@pytest.mark.parametrize("where", ["Path.replace", "os.fsync", "hashlib.file_digest"])
def test_disk_is_full_for_the_manifest(
    saver: Checkpointer, directory: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The arrays are complete, but nothing proves it: used last, replaced by the next save."""
    save(saver, 1)
    saver.wait()

    def full(*args: object, **fields: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"refseg_jax.checkpoints.manifest.{where}", full)
        save(saver, 2)
        with pytest.raises(UserError, match=r"checkpoint 2 .*No space left.* kept: 1$") as caught:
            saver.wait()
    assert "\n" not in str(caught.value)
    assert not list(directory.rglob("*.partial"))
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 1
    save(saver, 2)
    saver.wait()
    assert manifest.check(directory / "2").soundness is manifest.Soundness.SOUND
