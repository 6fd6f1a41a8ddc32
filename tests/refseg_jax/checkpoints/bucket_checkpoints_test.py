"""Checkpoints in a bucket: resumed bit by bit, proved by their digests, deleted when outdated."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.storage import buckets
from tests.refseg_jax.checkpoints.saved_states import (
    CONFIG,
    absl_warnings,
    abstract,
    assert_same,
    flip,
    open_saver,
    save,
    state_of,
)

warnings = pytest.fixture(absl_warnings)


@pytest.fixture
def directory(bucket: Path) -> Path:
    return bucket / "run"


saver = pytest.fixture(open_saver)


@pytest.fixture
def three(saver: Checkpointer) -> Checkpointer:
    for step in (10, 20, 30):
        save(saver, step)
    saver.wait()
    return saver


def _steps(directory: Path) -> list[int]:
    return list(checkpoint_folder.steps(directory))


def test_a_checkpoint_comes_back_bit_by_bit(saver: Checkpointer, directory: Path) -> None:
    assert saver.restore_latest(abstract(state_of())) is None
    save(saver, 10, {"mIoU": 1.0})
    saver.add_scores(10, {"mIoU": 2.0})
    assert manifest.check(directory / "10") == (manifest.Soundness.SOUND, "")
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert (restored.step, restored.data_state, restored.config) == (10, {"next": 10}, CONFIG)
    assert_same(restored.state, state_of(10))
    assert checkpoint_folder.read_record(directory / "10").metrics == {"mIoU": 2.0}
    for path in (directory, directory / "10", str(directory)):
        params, config = load_params(path)
        assert config == CONFIG
        assert_same(params, {n: np.asarray(a) for n, a in state_of(10)["params"].items()})


def test_outdated_checkpoints_and_remains_are_deleted(three: Checkpointer, directory: Path) -> None:
    # What a save leaves that is killed before Orbax's last file.
    (directory / "35/run/run.json").write_text("{}")
    (directory / "35.mine/a.txt").write_text("the user's")
    assert _steps(directory) == [10, 20, 30]
    save(three, 40)
    three.wait()
    assert _steps(directory) == [20, 30, 40]
    names = buckets.files(directory)
    assert {name.partition("/")[0] for name in names} == {"20", "30", "35.mine", "40"}


def test_a_checkpoint_that_is_there_is_kept_and_a_damaged_one_replaced(three, directory) -> None:
    written = buckets.versions(directory / "30/run", "run.json")
    save(three, 30)
    three.wait()
    assert buckets.versions(directory / "30/run", "run.json") == written
    flip(directory / "30/run/run.json")
    save(three, 30)
    three.wait()
    assert manifest.check(directory / "30").soundness is manifest.Soundness.SOUND


@pytest.mark.parametrize("damage", ["flip", "lose", "cut"])
def test_a_changed_or_lost_byte_is_found(three, directory, warnings, damage: str) -> None:
    name = max(
        (n for n in buckets.files(directory / "30") if "/d/" in n),
        key=lambda n: buckets.size(directory / "30" / n),
    )
    path = directory / "30" / name
    if damage == "flip":
        flip(path)
        reason = "its content has changed since it was written (SHA-256)"
    elif damage == "lose":
        path.unlink()
        reason = "missing"
    else:
        path.write_bytes(path.read_bytes()[:-1])
        reason = f"{buckets.size(path)} bytes instead of {buckets.size(path) + 1}"
    restored = three.restore_latest(abstract(state_of()))
    assert restored is not None and restored.step == 20
    assert f"checkpoint 30 is damaged, not used: {path}: {reason}" in warnings.text
    with pytest.raises(UserError, match=f"{directory}/30: no sound checkpoint"):
        load_params(directory / "30")


@pytest.mark.parametrize("reader", ["_digest", "_table"])
def test_a_bucket_that_does_not_answer_is_no_damage(three, monkeypatch, reader: str) -> None:
    """Else a run would go on from an older checkpoint."""

    def silent(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(manifest, reader, silent)
    with pytest.raises(UserError, match="it cannot be reached"), buckets.told():
        three.restore_latest(abstract(state_of()))


def test_arrays_of_a_bucket_that_does_not_answer_are_no_damage(three, monkeypatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise ValueError("UNAVAILABLE: no answer")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", silent)
    with pytest.raises(UserError, match="/run/30: UNAVAILABLE: no answer; see to the network"):
        three.restore_latest(abstract(state_of()))


def test_a_kill_before_the_manifest_leaves_an_unverified_checkpoint(three, directory) -> None:
    (directory / "30" / manifest.NAME).unlink()
    restored = three.restore_latest(abstract(state_of()))
    assert restored is not None and restored.step == 20
    for step in (10, 20):
        checkpoint_folder.remove(directory / str(step))
    restored = three.restore_latest(abstract(state_of()))
    assert restored is not None and restored.step == 30


def test_a_copy_of_a_disks_checkpoint_is_one(bucket: Path, tmp_path: Path, directory: Path) -> None:
    from tests.bucket_emulator import upload

    on_disk = Checkpointer(tmp_path / "disk", keep_latest=1)
    save(on_disk, 10)
    on_disk.close()
    upload(tmp_path / "disk", directory)
    params, _ = load_params(directory)
    assert_same(params, load_params(tmp_path / "disk")[0])
    # And back.
    for name in buckets.files(directory):
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes((directory / name).read_bytes())
    shutil.rmtree(tmp_path / "disk")
    assert_same(params, load_params(tmp_path / "back")[0])


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writing fails as without permission."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Forbidden: https://storage.googleapis.com/upload")

    monkeypatch.setattr(buckets, "write", refuse)
    yield


def test_a_save_that_fails_is_one_line(three, directory, unreachable) -> None:
    save(three, 40)
    with pytest.raises(UserError) as error:
        three.wait()
    line = f"{directory}: checkpoint 40 was not completed, earlier ones are kept: Forbidden: "
    assert str(error.value).startswith(line) and "Storage Object User" in str(error.value)


def test_a_folder_of_a_bucket_that_is_not_there_is_one_line(bucket: Path) -> None:
    with pytest.raises(UserError, match=f"{bucket}/nothing: there is no such folder"):
        load_params(bucket / "nothing")
