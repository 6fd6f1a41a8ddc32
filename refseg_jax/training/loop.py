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
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.errors import UserError
from refseg_jax.reporting.writers import MetricWriter, ProgressLine
from refseg_jax.training.clock import Clock
from refseg_jax.training.goodput import Ledger
from refseg_jax.training.peaks import peak_of
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.profiling import Profile, check_steps
from refseg_jax.training.quarantine import Quarantine, TrainingError
from refseg_jax.training.same_run import check_same_run
from refseg_jax.training.state import Trainer, TrainState


class Trained(NamedTuple):
    """Result of `Run.train`.

    Attributes:
        state: the state after the last step.
        speed: `train_seconds` (from the first batch to the last save, evaluations included, plus
            that of earlier calls of the run); of this call alone, `images_per_second`,
            `data_wait_share` and, where the devices' peak is known, `peak_share` (compilation,
            evaluation and saving do not count), the number of `steps` done, and `preempted` (0 or 1).
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
        max_bad_share: share of images in [0, 1], each image of a group by itself, that may be damaged
            before training stops.
        log_batches: whether to write the keys of every batch to `batches-<process>.jsonl`.
        profile_steps: the first and the last step (counted from 1) of a trace for xprof, which goes to
            `<workdir>/profile`; `()` for none. See `refseg_jax.training.profiling`.
        compilation_cache: folder in which all that is compiled is kept, so that another start compiles
            nothing; `""` for none. See `refseg_jax.training.compilations`.
        max_silence: with several processes, seconds without a sign of life of one of them after which
            the others end. JAX's default. Long compilations and waits are no silence.

    Raises:
        UserError: `profile_steps` is not a first and a last step.
    """

    log_every: int = 20
    eval_every: int = 0
    save_every: int = 1000
    max_bad_share: float = 0.01
    log_batches: bool = False
    profile_steps: tuple[int, ...] = ()
    compilation_cache: str = ""
    max_silence: int = 100

    def __post_init__(self) -> None:
        check_steps(self.profile_steps)


class _Begun(NamedTuple):
    """A step that was dispatched; the devices may still be computing it.

    Attributes:
        step: number of updates done once it is finished.
        name: name of its batch, see `HostBatch`.
        images, flops: images of this process, and arithmetic of all, that count for the rates.
        metrics: its metrics; reading them waits for the devices.
    """

    step: int
    name: str
    images: int
    flops: float
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
        workdir: folder of the run, with the log of batches and `profile`.
        ledger: where the run's wall time is booked.

    Raises:
        UserError: `config.profile_steps` are beyond the end of the training.
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
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    def __post_init__(self) -> None:
        check_steps(self.config.profile_steps, self.trainer.steps)

    def resume(self, fresh: Callable[[], TrainState]) -> Start:
        """Starts at the newest sound checkpoint, or with a fresh state if there is no checkpoint.

        Moves the data iterator to the position of the checkpoint, and drops metrics of later steps.

        Args:
            fresh: makes the fresh state.

        Raises:
            UserError: the checkpoint is of another run or of a longer training, or no checkpoint is
                usable.
        """
        check_same_run(self.checkpointer.directory, self.resolved_config)
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
        state = start.state
        first = step = int(state.step)
        total = self.trainer.steps
        self.ledger.begin(step, idle=step >= total)
        peak = self._peak()
        clock = Clock(start.seconds, ledger=self.ledger, peak=peak)
        steps = _Steps(self, clock, counting=bool(peak))
        with Profile(self.workdir / "profile", self.config.profile_steps) as profile:
            while True:
                scores = None
                # Asked before an evaluation, which may take longer than the machine remains.
                preempted = self.preemption.reached()
                unscored = step > first or start.unscored
                if not preempted and unscored and _due(step, self.config.eval_every, total):
                    steps.settle()
                    with clock.paused("evaluation"):
                        scores = self._evaluate(state, step)
                    # A notice may have come during the evaluation.
                    preempted = self.preemption.reached()
                due = preempted or scores or _due(step, self.config.save_every, total)
                if step > first and due:
                    steps.settle()
                    with clock.paused("saving"):
                        self._save(state, step, scores, clock.elapsed())
                elif scores:
                    self.checkpointer.add_scores(step, scores)
                    self.ledger.record(step)
                if preempted or step >= total:
                    break
                with profile.step(step + 1, steps.settle):
                    try:
                        with clock.waiting():
                            host = next(self.batches)
                    except Interrupted:
                        continue  # To save the state, with the position before this batch.
                    state = steps.make(state, step, host, first=step == first)
                    step += 1
        steps.settle()
        self.progress.close()
        with clock.paused("saving"):
            self.checkpointer.wait()
        speed = {**clock.summary(), "steps": step - first, "preempted": float(preempted)}
        return Trained(state, speed, scores or {})

    def _peak(self) -> float:
        """Arithmetic that all devices together can do, in FLOP/s; 0 if it is not known."""
        devices = self.trainer.mesh.devices
        peak = peak_of(devices.flat[0].device_kind)
        return peak.flops * devices.size if peak else 0.0

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
        self.ledger.record(step)


