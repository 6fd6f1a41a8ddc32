"""Runs the evaluations of an experiment, and writes their scores and pictures to the workdir."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import logging
from jax.sharding import Mesh

from refseg_jax import sharding
from refseg_jax.batch import ClassList, HostBatch
from refseg_jax.errors import UserError
from refseg_jax.evaluation import protocols
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.evaluation.every_class import ClassEvaluator
from refseg_jax.evaluation.picture import Picture
from refseg_jax.models.forward import Forward, Params
from refseg_jax.models.graphs import group_size_of
from refseg_jax.reporting import pictures, tables
from refseg_jax.reporting.writers import MetricWriter
from refseg_jax.training import goodput
from refseg_jax.training.goodput import Ledger

#: Values of `when` of an entry of `config.evals`, see `configs.common.evaluation`.
MOMENTS = ("during", "final", "never")
#: Entries of `summary.json` that training measures. They stay when another step is evaluated.
SPEED = (
    *("train_seconds", "images_per_second", "data_wait_share", "peak_share", "steps", "preempted"),
    *goodput.NAMES,
)


class EvaluationData(Protocol):
    """The part of the input pipeline that evaluations use; `entry` is a value of `config.evals`."""

    def check(self, entry: Any, field: str, cure: str) -> None:
        """Raises a `UserError` that names `field` and `cure` if the entry's split cannot be read."""
        ...

    def check_oracle(self) -> None:
        """Raises a `UserError` if the split that the oracle answers cannot be read."""
        ...

    def batches(self, entry: Any) -> Iterable[HostBatch]:
        """This process's batches of the entry's split."""
        ...

    def classes(self, entry: Any, field: str) -> ClassList:
        """The dataset's classes; raises a `UserError` if they or the entry's split cannot be read."""
        ...

    def label_batches(self, entry: Any) -> Iterable[HostBatch]:
        """This process's batches of all images of the entry's split, with the class of each pixel."""
        ...

    def oracle(self) -> Mapping[str, float]:
        """Scores of an oracle that knows the target's category but not the words; may be empty."""
        ...


