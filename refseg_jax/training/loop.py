"""The one training loop; it knows neither models nor datasets.

The order within a step is fixed: evaluate, save, next(batch), step. The data iterator advances only
after the save, so the iterator state in a checkpoint points at the first batch that is not trained
on yet.
"""

import contextlib
import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from absl import logging

from refseg_jax import sharding
from refseg_jax.batch import HostBatch, Interrupted
from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.reporting.writers import MetricWriter, ProgressLine
from refseg_jax.training.clock import Clock
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.quarantine import Quarantine, TrainingError
from refseg_jax.training.state import Trainer, TrainState

#: Fields that must not change when a run resumes, beside all of `model` and `mixture`: they decide
#: what a checkpoint's parameters and its position in the data mean. `data.num_workers` is among them
#: because an iterator's state fits one number of workers only.
_FIXED = frozenset(
    {"seed", "batch_size", "mixture"}
    | {f"data.{name}" for name in ("dataset", "split", "sampling", "granularities")}
    | {f"data.{name}" for name in ("pairs", "images", "negatives", "anti_prefix", "num_workers")}
)


class Trained(NamedTuple):
    """Result of `Run.train`.

    Attributes:
        state: the state after the last step.
        speed: `train_seconds` (from the first batch to the last save, evaluations included, plus
            that of earlier calls of the run); of this call alone, `images_per_second` and
            `data_wait_share` (compilation, evaluation and saving do not count), the number of
            `steps` done, and `preempted` (0 or 1).
        scores: scores of the evaluations at the last step, `{}` if none ran.
    """

    state: TrainState
    speed: dict[str, float]
    scores: dict[str, float]


class Start(NamedTuple):
    """Where `Run.train` begins.

    Attributes:
        state: a fresh state, or that of a checkpoint.
        seconds: training time in seconds that the state has taken so far.
        unscored: whether the state is of a checkpoint without scores. If an evaluation is due at its
            step, which a preemption prevented, `Run.train` makes it first.
    """

    state: TrainState
    seconds: float = 0.0
    unscored: bool = False


class DataIterator(Protocol):
    """An endless iterator of batches whose position can be stored."""

    def __next__(self) -> HostBatch:
        """The next batch of this process; raises `Interrupted` if SIGTERM comes while it is awaited."""
        ...

    def get_state(self) -> Any:
        """The position, as JSON."""
        ...

    def set_state(self, state: Any) -> None:
        """Moves to a position from `get_state`."""
        ...


