"""The loop: damaged records, preemption, resuming, and the order of things."""

import dataclasses
import itertools
import json
import logging
import math
import os
import signal
import types
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from input_pipeline.mixtures import Member, Mixture, open_mixture
from input_pipeline.schema import Record
from refseg_jax import clock
from refseg_jax.batch import HostBatch, RowMeta
from refseg_jax.checkpoint_params import load_params
from refseg_jax.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.objectives import MaskObjective
from refseg_jax.optim import OptimConfig
from refseg_jax.preemption import Preemption
from refseg_jax.train_loop import LoopConfig, Quarantine, Run, Trained
from refseg_jax.train_state import Trainer, TrainState
from refseg_jax.writers import FileWriter, ProgressLine
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.tiny_run import colour_forward, data_config, one_device

RECORDS, BATCH = 12, 4
DAMAGED = ("train3", "train8")


def _damage(record: Record) -> Record:
    bad = record.image_id in DAMAGED
    return dataclasses.replace(record, image=record.image[:200]) if bad else record


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    build_tiny_dataset(folder, {"train": RECORDS})
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    build_tiny_dataset(folder, {"train": RECORDS}, change=_damage)
    return folder


class Signalling:
    """Batches; takes the notice to leave just before batch number `at` is handed over."""

    def __init__(self, batches: Any, at: int) -> None:
        self.batches, self.left = batches, at

    def __next__(self) -> HostBatch:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)

    def get_state(self) -> Any:
        return self.batches.get_state()

    def set_state(self, state: Any) -> None:
        self.batches.set_state(state)


