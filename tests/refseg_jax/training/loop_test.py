"""The loop: damaged records, the order of things, and what it tells."""

import dataclasses
import json
import logging
import math
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from input_pipeline.schema import Record
from refseg_jax.batch import HostBatch, RowMeta
from refseg_jax.checkpoints.params import load_params
from refseg_jax.errors import UserError
from refseg_jax.training import clock, loop, peaks
from refseg_jax.training.goodput import KINDS, Ledger
from refseg_jax.training.quarantine import Quarantine
from refseg_jax.training.state import Trainer, TrainState
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.training.loop_runs import (
    BATCH,
    RECORDS,
    Noting,
    build_sound,
    lines_of,
    saved_steps,
    train,
)

DAMAGED = ("train3", "train8")

sound = pytest.fixture(scope="module")(build_sound)


def _damage(record: Record) -> Record:
    bad = record.image_id in DAMAGED
    return dataclasses.replace(record, image=record.image[:200]) if bad else record


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    build_tiny_dataset(folder, {"train": RECORDS}, change=_damage)
    return folder


def test_damaged_records_are_counted_and_logged_with_their_id(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epochs = 2
    with caplog.at_level(logging.WARNING, "absl"):
        told = train(tmp_path, damaged, epochs * RECORDS // BATCH, max_bad_share=0.5).speed
    assert told["steps"] == epochs * RECORDS // BATCH
    counted = [line["quarantined"] for line in lines_of(tmp_path / "metrics.jsonl")]
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
    train(tmp_path, damaged, 3, max_bad_share=0.5)
    for line in lines_of(tmp_path / "metrics.jsonl"):
        assert math.isfinite(line["loss"])
    pairs = sum(line["pairs"] for line in lines_of(tmp_path / "metrics.jsonl"))
    assert pairs == (RECORDS - len(DAMAGED)) * 4


def test_more_damage_than_the_set_share_stops_the_run_with_one_line(
    damaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"damaged.*config\.loop\.max_bad_share") as caught:
        train(tmp_path, damaged, 1000, batch=24, max_bad_share=0.1)
    assert "\n" not in str(caught.value)
    # Judged as soon as 200 images were seen, and what was damaged is a sixth of them.
    assert "36 of 216 images" in str(caught.value)
    assert lines_of(tmp_path / "metrics.jsonl")[-1]["step"] < 10


@pytest.mark.parametrize(("bad", "stops"), [(20, False), (21, True)])
def test_share_is_judged_over_all_images_so_far(bad: int, stops: bool) -> None:
    quarantine = Quarantine(max_share=0.1)

    def batch(errors: int, rows: int) -> HostBatch:
        empty = ("",)
        reasons = ["torn"] * errors + [""] * (rows - errors)
        metas = tuple(RowMeta("k", empty, empty, empty, empty, reason) for reason in reasons)
        return HostBatch(None, metas)  # pyright: ignore

    # Before there are 200 images nothing is judged, however bad.
    quarantine.check(batch(bad, 50))
    quarantine.check(batch(0, 149))
    if stops:
        with pytest.raises(UserError):
            quarantine.check(batch(0, 1))
    else:
        quarantine.check(batch(0, 1))
    assert (quarantine.bad, quarantine.images) == (bad, 200)


def test_an_image_of_a_group_counts_as_one() -> None:
    quarantine = Quarantine(max_share=0.08)

    def row(*images: str, reasons: int = 0, error: str = "") -> HostBatch:
        left_out = ("torn",) * reasons
        meta = RowMeta("k", images, images, ("",), ("",) * len(images), error, left_out=left_out)
        return HostBatch(None, (meta,))  # pyright: ignore

    # An eighth of each row: its rows are all damaged, its images less than the share.
    for _ in range(40):
        quarantine.check(row(*"abcdefg", "", reasons=1))
        quarantine.check(row(*"abcdefgh"))
    assert (quarantine.bad, quarantine.images) == (40, 40 * 15)
    quarantine.check(row("", "", error="torn"))
    assert (quarantine.bad, quarantine.images) == (41, 601)
    # Of a single image, any number of its pairs.
    quarantine.check(row("a", reasons=5))
    assert (quarantine.bad, quarantine.images) == (42, 602)
    with pytest.raises(UserError, match=r"49 of 609 images are damaged"):
        quarantine.check(row(*"abcdefg", reasons=19))


def test_evaluation_and_saving_happen_when_due_and_at_the_end(sound: Path, tmp_path: Path) -> None:
    noting = Noting()
    state, _, scores = train(
        tmp_path, sound, 7, evaluations=(noting,), eval_every=3, save_every=2, log_every=0
    )
    assert [step for step, _ in noting.calls] == [3, 6, 7]
    assert noting.calls[-1][1] == float(state.params["liked"].sum())
    assert noting.calls[0][1] != noting.calls[1][1]
    assert scores == {"val/mIoU": 0.07}
    assert saved_steps(tmp_path) == {2, 3, 4, 6, 7}
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["val/mIoU"]) for line in lines] == [(3, 0.03), (6, 0.06), (7, 0.07)]


