"""Trains or evaluates one experiment.

    python main.py --config=configs/scenes_unires.py --workdir=runs/scenes_unires
    python main.py --config=... --workdir=... --config.optim.lr=1e-4       (any field)
    python main.py --config=... --workdir=... --mode=eval                  (newest checkpoint, or
                                              config.init.checkpoint where the workdir has none)
    python main.py --config=... --workdir=... --distributed                (several processes)

The same command again resumes.
"""

import functools
import logging as python_logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline import leakage, mixtures, oracle, pipeline
from input_pipeline.mixtures import Mixture
from input_pipeline.sources import DatasetError, RecordSource
from refseg_jax import sharding
from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import workdir
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import OtherParametersError
from refseg_jax.errors import UserError
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.evaluation.protocols import Protocol, build_protocols
from refseg_jax.exports.source import load_start
from refseg_jax.models import build_model, difference
from refseg_jax.models.forward import Forward, Params
from refseg_jax.naming import construct
from refseg_jax.reporting import parameter_table, pictures
from refseg_jax.reporting import tables as report
from refseg_jax.reporting.writers import ProgressLine, make_writer
from refseg_jax.text.tokenizers import check_tokenizer
from refseg_jax.training.loop import LoopConfig, Run, Trained
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.state import Trainer, TrainState
from refseg_jax.weights.start import published_towers

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (and then evaluate), or evaluate.")
flags.DEFINE_bool("distributed", False, "Join the other processes through jax.distributed.")

#: Of `summary.json`: what `Run.train` measures.
SPEED = ("train_seconds", "images_per_second", "data_wait_share", "steps", "preempted")
#: When an entry of `config.evals` is run.
MOMENTS = ("during", "final", "never")

flags.mark_flags_as_required(["config", "workdir"])


