"""Trains or evaluates one experiment.

    python main.py --config=configs/scenes_unires.py --workdir=runs/scenes_unires
    python main.py --config=... --workdir=... --config.optim.lr=1e-4       (any field)
    python main.py --config=... --workdir=... --mode=eval                  (newest checkpoint, or
                                              config.init.checkpoint where the workdir has none)
    python main.py --config=... --workdir=... --distributed                (several processes)

The same command again resumes. After SIGTERM, the status is 143; that of a finished run is 0.
"""

import functools
import logging as python_logging
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline import leakage, mixtures, workers
from input_pipeline.experiment_data import ExperimentData
from input_pipeline.facts.published import licences
from input_pipeline.mixtures import Mixture
from refseg_jax import sharding
from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints import workdir
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.cli import experiment_flags, processes
from refseg_jax.errors import UserError
from refseg_jax.exports.source import load_start, recorded_licences
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward, Params
from refseg_jax.naming import construct
from refseg_jax.reporting import parameter_table
from refseg_jax.reporting.writers import ProgressLine, make_writer
from refseg_jax.storage import buckets
from refseg_jax.text.tokenizers import check_tokenizer
from refseg_jax.training.compilations import keep_compilations
from refseg_jax.training.evaluations import Evaluations, tell_rows
from refseg_jax.training.goodput import Ledger
from refseg_jax.training.loop import LoopConfig, Run, Trained
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.preemption import Preemption
from refseg_jax.training.state import Trainer, TrainState, check_accumulation
from refseg_jax.weights.start import check_start, published_towers

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (and then evaluate), or evaluate.")
flags.DEFINE_bool("distributed", False, "Join the other processes through jax.distributed.")
flags.mark_flags_as_required(["config", "workdir"])


