"""The one training loop; it knows neither models nor datasets.

The order within a step is fixed: evaluate, save, next(batch), step. The data iterator only advances
after the save, so a checkpoint's iterator state is exactly the next batch that has not been seen.
"""

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import logging

from refseg_jax import sharding
from refseg_jax.batch import HostBatch
from refseg_jax.checkpointer import Checkpointer
from refseg_jax.clock import Clock
from refseg_jax.errors import UserError
from refseg_jax.preemption import Preemption
from refseg_jax.train_state import Trainer, TrainState
from refseg_jax.writers import MetricWriter, ProgressLine


class TrainingError(UserError):
    """Training cannot go on; the message says why and what to do."""


class DataIterator(Protocol):
    """An endless iterator of batches whose position can be stored."""

    def __next__(self) -> HostBatch:
        """The next batch of this process."""
        ...

    def get_state(self) -> Any:
        """The position, as JSON."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes to a position."""
        ...


class Evaluation(Protocol):
    """Scores of some parameters; see `refseg_jax.evaluators`."""

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """Flat scores, the same on every process."""
        ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often things happen, in steps; 0 is never.

    Attributes:
        log_every: between two lines of metrics.
        eval_every: between two evaluations; there is one after the last step in any case.
        save_every: between two checkpoints; likewise.
        max_bad_share: share of records that may be damaged before training stops.
        log_batches: write the keys of every batch to `batches-<process>.jsonl`.
    """

    log_every: int = 20
    eval_every: int = 0
    save_every: int = 1000
    max_bad_share: float = 0.01
    log_batches: bool = False


@dataclasses.dataclass
class Quarantine:
    """Counts damaged records and stops a run that meets too many of them."""

    max_share: float
    rows: int = 0
    bad: int = 0

    #: A share is not judged before this many rows have been seen.
    grace: int = 200

    def check(self, host: HostBatch) -> None:
        """Counts one batch.

        Raises:
            TrainingError: more than the allowed share of all rows so far were damaged.
        """
        self.rows += len(host.meta)
        for meta in host.meta:
            if meta.error:
                self.bad += 1
                logging.warning("quarantined row %s: %s", meta.key, meta.error)
        if self.rows >= self.grace and self.bad > self.max_share * self.rows:
            raise TrainingError(
                f"{self.bad} of {self.rows} records are damaged, more than the allowed "
                f"{self.max_share:.2%}: mend the dataset (the log names each of them) or raise "
                "config.loop.max_bad_share"
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run with everything it needs.

    Attributes:
        trainer: model, objective, optimiser and mesh.
        config: how often things happen.
        batches: this process's rows.
        evaluations: run every `eval_every` steps.
        checkpointer, writer, progress, preemption: see their modules.
        resolved_config: stored in every checkpoint.
        workdir: for the log of batches.
    """

    trainer: Trainer
    config: LoopConfig
    batches: DataIterator
    evaluations: Sequence[Evaluation]
    checkpointer: Checkpointer
    writer: MetricWriter
    progress: ProgressLine
    preemption: Preemption
    resolved_config: dict[str, Any]
    workdir: Path

    def resume(self, fresh: Callable[[], TrainState]) -> TrainState:
        """The newest sound checkpoint, with the data iterator moved to it, else a fresh state."""
        restored = self.checkpointer.restore_latest(self.trainer.abstract().as_dict())
        if restored is None:
            # What a run that was killed before its first save has told is told again.
            self.writer.truncate_after(-1)
            return fresh()
        self.batches.set_state(restored.data_state)
        self.writer.truncate_after(restored.step)
        logging.info("resumed at step %d", restored.step)
        return TrainState(**restored.state)

    def train(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Trains to the last step.

        Returns:
            The final state, and of this call: `train_seconds` (everything from the first batch to
            the last save), `images_per_second` and `data_wait_share` (without compilation,
            evaluation and saving), `steps` done, and `preempted` (0 or 1).
        """
        compiled = self.trainer.compile_step()
        first = step = int(state.step)
        total = self.trainer.steps
        clock = Clock()
        quarantine = Quarantine(self.config.max_bad_share)
        pending: deque[tuple[int, dict[str, jax.Array]]] = deque()

        def settle(keep: int = 0) -> None:
            while len(pending) > keep:
                self._report(*pending.popleft(), clock, quarantine)

        while True:
            scores = None
            if step > first and _due(step, self.config.eval_every, total):
                settle()
                with clock.paused():
                    scores = self._evaluate(state, step)
            preempted = self.preemption.reached(step)
            if step > first and (preempted or _due(step, self.config.save_every, total)):
                settle()
                with clock.paused():
                    self._save(state, step, scores)
            if preempted or step >= total:
                break
            with clock.waiting():
                host = next(self.batches)
            quarantine.check(host)
            self._log_batch(step, host)
            state, metrics = compiled(state, sharding.put_batch(host.batch, self.trainer.mesh))
            step += 1
            pending.append((step, metrics))
            if step == first + 1:
                jax.block_until_ready(metrics)
                clock.start_rates()
            else:
                clock.count(rows=len(host.meta), images=host.batch.image.shape[1])
            # Reading the step before last keeps one step in flight, and bounds the queue.
            settle(keep=1)
        settle()
        self.progress.close()
        self.checkpointer.wait()
        return state, {**clock.summary(), "steps": step - first, "preempted": float(preempted)}

    def _report(
        self, step: int, metrics: dict[str, jax.Array], clock: Clock, quarantine: Quarantine
    ) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {step}: lower config.optim.lr, or set "
                "config.optim.clip_norm; checkpoints up to the last save are sound"
            )
        rates = clock.rates()
        if self.config.log_every and step % self.config.log_every == 0:
            self.writer.scalars(step, {**values, **rates, "quarantined": float(quarantine.bad)})
        self.progress.update(step, loss=values["loss"], quarantined=quarantine.bad, **rates)

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        for evaluation in self.evaluations:
            scores |= evaluation.evaluate(state.eval_params, step)
        if scores:
            self.writer.scalars(step, scores)
        return scores

    def _save(self, state: TrainState, step: int, scores: dict[str, float] | None) -> None:
        self.checkpointer.save(
            step,
            state.as_dict(),
            data_state=self.batches.get_state(),
            config=self.resolved_config,
            metrics=scores,
        )

    def _log_batch(self, step: int, host: HostBatch) -> None:
        if self.config.log_batches:
            path = self.workdir / f"batches-{jax.process_index()}.jsonl"
            keys = [[meta.key, *meta.pair_ids] for meta in host.meta]
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "rows": keys}) + "\n")


def _due(step: int, every: int, total: int) -> bool:
    return step == total or bool(every and step % every == 0)