class Experiment:
    """What a config describes, built; no parameter is allocated before `train` or `evaluate`."""

    def __init__(self, config: Any, workdir: Path) -> None:
        self.config = config
        self.workdir = workdir
        self.mesh = sharding.make_mesh(construct(sharding.MeshConfig, config.mesh, what="mesh"))
        self.forward = Forward(lambda rngs: build_model(config.model.to_dict(), rngs=rngs))
        model: Any = self.forward.model
        check_tokenizer(config.data.tokenizer, config.data.context_length, model.config)
        self.writer = make_writer(workdir)
        #: The step whose evaluations leave dumps and pages of pictures.
        self.last_step = 0

    def train(self) -> None:
        """Trains (or resumes), then runs every evaluation and writes the report."""
        config = self.config
        mixture = self._mixture()
        rows = mixture.rows_per_epoch
        if bool(config.steps) == bool(config.epochs):
            raise UserError(
                f"config.steps={config.steps} and config.epochs={config.epochs:g}: set one and leave "
                "the other at 0, e.g. --config.steps=1000 --config.epochs=0.0"
            )
        self.check_evaluations()
        trainer = Trainer(
            forward=self.forward,
            objective=build_objective(config.objective),
            config=construct(OptimConfig, config.optim, what="config.optim"),
            steps=config.steps or round(config.epochs * rows / config.batch_size),
            mesh=self.mesh,
            seed=config.seed,
        )
        self.last_step = trainer.steps
        logging.info("parameters:\n%s", parameter_table.summary(self.forward.shapes))
        logging.info(
            "%d steps of %d of %d rows; the first is compiled",
            trainer.steps,
            config.batch_size,
            rows,
        )
        trained = self._run(trainer, mixture)
        if trained.speed["preempted"]:
            logging.info("saved and stopped on SIGTERM; the same command resumes")
            return
        speed = trained.speed
        if not speed["steps"]:
            logging.info("nothing is left to train: all %d steps are done", trainer.steps)
            # Nothing was trained in this call: the earlier one knows how long it took.
            earlier = report.read_summary(self._summary)
            speed = {**speed, **{name: earlier[name] for name in SPEED if name in earlier}}
        self.report(trained.state.eval_params, trainer.steps, summary=speed, known=trained.scores)

    def _mixture(self) -> Mixture:
        """What is trained on; raises a `UserError` if the model does not take its batches."""
        config = self.config
        members = mixtures.read_members(config.mixture.to_dict(), self.data)
        begun = checkpoint_folder.steps(self.workdir / "checkpoints")
        known = leakage.read_report(self._left_out) if begun else {}
        mixture = mixtures.open_mixture(members, known)
        model: Any = self.forward.model
        headed = absent = False
        for rows in mixture.rows:
            data = rows.config
            try:
                check_tokenizer(data.tokenizer, data.context_length, model.config)
                output = jax.eval_shape(self.forward.apply, self.forward.shapes, rows.padding.batch)
            except (UserError, ValueError, TypeError) as error:
                field = f"config.mixture.{rows.name}" if rows.name else "config.data"
                shape = (data.images, data.pairs, data.context_length)
                raise UserError(
                    f"{field}: the model does not take rows of (images, pairs, context_length) = "
                    f"{shape}: {error}"
                ) from error
            headed = output.present_logits is not None
            absent |= "none" in data.granularities
        if headed and not absent:
            logging.warning("no granularities with 'none': nothing teaches the presence head a no")
        return mixture

    def _run(self, trainer: Trainer, mixture: Mixture) -> Trained:
        config = self.config
        checkpointer = Checkpointer(self.workdir / "checkpoints", **config.checkpoint.to_dict())
        with Preemption() as preemption:
            run = Run(
                trainer=trainer,
                config=construct(LoopConfig, config.loop, what="config.loop"),
                batches=mixture.batches(
                    batch_size=config.batch_size, seed=config.seed, **_process()
                ),
                evaluations=self.evaluators("during"),
                checkpointer=checkpointer,
                writer=self.writer,
                progress=ProgressLine(trainer.steps),
                preemption=preemption,
                resolved_config=config.to_dict(),
                workdir=self.workdir,
            )
            start = run.resume(functools.partial(self._fresh, trainer))
            if jax.process_index() == 0:
                # Not before: a command that cannot go on says nothing of the run that is there.
                (self.workdir / "config.json").write_text(config.to_json(indent=1) + "\n")
                parameter_table.write_table(self.forward.shapes, self.workdir / "parameters.txt")
                if mixture.exclusions:
                    leakage.write_report(self._left_out, mixture.exclusions)
            trained = run.train(start)
        checkpointer.close()
        return trained

    def evaluate(self) -> None:
        """Runs every evaluation on the workdir's newest checkpoint.

        Where there is none yet, on `config.init.checkpoint`.
        """
        self.check_evaluations()
        own = checkpoint_folder.steps(self.workdir / "checkpoints")
        source = self.config.init.checkpoint
        if own or not source:
            source = self.workdir
        params, step = self._load(source)
        logging.info("scoring the checkpoint of step %d in %s", step, source)
        self.last_step = step
        self.report(params, step, summary=report.read_summary(self._summary), known={})

    def check_evaluations(self) -> None:
        """Raises a `UserError` if an evaluation cannot run: better now than after the training."""
        rows, shards = self.config.eval.batch_size, sharding.batch_shards(self.mesh)
        _ = self._protocols
        for name, entry in self.config.evals.items():
            field = f"config.evals.{name}"
            cure = f"or leave it out: --{field}.when=never"
            if entry.when not in MOMENTS:
                raise UserError(f"{field}.when={entry.when!r}: choose one of {', '.join(MOMENTS)}")
            if entry.when == "never":
                continue
            if rows % shards:
                raise UserError(
                    f"config.eval.batch_size={rows} does not divide over the {shards} pieces that "
                    f"config.mesh cuts a batch into: choose a multiple, {cure}"
                )
            self._source(entry.dataset, entry.split, field, cure)
            pipeline.check_eval(self._eval_data(entry))
        if self.config.eval.oracle:
            cure = "or leave it out: --config.eval.oracle="
            self._source("", self.config.eval.oracle, "config.eval.oracle", cure)

    def report(
        self, params: Params, step: int, *, summary: dict[str, float], known: dict[str, float]
    ) -> None:
        """All evaluations; the tables, the pages of pictures and `summary.json`.

        Args:
            params: what is scored.
            step: updates done.
            summary: what `summary.json` holds beside the scores and the step.
            known: scores of the evaluations `during` training at this step, if they were run.
        """
        before = report.read_summary(self._summary)
        scores: dict[str, float] = {}
        for evaluator in self.evaluators(*(("final",) if known else ("during", "final"))):
            scores |= evaluator.evaluate(params, step)
        scores |= self._oracle_scores()
        if scores.items() - before.items():
            # A finished run that is started again has nothing new to tell.
            self.writer.scalars(step, scores)
        scores = {**known, **scores}
        if jax.process_index() == 0:
            if before.get("step", step) != step:
                # Scores of another step are no longer the run's.
                summary = {name: summary[name] for name in SPEED if name in summary}
            report.write_summary(self._summary, {**summary, **scores, "step": step})
            prefixes = [entry.prefix for entry in self.config.evals.values()]
            print(report.full_text(scores, prefixes, self._protocols, self.config.eval.threshold))
            print(f"summary: {self._summary}")

    def data(self, **changes: Any) -> pipeline.PipelineConfig:
        """The input pipeline's config, with the sizes that the model asks for."""
        model: Any = self.forward.model
        sizes = {"image_size": model.image_size, "mask_stride": model.mask_stride}
        fields = {**self.config.data.to_dict(), **sizes, **changes}
        return construct(pipeline.PipelineConfig, fields, what="config.data")

    def evaluators(self, *moments: str) -> list[Evaluator]:
        """The evaluations of `config.evals` whose `when` is one of `moments`."""
        return [
            self._evaluator(name, entry)
            for name, entry in self.config.evals.items()
            if entry.when in moments
        ]

    @functools.cached_property
    def _protocols(self) -> tuple[Protocol, ...]:
        chosen = self.config.eval
        return build_protocols(chosen.protocol, min_pixels=chosen.min_pixels)

    @property
    def _summary(self) -> Path:
        return self.workdir / "summary.json"

    @property
    def _left_out(self) -> Path:
        return self.workdir / "leakage.json"

    def _source(self, dataset: str, split: str, field: str, cure: str) -> RecordSource:
        """A split; an error names the field that asks for it, and the cure."""
        data = self.config.data
        try:
            return RecordSource(data.data_dir, dataset or data.dataset, split)
        except DatasetError as error:
            raise UserError(f"{field}: {error}; {cure}") from error

    def _oracle_scores(self) -> dict[str, float]:
        data, split = self.config.data, self.config.eval.oracle
        if not split:
            return {}
        source = RecordSource(data.data_dir, data.dataset, split)
        known = oracle.oracle_scores(source, tuple(data.granularities))
        return {f"oracle/{name}": value for name, value in known.items()}

    def _evaluator(self, name: str, entry: Any) -> Evaluator:
        chosen = self.config.eval
        model: Any = self.forward.model
        return Evaluator(
            name=name,
            forward=self.forward,
            batches=functools.partial(
                pipeline.eval_batches,
                self._eval_data(entry),
                batch_size=chosen.batch_size,
                **_process(),
            ),
            mesh=self.mesh,
            mask_stride=model.mask_stride,
            canvas=tuple(chosen.canvas),
            threshold=chosen.threshold,
            prefix=entry.prefix,
            pictures=chosen.pictures,
            show=functools.partial(self._show, name),
            dump=self.workdir / chosen.dump / name if chosen.dump else None,
            dump_at=self.last_step,
            protocols=self._protocols,
        )

    def _eval_data(self, entry: Any) -> pipeline.PipelineConfig:
        chosen, data = self.config.eval, self.config.data
        return self.data(
            dataset=entry.dataset or data.dataset,
            split=entry.split,
            granularities=tuple(entry.granularities or data.granularities),
            shuffled_text=entry.shuffled,
            pairs=chosen.pairs,
            canvas=tuple(chosen.canvas),
        )

    def _show(self, name: str, step: int, shown: list[pictures.Picture]) -> None:
        panels = {f"{name}/{number}": pictures.panel(p) for number, p in enumerate(shown)}
        self.writer.images(step, panels)
        if step == self.last_step:
            path = self.workdir / f"pictures-{name}.png"
            pictures.page(shown, path)
            print(f"pictures: {path}")

    def _fresh(self, trainer: Trainer) -> TrainState:
        init = self.config.init
        towers = published_towers(init, self.forward.model, self._abstract_params())
        if towers is not None:
            return trainer.create_from(towers)
        if init.checkpoint:
            return trainer.create_from(self._load(init.checkpoint)[0])
        return trainer.create()

    def _load(self, source: str | Path) -> tuple[Params, int]:
        """Parameters of a run, checkpoint or export, and the updates that they have seen."""
        try:
            return load_start(source, self._abstract_params())
        except OtherParametersError as error:
            why = difference(error.model, self.config.model.to_dict())
            raise UserError(f"{error}: {why}" if why else str(error)) from None

    def _abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        return sharding.abstract_params(self.forward.shapes, self.mesh)