class Noting:
    """An evaluation that notes when it was called and with which parameters."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        self.calls.append((step, float(params["liked"].sum())))
        return {"val/mIoU": step / 100}


def _trainer(steps: int) -> Trainer:
    config = OptimConfig(lr=0.1, warmup=0.0)
    return Trainer(colour_forward(), MaskObjective(), config, steps, one_device())


def _train(
    workdir: Path,
    data_dir: Path,
    steps: int,
    *,
    signal_at: int = 0,
    evaluations: tuple[Any, ...] = (),
    batch: int = BATCH,
    config: dict[str, Any] | None = None,
    mixture: Mixture | None = None,
    **loop: Any,
) -> Trained:
    """What main.py does, with the smallest of everything."""
    mixture = mixture or open_mixture([Member("", data_config(data_dir, "train"))])
    batches = mixture.batches(batch_size=batch, seed=1)
    trainer = _trainer(steps)
    checkpointer = Checkpointer(workdir / "checkpoints", keep_latest=9, best_metric="val/mIoU")
    writer = FileWriter(workdir)
    try:
        with Preemption() as preemption:
            run = Run(
                trainer=trainer,
                config=LoopConfig(**{"log_every": 1, **loop}),
                batches=Signalling(batches, signal_at),
                evaluations=evaluations,
                checkpointer=checkpointer,
                writer=writer,
                progress=ProgressLine(steps),
                preemption=preemption,
                resolved_config=config or {},
                workdir=workdir,
            )
            return run.train(*run.resume(trainer.create))
    finally:
        checkpointer.close()
        writer.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _saved(workdir: Path) -> set[int]:
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}


def test_damaged_records_are_counted_and_logged_with_their_id(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epochs = 2
    with caplog.at_level(logging.WARNING, "absl"):
        told = _train(tmp_path, damaged, epochs * RECORDS // BATCH, max_bad_share=0.5).speed
    assert told["steps"] == epochs * RECORDS // BATCH
    counted = [line["quarantined"] for line in _lines(tmp_path / "metrics.jsonl")]
    assert counted[-1] == epochs * len(DAMAGED)
    assert counted == sorted(counted)
    messages = [r.getMessage() for r in caplog.records if "quarantined" in r.getMessage()]
    for image_id in DAMAGED:
        assert sum(image_id in message for message in messages) == epochs
    assert len(messages) == epochs * len(DAMAGED)
    assert all("\n" not in message for message in messages)


def test_damaged_records_do_not_change_the_loss_of_the_others(
    damaged: Path, tmp_path: Path
) -> None:
    _train(tmp_path, damaged, 3, max_bad_share=0.5)
    for line in _lines(tmp_path / "metrics.jsonl"):
        assert math.isfinite(line["loss"])
    pairs = sum(line["pairs"] for line in _lines(tmp_path / "metrics.jsonl"))
    assert pairs == (RECORDS - len(DAMAGED)) * 4


def test_more_damage_than_the_set_share_stops_the_run_with_one_line(
    damaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"damaged.*config\.loop\.max_bad_share") as caught:
        _train(tmp_path, damaged, 1000, batch=24, max_bad_share=0.1)
    assert "\n" not in str(caught.value)
    # Judged as soon as 200 rows were seen, and what was damaged is a sixth of them.
    assert "36 of 216 records" in str(caught.value)
    assert _lines(tmp_path / "metrics.jsonl")[-1]["step"] < 10


@pytest.mark.parametrize(("bad", "stops"), [(20, False), (21, True)])
def test_share_is_judged_over_all_rows_so_far(bad: int, stops: bool) -> None:
    quarantine = Quarantine(max_share=0.1)

    def batch(errors: int, rows: int) -> HostBatch:
        empty = ("",)
        reasons = ["torn"] * errors + [""] * (rows - errors)
        metas = tuple(RowMeta("k", empty, empty, empty, empty, reason) for reason in reasons)
        return HostBatch(None, metas)  # pyright: ignore

    # Before there are 200 rows nothing is judged, however bad.
    quarantine.check(batch(bad, 50))
    quarantine.check(batch(0, 149))
    if stops:
        with pytest.raises(UserError):
            quarantine.check(batch(0, 1))
    else:
        quarantine.check(batch(0, 1))
    assert (quarantine.bad, quarantine.rows) == (bad, 200)


def test_preempted_run_saves_and_resumes_as_if_nothing_had_happened(
    sound: Path, tmp_path: Path
) -> None:
    whole, told, _ = _train(tmp_path / "whole", sound, 7, log_batches=True)
    assert (told["steps"], told["preempted"]) == (7, 0)
    _, told, _ = _train(tmp_path / "cut", sound, 7, signal_at=3, log_batches=True)
    assert (told["steps"], told["preempted"]) == (3, 1)
    assert _saved(tmp_path / "cut") == {3}
    resumed, told, _ = _train(tmp_path / "cut", sound, 7, log_batches=True)
    assert (told["steps"], told["preempted"]) == (4, 0)
    assert int(resumed.step) == 7
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    batches = [_lines(tmp_path / name / "batches-0.jsonl") for name in ("whole", "cut")]
    assert batches[0] == batches[1]
    assert len(batches[0]) == 7
    told_of = [_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert [line["step"] for line in told_of[1]] == list(range(1, 8))
    assert [line["loss"] for line in told_of[1]] == [line["loss"] for line in told_of[0]]


def test_finished_run_does_nothing_when_it_is_started_again(sound: Path, tmp_path: Path) -> None:
    first = _train(tmp_path, sound, 3).state
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again, told, scores = _train(tmp_path, sound, 3)
    assert told["steps"] == 0
    assert scores == {}
    np.testing.assert_array_equal(again.params["liked"], first.params["liked"])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_evaluation_and_saving_happen_when_due_and_at_the_end(sound: Path, tmp_path: Path) -> None:
    noting = Noting()
    state, _, scores = _train(
        tmp_path, sound, 7, evaluations=(noting,), eval_every=3, save_every=2, log_every=0
    )
    assert [step for step, _ in noting.calls] == [3, 6, 7]
    assert noting.calls[-1][1] == float(state.params["liked"].sum())
    assert noting.calls[0][1] != noting.calls[1][1]
    assert scores == {"val/mIoU": 0.07}
    assert _saved(tmp_path) == {2, 3, 4, 6, 7}
    lines = _lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["val/mIoU"]) for line in lines] == [(3, 0.03), (6, 0.06), (7, 0.07)]


def test_an_evaluated_step_is_saved_with_its_scores_though_no_save_is_due(
    sound: Path, tmp_path: Path
) -> None:
    class Falling(Noting):
        def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
            return {"val/mIoU": 1 / step}

    _train(tmp_path, sound, 5, evaluations=(Falling(),), eval_every=2, save_every=0)
    assert _saved(tmp_path) == {2, 4, 5}
    _, stored = load_params(tmp_path, step="best")
    assert stored["progress"]["step"] == 2


def test_seconds_of_a_resumed_run_include_those_of_the_earlier_call(
    sound: Path, tmp_path: Path
) -> None:
    _train(tmp_path, sound, 2)
    path = tmp_path / "checkpoints" / "2"
    _, stored = load_params(path)
    spent = stored["progress"]["train_seconds"]
    assert spent > 0
    told = _train(tmp_path, sound, 4).speed
    assert told["train_seconds"] > spent
    later = load_params(tmp_path)[1]["progress"]
    assert later["step"] == 4
    assert spent < later["train_seconds"] < told["train_seconds"]


def _config(**changes: Any) -> dict[str, Any]:
    data = {"dataset": "tiny", "num_workers": 0, "flip_probability": 0.0}
    model = {"name": "colour", "sizes": (1, 2), "head": {"width": 8}}
    mixture = {"a": {"weight": 2}, "b": {}}
    return {"seed": 1, "steps": 2, "data": data, "model": model, "mixture": mixture, **changes}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 2}, r"config\.seed=1, now it is 2"),
        ({"data": {"dataset": "other"}}, r"config\.data\.dataset='tiny', now it is 'other'"),
        ({"data": {"num_workers": 2}}, r"config\.data\.num_workers=0, now it is 2"),
        ({"model": {"head": {"width": 9}}}, r"config\.model\.head\.width=8, now it is 9"),
        ({"mixture": {"a": {"weight": 2}}}, r"config\.mixture=\['a', 'b'\], now it is \['a'\]"),
        ({"mixture": {}}, r"config\.mixture=\['a', 'b'\], now it is \[\]"),
        (
            {"mixture": {"a": {"weight": 3}, "b": {}}},
            r"config\.mixture\.a\.weight=2, now it is 3",
        ),
    ],
)
def test_another_run_is_not_resumed(
    sound: Path, trained: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named) as caught:
        _train(trained, sound, 2, config=_config(**changes))
    assert "\n" not in str(caught.value)
    assert str(trained) in str(caught.value)


@pytest.fixture(scope="module")
def trained(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a config."""
    workdir = tmp_path_factory.mktemp("trained")
    _train(workdir, sound, 2, config=_config())
    return workdir


