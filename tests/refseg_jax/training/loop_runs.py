"""Runs of the training loop with the smallest model and data."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from input_pipeline.mixtures import Member, Mixture, open_mixture
from refseg_jax.batch import HostBatch, Interrupted
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.reporting.writers import FileWriter, ProgressLine
from refseg_jax.training.goodput import Ledger
from refseg_jax.training.loop import LoopConfig, Run, Trained
from refseg_jax.training.objectives import MaskObjective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.state import Trainer
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.training.tiny_run import colour_forward, data_config, one_device

RECORDS, BATCH = 12, 4


def build_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixture: a data folder with the tiny dataset."""
    folder = tmp_path_factory.mktemp("sound")
    build_tiny_dataset(folder, {"train": RECORDS})
    return folder


class Signalling:
    """An iterator of batches that sends SIGTERM to this process just before batch number `at`.

    If it hangs, that batch does not come, and the wait for it is given up.
    """

    def __init__(self, batches: Any, at: int, *, hangs: bool = False) -> None:
        self.batches, self.left, self.hangs = batches, at, hangs

    def __next__(self) -> HostBatch:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
            if self.hangs:
                raise Interrupted
        return next(self.batches)

    def get_state(self) -> Any:
        return self.batches.get_state()

    def set_state(self, state: Any) -> None:
        self.batches.set_state(state)


class Noting:
    """An evaluation that records its steps and parameters.

    At step `signal_at`, SIGTERM comes during the evaluation, which ends there if it hangs. With
    `falling`, the first score is best.
    """

    def __init__(self, signal_at: int = 0, *, falling: bool = False, hangs: bool = False) -> None:
        self.calls: list[tuple[int, float]] = []
        self.signal_at, self.falling, self.hangs = signal_at, falling, hangs

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        self.calls.append((step, float(params["liked"].sum())))
        if step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
            if self.hangs:
                raise Interrupted
        return {"val/mIoU": 1 / step if self.falling else step / 100}


def trainer_of(steps: int) -> Trainer:
    config = OptimConfig(lr=0.1, warmup=0.0)
    return Trainer(colour_forward(), MaskObjective(), config, steps, one_device())


def train(
    workdir: Path,
    data_dir: Path,
    steps: int,
    *,
    signal_at: int = 0,
    hangs: bool = False,
    evaluations: tuple[Any, ...] = (),
    batch: int = BATCH,
    config: dict[str, Any] | None = None,
    mixture: Mixture | None = None,
    trainer: Trainer | None = None,
    ledger: Ledger | None = None,
    **loop: Any,
) -> Trained:
    """Trains as main.py does, with the smallest model (unless another is given) and data."""
    mixture = mixture or open_mixture([Member("", data_config(data_dir, "train"))])
    batches = mixture.batches(batch_size=batch, seed=1)
    trainer = trainer or trainer_of(steps)
    checkpointer = Checkpointer(workdir / "checkpoints", keep_latest=9, best_metric="val/mIoU")
    writer = FileWriter(workdir)
    try:
        with Preemption() as preemption:
            run = Run(
                trainer=trainer,
                config=LoopConfig(**{"log_every": 1, **loop}),
                batches=Signalling(batches, signal_at, hangs=hangs),
                evaluations=evaluations,
                checkpointer=checkpointer,
                writer=writer,
                progress=ProgressLine(steps),
                preemption=preemption,
                resolved_config=config or {},
                workdir=workdir,
                ledger=ledger or Ledger(),
            )
            return run.train(run.resume(trainer.create))
    finally:
        checkpointer.close()
        writer.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved_steps(workdir: Path) -> set[int]:
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