def main(_: list[str]) -> None:
    """The command line."""
    # JAX tells of every backend that is not there.
    python_logging.getLogger("jax._src.xla_bridge").setLevel(python_logging.WARNING)
    try:
        if FLAGS.distributed:
            _join()
        first = jax.process_index() == 0
        logging.set_verbosity(logging.INFO if first else logging.WARNING)
        with workdir.opened(Path(FLAGS.workdir), first=first):
            experiment = Experiment(FLAGS.config, Path(FLAGS.workdir))
            experiment.train() if FLAGS.mode == "train" else experiment.evaluate()
            experiment.writer.close()
    except (UserError, ValueError, OSError) as error:
        if not isinstance(error, UserError) and os.environ.get("REFSEG_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parsing; an unknown flag, field, preset or config file is one line too."""
    try:
        rest = FLAGS(arguments)
        # That a file could not be loaded is only told when a field is read.
        getattr(FLAGS.config, "steps", None)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        if os.environ.get("REFSEG_TRACEBACK"):
            raise
        print(f"error: {_told(error, arguments)}", file=sys.stderr)
        sys.exit(1)
    return rest


def _told(error: Exception, arguments: list[str]) -> str:
    """One line for what absl or the config raised; what names no flag gets one in front."""
    reason: Any = error
    while isinstance(reason, (AttributeError, KeyError)) and reason.args:
        reason = reason.args[0]
    first, *more = str(reason).strip().splitlines() or [type(error).__name__]
    # Where a config file raises, absl's message is the whole traceback.
    last = " ".join((more or [first])[-1].split())
    if isinstance(error, flags.Error) and not more:
        return last
    missing = first.strip("'")
    paths = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    blamed = [path for path in paths if missing in path.split(".")[1:]]
    if blamed and not more:
        last = f"there is no field {first}; the config file and `configs/common.py` have them all"
    # Of several with that name any may be meant.
    return f"{blamed[0] if len(blamed) == 1 else '--config'}: {last}"


def _join() -> None:
    """Finds the other processes: by the environment's three variables, or as the cluster tells."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    if address and count and number:
        jax.distributed.initialize(address, int(count), int(number))
    else:
        jax.distributed.initialize()


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