class Experiment:
    """What a config describes, built; no parameter is allocated before `train` or `evaluate`."""

    def __init__(self, config: Any, workdir: Path, ledger: Ledger | None = None) -> None:
        self.config, self.workdir, self.ledger = config, workdir, ledger or Ledger()
        self.kept = buckets.located(config.checkpoint.dir or workdir)
        self._left_out = self.kept / "leakage.json"
        self.mesh = sharding.make_mesh(construct(sharding.MeshConfig, config.mesh, what="mesh"))
        self.forward = Forward(lambda rngs: build_model(config.model.to_dict(), rngs=rngs))
        model: Any = self.forward.model
        data = config.data
        check_tokenizer(data.tokenizer, data.context_length, model.config, data.anti_prefix)
        self.writer = make_writer(workdir)
        self.preemption = Preemption()
        stop = self.preemption.noticed
        self.data = ExperimentData(
            config, model.image_size, model.mask_stride, stop=stop, **sharding.this_process()
        )
        self.evaluations = Evaluations(
            config,
            forward=self.forward,
            mesh=self.mesh,
            data=self.data,
            writer=self.writer,
            workdir=workdir,
        )

    def train(self) -> bool:
        """Trains or resumes, evaluates and writes the report; false if SIGTERM has ended it before."""
        config = self.config
        optim = construct(OptimConfig, config.optim, what="config.optim")
        check_accumulation(self.forward, optim)
        mixture = self._mixture()
        if bool(config.steps) == bool(config.epochs):
            raise UserError(
                f"config.steps={config.steps} and config.epochs={config.epochs:g}: set one and leave "
                "the other at 0, e.g. --config.steps=1000 --config.epochs=0.0"
            )
        check_start(config.init, self.forward.model)
        tell_rows(self.forward.model, config.data.images)
        self.evaluations.check()
        trainer = Trainer(
            forward=self.forward,
            objective=build_objective(config.objective),
            config=optim,
            steps=config.steps or mixture.steps_of(config.epochs, config.batch_size),
            mesh=self.mesh,
            seed=config.seed,
        )
        steps = self.evaluations.last_step = trainer.steps
        logging.info("parameters:\n%s", parameter_table.summary(*self._variables))
        told = "%d steps of %d of %d rows; the first is compiled"
        logging.info(told, steps, config.batch_size, mixture.rows_per_epoch)
        trained = self._run(trainer, mixture)
        speed = trained.speed
        # SIGTERM may also have come during the last save, and would end each evaluation's first wait.
        if speed["preempted"] or self.preemption.noticed():
            logging.info("saved and stopped on SIGTERM; the same command resumes")
            logging.info(self.ledger.line())
            return False
        if not speed["steps"]:
            logging.info("nothing is left to train: all %d steps are done", steps)
        params, scores = trained.state.eval_params, trained.scores
        self.evaluations.report(params, steps, speed=speed, known=scores, ledger=self.ledger)
        return True

    def evaluate(self) -> bool:
        """Runs every evaluation on the workdir's newest checkpoint.

        Where there is none yet, on `config.init.checkpoint`.
        """
        self.evaluations.check()
        own = checkpoint_folder.steps(self.kept / "checkpoints")
        source = (not own and self.config.init.checkpoint) or self.kept
        params, step = self._load(source, scored=True)
        logging.info("scoring the checkpoint of step %d in %s", step, source)
        self.evaluations.last_step = step
        self.evaluations.report(params, step)
        return True

    def _mixture(self) -> Mixture:
        """The training data; raises a `UserError` if the model does not take its batches."""
        members = mixtures.read_members(self.config.mixture.to_dict(), self.data.settings)
        begun = checkpoint_folder.steps(self.kept / "checkpoints")
        known = leakage.read_report(self._left_out) if begun else {}
        mixture = mixtures.open_mixture(members, known)
        model: Any = self.forward.model
        headed = absent = False
        for rows in mixture.rows:
            data = rows.config
            try:
                check_tokenizer(data.tokenizer, data.context_length, model.config, data.anti_prefix)
                output = jax.eval_shape(self.forward.apply, self.forward.shapes, rows.padding.batch)
            except (UserError, ValueError, TypeError) as error:
                field = f"config.mixture.{rows.name}" if rows.name else "config.data"
                shape = (data.images, data.pairs, data.context_length)
                raise UserError(
                    f"{field}: the model does not take rows of (images, pairs, context_length) = "
                    f"{shape}: {error}"
                ) from error
            headed = output.present_logits is not None
            absent |= not rows.table.present.all()
        if headed and not absent:
            logging.warning("every expression has a target: nothing teaches the presence head a no")
        return mixture

    def _run(self, trainer: Trainer, mixture: Mixture) -> Trained:
        config = self.config
        begun = checkpoint_folder.steps(self.kept / "checkpoints")
        earlier = self.kept if begun else config.init.checkpoint
        terms = recorded_licences(earlier) if earlier else {}
        terms |= licences(rows.config.dataset for rows in mixture.rows)
        keep = {name: value for name, value in config.checkpoint.items() if name != "dir"}
        checkpointer = Checkpointer(self.kept / "checkpoints", **keep)
        with self.preemption as preemption:
            run = Run(
                trainer=trainer,
                config=construct(LoopConfig, config.loop, what="config.loop"),
                batches=mixture.batches(
                    batch_size=config.batch_size,
                    seed=config.seed,
                    stop=preemption.noticed,
                    **sharding.this_process(),
                ),
                evaluations=self.evaluations.at("during"),
                checkpointer=checkpointer,
                writer=self.writer,
                progress=ProgressLine(trainer.steps),
                preemption=preemption,
                resolved_config={**config.to_dict(), "licences": terms},
                workdir=self.workdir,
                ledger=self.ledger,
            )
            start = run.resume(functools.partial(self._fresh, trainer))
            if jax.process_index() == 0:
                # Not before: a command that cannot go on says nothing of the run that is there.
                (self.workdir / "config.json").write_text(config.to_json(indent=1) + "\n")
                parameter_table.write_table(*self._variables, self.workdir / "parameters.txt")
                if mixture.exclusions:
                    leakage.write_report(self._left_out, mixture.exclusions)
            trained = run.train(start)
        checkpointer.close()
        return trained

    @property
    def _variables(self) -> tuple[dict[str, jax.ShapeDtypeStruct], frozenset[str]]:
        return self.forward.shapes, self.forward.statistics

    def _fresh(self, trainer: Trainer) -> TrainState:
        init = self.config.init
        target = sharding.abstract_params(self.forward.shapes, self.mesh)
        towers = published_towers(init, self.forward.model, target)
        if towers is not None:
            return trainer.create_from(towers)
        if init.checkpoint:
            return trainer.create_from(self._load(init.checkpoint)[0])
        return trainer.create()

    def _load(self, source: str | Path, scored: bool = False) -> tuple[Params, int]:
        """Parameters of a run, checkpoint or export, and the updates that they have seen."""
        target = sharding.abstract_params(self.forward.shapes, self.mesh)
        return load_start(source, target, self.config.to_dict(), scored=scored)


def main(_: list[str]) -> None:
    """The command line."""
    # JAX tells of every backend that is not there.
    python_logging.getLogger("jax._src.xla_bridge").setLevel(python_logging.WARNING)
    config, folder = FLAGS.config, Path(FLAGS.workdir)
    try:
        with processes.joined(FLAGS.distributed, config.loop.max_silence):
            keep_compilations(config.loop.compilation_cache)
            first = jax.process_index() == 0
            logging.set_verbosity(logging.INFO if first else logging.WARNING)
            processes.check_same_config(config.to_dict())
            with (
                workdir.opened(folder, first=first),
                Ledger.of_process(folder) as ledger,
                buckets.told(),
            ):
                experiment = Experiment(config, folder, ledger)
                finished = experiment.train() if FLAGS.mode == "train" else experiment.evaluate()
                experiment.writer.close()
    except (UserError, ValueError, OSError, KeyboardInterrupt) as error:
        workers.leave(processes.told(error))
    workers.leave(0 if finished else 143)


if __name__ == "__main__":
    app.run(main, flags_parser=experiment_flags.parse)
