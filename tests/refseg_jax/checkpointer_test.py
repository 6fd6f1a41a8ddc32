"""Round trips, asynchrony, retention, damage and full disks."""

import errno
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refseg_jax import checkpoint_arrays, manifest
from refseg_jax.checkpoint_params import load_params
from refseg_jax.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.resize import resize_position_embedding

_CONFIG = {"model": {"name": "unires"}, "sizes": [1, 2]}


def _state(seed: int = 0, ema: bool = False) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "vision.blocks.0.attention.query.kernel": jax.random.normal(keys[0], (16, 8)),
        "head.bias": jax.random.normal(keys[1], (8,)).astype(jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(params, opt_state, params)
    return {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": opt_state,
        "ema": jax.tree.map(lambda x: x * 2, params) if ema else None,
    }


def _abstract(state: Any) -> Any:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state)


def _assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _save(saver: Checkpointer, step: int, metrics: dict[str, float] | None = None) -> None:
    saver.save(step, _state(step), data_state={"next": step}, config=_CONFIG, metrics=metrics)


def _steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def saver(directory: Path) -> Iterator[Checkpointer]:
    saver = Checkpointer(directory, keep_latest=3, best_metric="mIoU")
    yield saver
    saver.close()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("absl").propagate = True
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_bit_identical(saver: Checkpointer, ema: bool) -> None:
    state = _state(7, ema)
    saver.save(7, state, data_state={"a": [1, {"b": 2}]}, config=_CONFIG, metrics={"mIoU": 0.5})
    restored = saver.restore_latest(_abstract(state))
    assert restored is not None
    _assert_same(restored.state, state)
    assert (restored.step, restored.data_state) == (7, {"a": [1, {"b": 2}]})
    assert restored.config == _CONFIG