class Evaluations:
    """Runs the entries of `config.evals` and reports their scores.

    Attributes:
        config: config of the experiment; `eval` says how to evaluate, `evals` on what.
        mesh: the devices.
        last_step: the step whose evaluations write predictions and pages of pictures.
    """

    def __init__(
        self,
        config: Any,
        *,
        forward: Forward,
        mesh: Mesh,
        data: EvaluationData,
        writer: MetricWriter,
        workdir: Path,
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.last_step = 0
        self._forward = forward
        self._data = data
        self._writer = writer
        self._workdir = workdir

    @property
    def summary(self) -> Path:
        """The file of the run's last scores."""
        return self._workdir / "summary.json"

    def check(self) -> None:
        """Checks, before training, that each evaluation can run.

        Raises:
            UserError: one line that names the field and the cure.
        """
        rows, shards = self.config.eval.batch_size, sharding.batch_shards(self.mesh)
        threshold = self.config.eval.threshold
        if not 0.0 < threshold < 1.0:
            raise UserError(
                f"config.eval.threshold={threshold:g}: give a probability between 0 and 1"
            )
        _ = self._protocols
        # Building them checks the fields that they share.
        _ = self.at(*MOMENTS)
        for name, entry in self.config.evals.items():
            field = f"config.evals.{name}"
            cure = f"or leave it out: --{field}.when=never"
            if entry.when not in MOMENTS:
                raise UserError(f"{field}.when={entry.when!r}: choose one of {', '.join(MOMENTS)}")
            if entry.when == "never":
                continue
            if rows < 1 or rows % shards:
                raise UserError(
                    f"config.eval.batch_size={rows} does not divide over the {shards} pieces that "
                    f"config.mesh cuts a batch into: choose a multiple, {cure}"
                )
            if self._every_class is None:
                self._data.check(entry, field, cure)
            elif entry.shuffled:
                raise UserError(
                    f"{field}.shuffled: every_class has no words of other targets; {cure[3:]}"
                )
            elif self.config.eval.pairs < 1:
                raise UserError(
                    f"config.eval.pairs={self.config.eval.pairs}: give the number of classes that are "
                    "in memory at a time, e.g. 8"
                )
            else:
                self._data.classes(entry, field)
        self._data.check_oracle()

    def at(self, *moments: str) -> list[Evaluator | ClassEvaluator]:
        """The evaluations whose `when` is one of `moments`."""
        make = self._evaluator if self._every_class is None else self._class_evaluator
        return [
            make(name, entry) for name, entry in self.config.evals.items() if entry.when in moments
        ]

    def report(
        self,
        params: Params,
        step: int,
        *,
        speed: Mapping[str, float] | None = None,
        known: Mapping[str, float] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Runs all evaluations; writes pages of pictures and `summary.json`, prints the tables.

        Args:
            params: path -> parameter, to score.
            step: number of updates that made them.
            speed: measurements of training for the summary (`Trained.speed`); `None` keeps those in
                the file.
            known: scores of the evaluations `during` training at this step; these do not run again.
                `None` or empty if they have not run.
            ledger: what the run's wall time went to, for the summary and a line at the end.
        """
        ledger = ledger or Ledger()
        before = tables.read_summary(self.summary)
        summary = dict(before if speed is None else speed)
        if not summary.get("steps"):
            # Nothing was trained in this call: the earlier one knows how long it took.
            summary |= {name: before[name] for name in SPEED if name in before}
        scores: dict[str, float] = {}
        with ledger.spending("evaluation"):
            for evaluator in self.at(*(("final",) if known else ("during", "final"))):
                scores |= evaluator.evaluate(params, step)
            scores |= self._data.oracle()
        if scores.items() - before.items():
            # Starting a finished run again gives the same scores, which need no second line.
            self._writer.scalars(step, scores)
        scores = {**(known or {}), **scores}
        if jax.process_index() == 0:
            if before.get("step", step) != step:
                # Scores of another step do not belong into this summary.
                summary = {name: summary[name] for name in SPEED if name in summary}
            summary |= ledger.summary()
            tables.write_summary(self.summary, {**summary, **scores, "step": step})
            prefixes = [entry.prefix for entry in self.config.evals.values()]
            threshold = self.config.eval.threshold
            print(tables.full_text(scores, prefixes, self._protocols, threshold))
            print(f"summary: {self.summary}")
            ledger.record(step, finished=True)
            if line := ledger.line():
                print(line)

    @property
    def _protocols(self) -> tuple[protocols.Protocol, ...]:
        chosen = self.config.eval
        built = protocols.build_protocols(
            chosen.protocol, min_pixels=chosen.min_pixels, background=chosen.background
        )
        every = any(isinstance(one, protocols.EveryClass) for one in built)
        if every and len(built) > 1:
            raise UserError(
                f"config.eval.protocol={chosen.protocol!r}: every_class asks other questions than the "
                "rest; run it alone, --config.eval.protocol=every_class"
            )
        if every and group_size_of(self._forward.model) is not None:
            raise UserError(
                "config.eval.protocol='every_class' asks one image for every class, and the model "
                "answers groups of images for one text: take grd, gres or sod"
            )
        return built

    @property
    def _every_class(self) -> protocols.EveryClass | None:
        """The protocol that asks every image for every class, if it is chosen."""
        for chosen in self._protocols:
            if isinstance(chosen, protocols.EveryClass):
                return chosen
        return None

    def _evaluator(self, name: str, entry: Any) -> Evaluator:
        return Evaluator(
            batches=functools.partial(self._data.batches, entry),
            pictures=self.config.eval.pictures,
            show=functools.partial(self._show, name),
            protocols=self._protocols,
            **self._shared(name, entry),
        )

    def _class_evaluator(self, name: str, entry: Any) -> ClassEvaluator:
        assert self._every_class is not None
        return ClassEvaluator(
            classes=functools.partial(self._data.classes, entry, f"config.evals.{name}"),
            batches=functools.partial(self._data.label_batches, entry),
            protocol=self._every_class,
            classes_at_once=self.config.eval.pairs,
            **self._shared(name, entry),
        )

    def _shared(self, name: str, entry: Any) -> dict[str, Any]:
        """Fields that all evaluators have."""
        chosen = self.config.eval
        model: Any = self._forward.model
        return {
            "name": name,
            "forward": self._forward,
            "mesh": self.mesh,
            "mask_stride": model.mask_stride,
            "canvas": tuple(chosen.canvas),
            "threshold": chosen.threshold,
            "resample": chosen.resample,
            "prefix": entry.prefix,
            "dump": self._workdir / chosen.dump / name if chosen.dump else None,
            "dump_at": self.last_step,
        }

    def _show(self, name: str, step: int, shown: list[Picture]) -> None:
        panels = {f"{name}/{number}": pictures.panel(p) for number, p in enumerate(shown)}
        self._writer.images(step, panels)
        if step == self.last_step:
            path = self._workdir / f"pictures-{name}.png"
            pictures.page(shown, path)
            print(f"pictures: {path}")


def tell_rows(model: Any, images: int) -> None:
    """Warns if a model of groups is trained in rows of another size than it predicts in.

    Args:
        model: any model.
        images: `config.data.images`, of which the rows of evaluations are made, too.
    """
    size = group_size_of(model)
    if size not in (None, images):
        logging.warning(
            "config.data.images=%d and config.model.group_size=%d: the run trains and scores rows of "
            "%d, and its predictions will have rows of %d; give both the same value",
            *(images, size, images, size),
        )