def test_an_evaluated_step_is_saved_with_its_scores_though_no_save_is_due(
    sound: Path, tmp_path: Path
) -> None:
    train(tmp_path, sound, 5, evaluations=(Noting(falling=True),), eval_every=2, save_every=0)
    assert saved_steps(tmp_path) == {2, 4, 5}
    _, stored = load_params(tmp_path, step="best")
    assert stored["progress"]["step"] == 2


def test_loss_falls(sound: Path, tmp_path: Path) -> None:
    train(tmp_path, sound, 40)
    losses = [line["loss"] for line in lines_of(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_speed_is_of_steps_that_are_done_and_not_of_the_one_that_compiles(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time stands still: what is left is the number of images.
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    trained = train(tmp_path, sound, 4)
    first, *others = lines_of(tmp_path / "metrics.jsonl")
    assert not {"images_per_second", "data_wait_share"} & first.keys()
    counted = [line["images_per_second"] / 1e9 for line in others]
    assert counted == pytest.approx([BATCH, 2 * BATCH, 3 * BATCH])
    assert trained.speed["images_per_second"] / 1e9 == pytest.approx(3 * BATCH)


def test_the_share_of_a_known_peak_is_told_beside_the_speed(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = dataclasses.replace(peaks.PEAKS[0], flops=1e6)
    monkeypatch.setattr(loop, "peak_of", {"cpu": peak}.get)
    # Of four steps that take no time, three count.
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    trained = train(tmp_path, sound, 4)
    told = [line.get("peak_share") for line in lines_of(tmp_path / "metrics.jsonl")]
    # The product of 16 x 16 cells with 4 expressions, over 3 colours, and its gradient of the words.
    flops = 2 * (2 * BATCH * 16 * 16 * 4 * 3)
    expected = [number * flops / 1e-9 / 1e6 for number in (1, 2, 3)]
    assert told[0] is None
    assert told[1:] == pytest.approx(expected)
    assert trained.speed["peak_share"] == pytest.approx(expected[-1])


def test_time_is_booked_over_a_run_that_is_stopped_and_goes_on(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "goodput.json"
    fields: dict[str, Any] = {"eval_every": 2, "evaluations": (Noting(),)}
    train(tmp_path, sound, 6, signal_at=3, ledger=Ledger(path), **fields)
    ledger = Ledger(path)
    train(tmp_path, sound, 6, ledger=ledger, **fields)
    told = ledger.summary()
    assert told["goodput/starts"] == 2
    assert all(told[f"goodput/{kind}"] > 0 for kind in KINDS)
    assert told["goodput/compilation"] > told["goodput/evaluation"]
    records = json.loads(path.read_text())["records"]
    assert [record["step"] for record in records] == [0, 2, 3, 4, 6]
    spent = [sum(record["seconds"].values()) for record in records]
    assert spent == sorted(spent)
    assert spent[-1] <= told["goodput/seconds"]


def test_loss_that_is_no_number_stops_with_one_line_and_saves_nothing(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> TrainState:
        bad = {path: np.full(s.shape, np.nan, s.dtype) for path, s in self.forward.shapes.items()}
        return self.create_from(jax.tree.map(jax.numpy.asarray, bad))

    monkeypatch.setattr(Trainer, "create", broken)
    with pytest.raises(UserError, match=r"nan at step 1.*config\.optim\.lr") as caught:
        train(tmp_path, sound, 5, save_every=1)
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
        train(tmp_path, sound, 5, save_every=1)
    assert saved_steps(tmp_path) == {1}