class Evaluation(Protocol):
    """Scores parameters; see `refseg_jax.evaluation.evaluator`."""

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """Name -> score, the same on every process; raises `Interrupted` as `DataIterator` does."""
        ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often the loop logs, evaluates and saves.

    Attributes:
        log_every: steps between two lines of metrics, 0 for none. In a mixture, a line also has a
            `<name>/loss` for each member: that of its newest batch since the line before.
        eval_every: steps between two evaluations; 0 evaluates after the last step only.
        save_every: steps between two checkpoints; 0 saves after the last step only. A step that was
            evaluated is always saved, so that its scores can rank the checkpoint.
        max_bad_share: share of records in [0, 1] that may be damaged before training stops.
        log_batches: whether to write the keys of every batch to `batches-<process>.jsonl`.
    """

    log_every: int = 20
    eval_every: int = 0
    save_every: int = 1000
    max_bad_share: float = 0.01
    log_batches: bool = False


class _Begun(NamedTuple):
    """A step that was dispatched; the devices may still be computing it.

    Attributes:
        step: number of updates done once it is finished.
        name: name of its batch, see `HostBatch`.
        images: images of this process that count for the rates.
        metrics: its metrics; reading them waits for the devices.
    """

    step: int
    name: str
    images: int
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run with everything it needs.

    Attributes:
        trainer: model, objective, optimiser and mesh.
        config: how often the loop logs, evaluates and saves.
        batches: this process's batches.
        evaluations: the evaluations during training.
        checkpointer, writer, progress, preemption: see their classes.
        resolved_config: the experiment config, stored in every checkpoint together with `progress`
            (`step`, `train_seconds`).
        workdir: folder of the run, with `checkpoints` and the log of batches.
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

    def resume(self, fresh: Callable[[], TrainState]) -> Start:
        """Starts at the newest sound checkpoint, or with a fresh state if there is no checkpoint.

        Moves the data iterator to the position of the checkpoint, and drops metrics of later steps.

        Args:
            fresh: makes the fresh state.

        Raises:
            UserError: the checkpoint is of another run or of a longer training, or no checkpoint is
                usable.
        """
        self._check_same_run()
        restored = self.checkpointer.restore_latest(self.trainer.abstract().as_dict())
        if restored is None:
            # A run that was killed before its first save begins again, and so do its metrics.
            self.writer.truncate_after(-1)
            return Start(fresh())
        if restored.step > self.trainer.steps:
            raise UserError(
                f"{self.workdir}: has been trained for {restored.step} steps, and {self.trainer.steps} "
                "are asked for; ask for as many, or take another --workdir"
            )
        self.batches.set_state(restored.data_state)
        self.writer.truncate_after(restored.step)
        logging.info("resumed at step %d", restored.step)
        progress = restored.config.get("progress", {})
        seconds = float(progress.get("train_seconds", 0.0))
        return Start(TrainState(**restored.state), seconds, unscored=not restored.scored)

    def train(self, start: Start) -> Trained:
        """Trains from `start` (see `resume`) to the last step, or until a preemption.

        Raises:
            TrainingError: the loss or the gradient is not finite, or too many records are damaged.
            UserError: a checkpoint or the metrics cannot be written.
        """
        compiled = self.trainer.compile_step()
        state = start.state
        first = step = int(state.step)
        total = self.trainer.steps
        clock = Clock(start.seconds)
        quarantine = Quarantine(self.config.max_bad_share)
        pending: deque[_Begun] = deque()
        losses: dict[str, float] = {}
        shapes: set[Any] = set()

        def settle(keep: int = 0) -> None:
            while len(pending) > keep:
                self._report(pending.popleft(), losses, clock, quarantine)

        while True:
            scores = None
            # Asked before an evaluation, which may take longer than the machine remains.
            preempted = self.preemption.reached()
            unscored = step > first or start.unscored
            if not preempted and unscored and _due(step, self.config.eval_every, total):
                settle()
                with clock.paused():
                    scores = self._evaluate(state, step)
                # A notice may have come during the evaluation.
                preempted = self.preemption.reached()
            due = preempted or scores or _due(step, self.config.save_every, total)
            if step > first and due:
                settle()
                with clock.paused():
                    self._save(state, step, scores, clock.elapsed())
            elif scores:
                self.checkpointer.add_scores(step, scores)
            if preempted or step >= total:
                break
            try:
                with clock.waiting():
                    host = next(self.batches)
            except Interrupted:
                continue  # To save the state, with the position before this batch.
            quarantine.check(host)
            self._log_batch(step, host)
            shape = (host.batch.image.shape, host.batch.text.shape)
            with contextlib.nullcontext() if shape in shapes else clock.paused():
                # A new shape compiles the step first, which is not training time.
                state, metrics = compiled(state, sharding.put_batch(host.batch, self.trainer.mesh))
            shapes.add(shape)
            step += 1
            images = len(host.meta) * host.batch.image.shape[1]
            if step == first + 1:
                # The first step is compilation, and does not count for the rates.
                jax.block_until_ready(metrics)
                clock.start_rates()
                images = 0
            pending.append(_Begun(step, host.name, images, metrics))
            # Reading the metrics of the step before keeps one step in flight and bounds the queue.
            settle(keep=1)
        settle()
        self.progress.close()
        with clock.paused():
            self.checkpointer.wait()
        speed = {**clock.summary(), "steps": step - first, "preempted": float(preempted)}
        return Trained(state, speed, scores or {})

    def _report(
        self, begun: _Begun, losses: dict[str, float], clock: Clock, quarantine: Quarantine
    ) -> None:
        step, name, images, metrics = begun
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        clock.count(images)
        # A gradient can be infinite where the loss is finite; either spoils the parameters.
        for key, words in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
            if not math.isfinite(values[key]):
                raise TrainingError(
                    f"{words} is {values[key]} at step {step}: lower config.optim.lr, or set "
                    "config.optim.clip_norm; checkpoints up to the last save are sound"
                )
        rates = clock.rates()
        if name:
            losses[f"{name}/loss"] = values["loss"]
        if self.config.log_every and step % self.config.log_every == 0:
            told = {**values, **losses, "quarantined": float(quarantine.bad)}
            if images:
                told |= rates
            self.writer.scalars(step, told)
            losses.clear()
        self.progress.update(step, loss=values["loss"], quarantined=quarantine.bad, **rates)

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float] | None:
        """Scores of all evaluations, or `None` if SIGTERM came while one of them waited for a batch."""
        scores: dict[str, float] = {}
        try:
            for evaluation in self.evaluations:
                scores |= evaluation.evaluate(state.eval_params, step)
        except Interrupted:
            return None
        if scores:
            self.writer.scalars(step, scores)
        return scores

    def _save(
        self, state: TrainState, step: int, scores: dict[str, float] | None, seconds: float
    ) -> None:
        progress = {"step": step, "train_seconds": seconds}
        self.checkpointer.save(
            step,
            state.as_dict(),
            data_state=self.batches.get_state(),
            config={**self.resolved_config, "progress": progress},
            metrics=scores,
        )

    def _check_same_run(self) -> None:
        """Compares `_FIXED`, `model` and `mixture` with the config of the newest checkpoint.

        Only fields that both have are compared, so that a checkpoint from before a field was added
        can still be resumed.

        Raises:
            UserError: a field differs; the message names it.
        """
        folder = self.workdir / "checkpoints"
        newest = _newest_config(folder)
        if not newest:
            return
        stored, ours = _fields(newest), _fields(json.loads(json.dumps(self.resolved_config)))
        for name in sorted(stored.keys() & ours.keys()):
            fixed = name in _FIXED or name.startswith(("model.", "mixture."))
            if fixed and stored[name] != ours[name]:
                raise UserError(
                    f"{folder}: trained with config.{name}={stored[name]!r}, now it is "
                    f"{ours[name]!r}: give the same value to resume, or another --workdir"
                )

    def _log_batch(self, step: int, host: HostBatch) -> None:
        if self.config.log_batches:
            path = self.workdir / f"batches-{jax.process_index()}.jsonl"
            keys = [[meta.key, *meta.pair_ids] for meta in host.meta]
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "rows": keys}) + "\n")


def _newest_config(folder: Path) -> dict[str, Any]:
    """Config of the newest checkpoint with a readable record, `{}` if there is none."""
    for checkpoint in reversed(checkpoint_folder.steps(folder).values()):
        try:
            return checkpoint_folder.read_record(checkpoint).config
        except checkpoint_folder.DamagedError:
            # Restoring it logs the damage.
            continue
    return {}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, and the sorted names of the mixture's members as `mixture`."""
    return {**_flat(config), "mixture": sorted(config.get("mixture", {}))}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every field."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = prefix + name
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _due(step: int, every: int, total: int) -> bool:
    return step == total or bool(every and step % every == 0)
