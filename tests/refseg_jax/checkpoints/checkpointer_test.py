"""Round trips, asynchrony, retention, and what cannot be saved."""

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from refseg_jax.checkpoints import arrays as checkpoint_arrays
from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.folder import read_record
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from tests.refseg_jax.checkpoints.saved_states import (
    CONFIG,
    absl_warnings,
    abstract,
    assert_same,
    checkpoints_folder,
    open_saver,
    save,
    state_of,
    step_names,
)

directory = pytest.fixture(checkpoints_folder)
saver = pytest.fixture(open_saver)
warnings = pytest.fixture(absl_warnings)


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_bit_identical(saver: Checkpointer, ema: bool) -> None:
    state = state_of(7, ema)
    saver.save(7, state, data_state={"a": [1, {"b": 2}]}, config=CONFIG, metrics={"mIoU": 0.5})
    restored = saver.restore_latest(abstract(state))
    assert restored is not None
    assert_same(restored.state, state)
    assert (restored.step, restored.data_state) == (7, {"a": [1, {"b": 2}]})
    assert restored.config == CONFIG


def test_nothing_to_restore(saver: Checkpointer, directory: Path) -> None:
    assert saver.restore_latest(abstract(state_of())) is None
    (directory / "30").mkdir(parents=True)
    (directory / "40.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    assert saver.restore_latest(abstract(state_of())) is None


def test_empty_and_unfinished_folders_are_passed_over(saver: Checkpointer, directory: Path) -> None:
    save(saver, 10)
    saver.wait()
    (directory / "30").mkdir()
    (directory / "40.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    restored = saver.restore_latest(abstract(state_of()))
    assert restored is not None
    assert restored.step == 10
    save(saver, 30)
    saver.wait()
    assert step_names(directory) == ["10", "30"]


def test_training_goes_on_while_files_are_written(
    saver: Checkpointer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is donated right after the call; the file holds the values of before."""
    gate = threading.Event()
    finish = checkpoint_arrays.ArrayWriter.finish

    def held(writer: checkpoint_arrays.ArrayWriter) -> None:
        assert gate.wait(30)
        finish(writer)

    monkeypatch.setattr(checkpoint_arrays.ArrayWriter, "finish", held)
    state = state_of(5)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    data = {"next": 5}
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    saver.save(5, state, data_state=data, config=CONFIG, metrics=None)
    data["next"] = 6
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    assert not manifest.present(directory / "5")
    gate.set()
    restored = saver.restore_latest(abstract(state))
    assert restored is not None
    assert_same(jax.tree.map(np.asarray, restored.state), expected)
    assert restored.data_state == {"next": 5}


def test_newest_and_best_are_kept(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=2, best_metric="mIoU", keep_best=1)
    scores = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: 0.3}
    for step, score in scores.items():
        save(saver, step, None if score is None else {"mIoU": score})
    saver.close()
    assert step_names(directory) == ["2", "5", "6"]
    params, config = load_params(directory.parent, step="best")
    assert config == CONFIG
    assert_same(params, jax.tree.map(np.asarray, state_of(2)["params"]))


def test_scores_that_come_later_choose_the_best(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=1, best_metric="mIoU", keep_best=1)
    save(saver, 1, {"mIoU": 0.5})
    save(saver, 2)
    saver.add_scores(2, {"mIoU": 0.9, "loss": float("nan")})
    assert step_names(directory) == ["2"]
    save(saver, 3, {"mIoU": 0.1})
    saver.close()
    assert step_names(directory) == ["2", "3"]
    assert read_record(directory / "2").metrics == {"mIoU": 0.9, "loss": None}
    assert manifest.check(directory / "2").soundness is manifest.Soundness.SOUND
    params, config = load_params(directory.parent, step="best")
    assert config == CONFIG
    assert_same(params, jax.tree.map(np.asarray, state_of(2)["params"]))


def test_scores_that_cannot_be_written_are_one_line(saver: Checkpointer, directory: Path) -> None:
    save(saver, 1)
    saver.wait()
    (directory / "1" / "run" / "run.json.partial").mkdir()
    with pytest.raises(UserError, match=r"1 .*Is a directory.*checkpoints kept: 1") as caught:
        saver.add_scores(1, {"mIoU": 0.5})
    assert "\n" not in str(caught.value)


def test_smallest_is_best_and_several_are_kept(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=1, best_metric="loss", keep_best=2, best_mode="min")
    for step, loss in enumerate([3.0, 1.0, 2.0, 9.0], start=1):
        save(saver, step, {"loss": loss})
    saver.close()
    assert step_names(directory) == ["2", "3", "4"]


def test_misspelt_metric_is_named(saver: Checkpointer, warnings: pytest.LogCaptureFixture) -> None:
    save(saver, 1, {"val/mIoU": 0.5})
    assert "did you mean 'val/mIoU'" in warnings.text


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = Checkpointer(tmp_path / "file" / "checkpoints", keep_latest=1)
    with pytest.raises(UserError, match=r"file/checkpoints: checkpoint 1 .*Not a directory"):
        save(saver, 1)
    saver.close()


def test_unserialisable_data_state_fails_at_once(saver: Checkpointer, directory: Path) -> None:
    with pytest.raises(TypeError):
        saver.save(1, state_of(), data_state={"x": object()}, config=CONFIG, metrics=None)
    assert saver.restore_latest(abstract(state_of())) is None


@pytest.mark.parametrize("fields", [{"keep_latest": 0}, {"keep_latest": 1, "best_mode": "up"}])
def test_senseless_numbers(directory: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keep_latest"):
        Checkpointer(directory, **fields)