class _Steps:
    """The steps of one call of `Run.train`; the newest may be in flight."""

    def __init__(self, run: Run, clock: Clock, *, counting: bool) -> None:
        """Compiles nothing yet; `counting`: whether to count the arithmetic of the steps."""
        self._run, self._clock, self._counting = run, clock, counting
        self._compiled = run.trainer.compile_step()
        self._quarantine = Quarantine(run.config.max_bad_share)
        self._pending: deque[_Begun] = deque()
        self._losses: dict[str, float] = {}
        #: Shapes of a batch whose step is compiled -> its arithmetic.
        self._flops: dict[Any, float] = {}

    def make(self, state: TrainState, step: int, host: HostBatch, *, first: bool) -> TrainState:
        """Begins a step, and ends the one before.

        Args:
            state: is donated.
            step: number of updates done.
            host: the batch.
            first: whether this is the first step of the call.
        """
        trainer = self._run.trainer
        self._quarantine.check(host)
        self._log_batch(step, host)
        shape = (host.batch.image.shape, host.batch.text.shape)
        new = shape not in self._flops
        # A new shape compiles the step first, which is not training time.
        with self._clock.paused("compilation") if new else contextlib.nullcontext():
            batch = sharding.put_batch(host.batch, trainer.mesh)
            if new:
                self._flops[shape] = trainer.step_flops(batch) if self._counting else 0.0
            state, metrics = self._compiled(state, batch)
        images, flops = len(host.meta) * host.batch.image.shape[1], self._flops[shape]
        if first:
            # The first step is compilation, and does not count for the rates.
            jax.block_until_ready(metrics)
            self._clock.start_rates()
            images, flops = 0, 0.0
        self._pending.append(_Begun(step + 1, host.name, images, flops, metrics))
        # Reading the metrics of the step before keeps one step in flight and bounds the queue.
        self.settle(keep=1)
        return state

    def settle(self, keep: int = 0) -> None:
        """Waits for all steps but the newest `keep`, and reports them."""
        while len(self._pending) > keep:
            self._report(self._pending.popleft())

    def _report(self, begun: _Begun) -> None:
        step, name, images, flops, metrics = begun
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._clock.count(images, flops)
        # A gradient can be infinite where the loss is finite; either spoils the parameters.
        for key, words in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
            if not math.isfinite(values[key]):
                raise TrainingError(
                    f"{words} is {values[key]} at step {step}: lower config.optim.lr, or set "
                    "config.optim.clip_norm; checkpoints up to the last save are sound"
                )
        rates = self._clock.rates()
        if name:
            self._losses[f"{name}/loss"] = values["loss"]
        run, bad = self._run, self._quarantine.bad
        if run.config.log_every and step % run.config.log_every == 0:
            told = {**values, **self._losses, "quarantined": float(bad)}
            if images:
                told |= rates
            run.writer.scalars(step, told)
            self._losses.clear()
        run.progress.update(step, loss=values["loss"], quarantined=bad, **rates)

    def _log_batch(self, step: int, host: HostBatch) -> None:
        if self._run.config.log_batches:
            path = self._run.workdir / f"batches-{jax.process_index()}.jsonl"
            keys = [[meta.key, *meta.pair_ids] for meta in host.meta]
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "rows": keys}) + "\n")


def _due(step: int, every: int, total: int) -> bool:
    return step == total or bool(every and step % every == 0)