def test_nothing_to_restore(saver: Checkpointer, directory: Path) -> None:
    assert saver.restore_latest(_abstract(_state())) is None
    (directory / "30").mkdir(parents=True)
    (directory / "40.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    assert saver.restore_latest(_abstract(_state())) is None


def test_empty_and_unfinished_folders_are_passed_over(saver: Checkpointer, directory: Path) -> None:
    _save(saver, 10)
    saver.wait()
    (directory / "30").mkdir()
    (directory / "40.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    restored = saver.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.step == 10
    _save(saver, 30)
    saver.wait()
    assert _steps(directory) == ["10", "30"]


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
    state = _state(5)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    data = {"next": 5}
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    saver.save(5, state, data_state=data, config=_CONFIG, metrics=None)
    data["next"] = 6
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    assert not manifest.present(directory / "5")
    gate.set()
    restored = saver.restore_latest(_abstract(state))
    assert restored is not None
    _assert_same(jax.tree.map(np.asarray, restored.state), expected)
    assert restored.data_state == {"next": 5}


def test_newest_and_best_are_kept(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=2, best_metric="mIoU", keep_best=1)
    scores = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: 0.3}
    for step, score in scores.items():
        _save(saver, step, None if score is None else {"mIoU": score})
    saver.close()
    assert _steps(directory) == ["2", "5", "6"]
    params, config = load_params(directory.parent, step="best")
    assert config == _CONFIG
    _assert_same(params, jax.tree.map(np.asarray, _state(2)["params"]))


def test_smallest_is_best_and_several_are_kept(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=1, best_metric="loss", keep_best=2, best_mode="min")
    for step, loss in enumerate([3.0, 1.0, 2.0, 9.0], start=1):
        _save(saver, step, {"loss": loss})
    saver.close()
    assert _steps(directory) == ["2", "3", "4"]


def test_misspelt_metric_is_named(saver: Checkpointer, warnings: pytest.LogCaptureFixture) -> None:
    _save(saver, 1, {"val/mIoU": 0.5})
    assert "did you mean 'val/mIoU'" in warnings.text


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
def test_damage_to_any_file_falls_back(
    directory: Path, damage: Any, warnings: pytest.LogCaptureFixture
) -> None:
    saver = Checkpointer(directory, keep_latest=3)
    _save(saver, 1)
    _save(saver, 2)
    saver.wait()
    backup = directory.parent / "backup"
    shutil.copytree(directory / "2", backup)
    files = _files(directory / "2")
    assert len(files) >= 8
    for path in files:
        damage(path)
        warnings.clear()
        restored = saver.restore_latest(_abstract(_state()))
        assert restored is not None
        assert restored.step == 1, path
        _assert_same(restored.state, _state(1))
        assert str(path) in warnings.text
        shutil.rmtree(directory / "2")
        shutil.copytree(backup, directory / "2")
    restored = saver.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.step == 2
    saver.close()


def test_unverified_is_used_last(
    saver: Checkpointer, directory: Path, warnings: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        _save(saver, step)
    saver.wait()
    (directory / "3" / manifest.NAME).unlink()
    restored = saver.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.step == 2
    _flip(next((directory / "2" / "state" / "d").iterdir()))
    (directory / "1" / "run" / "run.json").unlink()
    restored = saver.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.step == 3
    assert "unverified" in warnings.text


def test_damaged_and_unverified_do_not_push_out_sound_ones(directory: Path) -> None:
    saver = Checkpointer(directory, keep_latest=2)
    for step in (1, 2, 3):
        _save(saver, step)
    saver.wait()
    _flip(next((directory / "3" / "state" / "d").iterdir()))
    assert saver.restore_latest(_abstract(_state())) is not None
    _save(saver, 4)
    saver.wait()
    assert _steps(directory) == ["2", "3", "4"]
    _save(saver, 5)
    saver.close()
    assert _steps(directory) == ["4", "5"]


def test_damaged_step_is_replaced_and_sound_one_is_left(
    saver: Checkpointer, directory: Path
) -> None:
    _save(saver, 1)
    _save(saver, 2)
    saver.wait()
    sound = (directory / "1" / manifest.NAME).stat().st_mtime_ns
    _flip(next((directory / "2" / "state" / "d").iterdir()))
    _save(saver, 2)
    _save(saver, 1)
    saver.wait()
    assert _steps(directory) == ["1", "2"]
    assert (directory / "1" / manifest.NAME).stat().st_mtime_ns == sound
    assert manifest.check(directory / "2").soundness is manifest.Soundness.SOUND


def test_none_is_sound(saver: Checkpointer, directory: Path) -> None:
    _save(saver, 1)
    saver.wait()
    _flip(directory / "1" / "run" / "run.json")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        saver.restore_latest(_abstract(_state()))
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
    _save(saver, 1)
    saver.wait()
    (directory / "1" / manifest.NAME).unlink()
    (directory / "1" / "run" / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        saver.restore_latest(_abstract(_state()))


@pytest.mark.parametrize("field", ["dtype", "shape", "name"])
def test_record_that_lies_about_arrays(saver: Checkpointer, directory: Path, field: str) -> None:
    _save(saver, 1)
    saver.wait()
    (directory / "1" / manifest.NAME).unlink()
    path = directory / "1" / "run" / "run.json"
    record = json.loads(path.read_text())
    dtype, shape = record["arrays"].pop("params/head.bias")
    name = "params/other" if field == "name" else "params/head.bias"
    record["arrays"][name] = ["no such" if field == "dtype" else dtype, shape]
    if field == "shape":
        record["arrays"][name][1] = [-8, "x"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError):
        load_params(
            directory,
            expected={
                k.removeprefix("params/"): _leaf(_state()["params"]["head.bias"])
                for k in record["arrays"]
                if k.startswith("params/")
            },
        )


def test_other_model_is_an_error_and_not_damage(saver: Checkpointer) -> None:
    _save(saver, 1)
    other = _state()
    other["params"]["head.bias"] = jnp.zeros((9,), jnp.bfloat16)
    with pytest.raises(UserError, match=r"head\.bias.*bfloat16\[8\].*bfloat16\[9\]"):
        saver.restore_latest(_abstract(other))
    other = _state(ema=True)
    with pytest.raises(UserError, match=r"ema/.* is absent in the checkpoint"):
        saver.restore_latest(_abstract(other))


def test_params_alone(saver: Checkpointer, directory: Path) -> None:
    """From any of the three folders; the average is preferred; given layouts are used."""
    state = _state(3, ema=True)
    saver.save(3, state, data_state=None, config=_CONFIG, metrics=None)
    saver.wait()
    for path in (directory.parent, directory, directory / "3", str(directory / "3")):
        params, config = load_params(path)
        assert config == _CONFIG
        assert all(isinstance(x, np.ndarray) for x in params.values())
        _assert_same(params, jax.tree.map(np.asarray, state["ema"]))
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {path: _leaf(value) for path, value in state["params"].items()}
    params, _ = load_params(directory, step=3, expected=wanted)
    assert all(x.sharding == layout for x in params.values())
    with pytest.raises(UserError, match=r"head\.bias. is in the checkpoint only"):
        load_params(directory, expected={"other": wanted["head.bias"]})
    smaller = {**wanted, "head.bias": _leaf(jnp.zeros(3))}
    with pytest.raises(UserError, match=r"'head\.bias' is \(8,\) there, the model's is \(3,\)"):
        load_params(directory, expected=smaller)


def test_positions_of_another_image_size_are_resized(saver: Checkpointer, directory: Path) -> None:
    table = np.random.default_rng(0).standard_normal((1 + 4 * 4, 3)).astype(np.float32)
    state = {"params": {"vision.position_embedding": jnp.asarray(table)}}
    saver.save(1, state, data_state=None, config=_CONFIG, metrics=None)
    saver.wait()
    wanted = {"vision.position_embedding": _leaf(jnp.zeros((1 + 8 * 8, 3)))}
    params, _ = load_params(directory, expected=wanted)
    resized = resize_position_embedding(table, 8)
    np.testing.assert_array_equal(params["vision.position_embedding"], resized)
    wider = {"vision.position_embedding": _leaf(jnp.zeros((1 + 8 * 8, 2)))}
    with pytest.raises(UserError, match=r"\(17, 3\) there, the model's is \(65, 2\)"):
        load_params(directory, expected=wider)


def _leaf(value: jax.Array) -> jax.ShapeDtypeStruct:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=layout)


def test_load_params_errors(saver: Checkpointer, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    _save(saver, 1)
    _save(saver, 2)
    saver.wait()
    with pytest.raises(UserError, match=r"no checkpoint 3; there are \[1, 2\]"):
        load_params(directory, step=3)
    with pytest.raises(UserError, match="no checkpoint has a score"):
        load_params(directory, step="best")
    _flip(directory / "2" / "_CHECKPOINT_METADATA")
    _assert_same(load_params(directory)[0], jax.tree.map(np.asarray, _state(1)["params"]))
    with pytest.raises(UserError, match="no sound checkpoint"):
        load_params(directory / "2")
    with pytest.raises(UserError, match="no sound checkpoint"):
        load_params(directory, step=2)


@pytest.mark.parametrize("where", ["json.dump", "os.fsync", "hashlib.file_digest"])
def test_disk_is_full_for_the_manifest(
    saver: Checkpointer, directory: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The arrays are complete, but nothing proves it: used last, replaced by the next save."""
    _save(saver, 1)
    saver.wait()

    def full(*args: object, **fields: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"refseg_jax.manifest.{where}", full)
        _save(saver, 2)
        with pytest.raises(UserError, match=r"checkpoint 2 .*No space left.* kept: 1$") as caught:
            saver.wait()
    assert "\n" not in str(caught.value)
    assert not list(directory.rglob("*.partial"))
    restored = saver.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.step == 1
    _save(saver, 2)
    saver.wait()
    assert manifest.check(directory / "2").soundness is manifest.Soundness.SOUND


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = Checkpointer(tmp_path / "file" / "checkpoints", keep_latest=1)
    with pytest.raises(UserError, match=r"file/checkpoints: checkpoint 1 .*Not a directory"):
        _save(saver, 1)
    saver.close()


def test_unserialisable_data_state_fails_at_once(saver: Checkpointer, directory: Path) -> None:
    with pytest.raises(TypeError):
        saver.save(1, _state(), data_state={"x": object()}, config=_CONFIG, metrics=None)
    assert saver.restore_latest(_abstract(_state())) is None


@pytest.mark.parametrize("fields", [{"keep_latest": 0}, {"keep_latest": 1, "best_mode": "up"}])
def test_senseless_numbers(directory: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keep_latest"):
        Checkpointer(directory, **fields)