def test_more_steps_and_new_fields_resume(sound: Path, trained: Path) -> None:
    model = {"name": "colour", "sizes": [1, 2], "head": {"width": 8, "grown": True}}
    config = _config(steps=3, data={"dataset": "tiny", "flip_probability": 0.5}, model=model)
    assert _train(trained, sound, 3, config=config).speed["steps"] == 1


def _mixture(data_dir: Path) -> Mixture:
    """Two members of one shape, and a third of another, at every fourth step."""
    data = data_config(data_dir, "train")
    wide = dataclasses.replace(data, pairs=2)
    return open_mixture(
        [Member("few", data), Member("many", data, weight=2.0), Member("wide", wide)]
    )


def test_a_mixture_compiles_once_a_shape_and_tells_the_loss_of_each_member(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    compile_step = Trainer.compile_step

    def keep(self: Trainer) -> Any:
        compiled.append(compile_step(self))
        return compiled[-1]

    monkeypatch.setattr(Trainer, "compile_step", keep)
    mixture = _mixture(sound)
    _train(tmp_path, sound, 8, mixture=mixture, log_batches=True)
    assert compiled[0]._cache_size() == 2
    names = [h.name for h in itertools.islice(mixture.batches(batch_size=BATCH, seed=1), 8)]
    assert Counter(names) == {"many": 4, "few": 2, "wide": 2}
    lines = _lines(tmp_path / "metrics.jsonl")
    for name, line in zip(names, lines, strict=True):
        assert {key for key in line if key.endswith("/loss")} == {f"{name}/loss"}
        assert line[f"{name}/loss"] == line["loss"]
    rows = [line["rows"] for line in _lines(tmp_path / "batches-0.jsonl")]
    assert [{key.split("/")[0] for key, *_ in step} for step in rows] == [{n} for n in names]

    # A line of several steps has the newest of each.
    _train(tmp_path / "few", sound, 8, mixture=mixture, log_every=4)
    for line in _lines(tmp_path / "few" / "metrics.jsonl"):
        newest: dict[str, float] = {}
        for one in lines[line["step"] - 4 : line["step"]]:
            newest |= {key: value for key, value in one.items() if key.endswith("/loss")}
        assert len(newest) == 3
        assert newest.items() <= line.items()


def test_a_mixture_that_is_stopped_goes_on_as_if_it_had_not_been(
    sound: Path, tmp_path: Path
) -> None:
    expected = _train(tmp_path / "alone", sound, 6, mixture=_mixture(sound), log_batches=True)
    workdir = tmp_path / "stopped"
    stopped = _train(workdir, sound, 6, mixture=_mixture(sound), signal_at=3, log_batches=True)
    assert stopped.speed["preempted"] and stopped.speed["steps"] < 6
    found = _train(workdir, sound, 6, mixture=_mixture(sound), log_batches=True)
    np.testing.assert_array_equal(found.state.params["liked"], expected.state.params["liked"])
    name = "batches-0.jsonl"
    assert (workdir / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_loss_falls(sound: Path, tmp_path: Path) -> None:
    _train(tmp_path, sound, 40)
    losses = [line["loss"] for line in _lines(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_speed_is_of_steps_that_are_done_and_not_of_the_one_that_compiles(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time stands still: what is left is the number of images.
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    trained = _train(tmp_path, sound, 4)
    first, *others = _lines(tmp_path / "metrics.jsonl")
    assert not {"images_per_second", "data_wait_share"} & first.keys()
    counted = [line["images_per_second"] / 1e9 for line in others]
    assert counted == pytest.approx([BATCH, 2 * BATCH, 3 * BATCH])
    assert trained.speed["images_per_second"] / 1e9 == pytest.approx(3 * BATCH)


def test_loss_that_is_no_number_stops_with_one_line_and_saves_nothing(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> TrainState:
        bad = {path: np.full(s.shape, np.nan, s.dtype) for path, s in self.forward.shapes.items()}
        return self.create_from(jax.tree.map(jax.numpy.asarray, bad))

    monkeypatch.setattr(Trainer, "create", broken)
    with pytest.raises(UserError, match=r"nan at step 1.*config\.optim\.lr") as caught:
        _train(tmp_path, sound, 5, save_every=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_gradient_that_is_no_number_stops_although_the_loss_is_one(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound_step = Trainer.step

    def step(self: Trainer, state: TrainState, batch: Any) -> Any:
        state, metrics = sound_step(self, state, batch)
        return state, {**metrics, "grad_norm": metrics["grad_norm"] / (state.step != 2)}

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match=r"gradient's norm is inf at step 2.*config\.optim\.lr"):
        _train(tmp_path, sound, 5, save_every=1)
    assert _saved(tmp_path) == {1}
