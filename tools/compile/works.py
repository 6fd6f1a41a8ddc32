"""What an experiment compiles: the training step, the evaluations, or the functions of a predictor.

They are made by the same functions as in `main.py` and in a predictor, of abstract arrays.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from input_pipeline import mixtures
from input_pipeline.experiment_data import ExperimentData
from input_pipeline.making import blank_row
from refseg_jax import sharding
from refseg_jax.batch import Batch
from refseg_jax.errors import UserError
from refseg_jax.evaluation.every_class import ClassEvaluator
from refseg_jax.models import build_model
from refseg_jax.models.forward import Forward
from refseg_jax.models.graphs import GRAPHS, Graphs
from refseg_jax.naming import construct
from refseg_jax.prediction.predictor import decoded_at_once
from refseg_jax.reporting.writers import NullWriter
from refseg_jax.training.evaluations import Evaluations
from refseg_jax.training.objectives import build_objective
from refseg_jax.training.optim import OptimConfig
from refseg_jax.training.state import Trainer

Mode: TypeAlias = Literal["train", "eval", "predict"]
MODES: tuple[Mode, ...] = ("train", "eval", "predict")
#: Beginning of the name of a work that trains.
TRAINING = "training step"


@dataclasses.dataclass(frozen=True)
class Work:
    """A function to compile.

    Attributes:
        name: of the function, for people.
        rows: B, rows of a batch.
        field: the config's field of `rows`; `""` if no field changes it.
        unit: `rows` must be a multiple of it.
        shape: (images, pairs, tokens) of a row.
        state: bytes of parameters and optimiser on a device.
        mesh: the devices that run it.
        lower: lowers the function for a number of rows.
    """

    name: str
    rows: int
    field: str
    unit: int
    shape: tuple[int, int, int]
    state: int
    mesh: Mesh
    lower: Callable[[int], jax.stages.Lowered]


class Experiment:
    """What a config describes, with shapes instead of arrays.

    Attributes:
        config: the config.
        mesh: the devices.
    """

    def __init__(self, config: Any, devices: Sequence[Any]) -> None:
        """Builds the abstract model.

        Raises:
            UserError, ValueError: a field of the config is invalid, or the mesh does not fit.
        """
        self.config = config
        self.mesh: Mesh = sharding.make_mesh(
            construct(sharding.MeshConfig, config.mesh, what="mesh"), devices
        )
        self._forward = Forward(lambda rngs: build_model(config.model.to_dict(), rngs=rngs))
        model: Any = self._forward.model
        self._data = ExperimentData(config, model.image_size, model.mask_stride)
        self._params = sharding.abstract_params(self._forward.shapes, self.mesh)

    def works(self, mode: Mode) -> Iterator[Work]:
        """The functions of a mode; shapes that are the same are compiled once.

        Raises:
            UserError, ValueError: a field of the config is invalid.
        """
        yield from {"train": self._train, "eval": self._evaluate, "predict": self._predict}[mode]()

    def _train(self) -> Iterator[Work]:
        config = self.config
        optim = construct(OptimConfig, config.optim, what="config.optim")
        trainer = Trainer(
            forward=self._forward,
            objective=build_objective(config.objective),
            config=optim,
            # A number in the schedule. Without a dataset, epochs have no length.
            steps=config.steps or 1000,
            mesh=self.mesh,
            seed=config.seed,
        )
        state, step = trainer.abstract(), _lowerable(trainer.compile_step())
        unit = sharding.batch_shards(self.mesh) * optim.accumulation
        seen = set()
        for member in mixtures.read_members(config.mixture.to_dict(), self._data.settings):
            owner = f"config.mixture.{member.name}" if member.batch_size else "config"
            rows, row = member.batch_size or config.batch_size, blank_row(member.data)
            self._check_rows(rows, unit, f"{owner}.batch_size")
            if (rows, _shape(row)) not in seen:
                seen.add((rows, _shape(row)))
                yield Work(
                    name=" of ".join(filter(None, (TRAINING, member.name))),
                    rows=rows,
                    field=f"{owner}.batch_size",
                    unit=unit,
                    shape=_shape(row),
                    state=local_bytes(state),
                    mesh=self.mesh,
                    lower=lambda rows, row=row: step.lower(state, self._batch(row, rows)),
                )

    def _evaluate(self) -> Iterator[Work]:
        chosen = self.config.eval
        evaluations = Evaluations(
            self.config,
            forward=self._forward,
            mesh=self.mesh,
            data=self._data,
            writer=NullWriter(),
            workdir=Path(),
        )
        unit = sharding.batch_shards(self.mesh)
        self._check_rows(chosen.batch_size, unit, "config.eval.batch_size")
        # All have the same shapes, those of `config.eval`.
        evaluator = next(iter(evaluations.at("during", "final")), None)
        if evaluator is None:
            raise UserError(
                "config.evals: no entry is ever run, so that there is nothing to compile"
            )
        every_class = isinstance(evaluator, ClassEvaluator)
        blank = self._data.blank_label_row if every_class else self._data.blank_row
        row = blank(self.config.evals[evaluator.name])
        yield Work(
            name="evaluation",
            rows=chosen.batch_size,
            field="config.eval.batch_size",
            unit=unit,
            shape=_shape(row),
            state=local_bytes(self._params),
            mesh=self.mesh,
            lower=lambda rows: evaluator.lower(self._params, self._batch(row, rows)),
        )

    def _predict(self) -> Iterator[Work]:
        """A predictor runs on one device, and encodes one image (or group) at a time."""
        one = Mesh(self.mesh.devices.ravel()[:1].reshape(1, 1, 1), self.mesh.axis_names)
        here = SingleDeviceSharding(one.devices.item())
        graphs = Graphs(self._forward)
        length = self.config.data.context_length
        images = graphs.group_size or 1
        count = decoded_at_once(images)
        inputs = graphs.inputs(1, count, length, images)
        params = _laid_out(self._forward.shapes, here)
        for name in GRAPHS:
            yield Work(
                name=name,
                rows=1,
                field="",
                unit=1,
                shape=(images, count, length),
                state=local_bytes(params),
                mesh=one,
                # The parameters that it does not use lie on the device, too.
                lower=lambda rows, name=name: jax.jit(
                    getattr(graphs, name), keep_unused=True
                ).lower(params, *_laid_out(inputs[name], here)),
            )

    def _batch(self, row: Batch, rows: int) -> Batch:
        layout = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=layout), row
        )

    def _check_rows(self, rows: int, unit: int, field: str) -> None:
        if rows % unit:
            near = max(unit, rows // unit * unit)
            raise UserError(
                f"{field}={rows} does not divide into the {unit} pieces that the mesh "
                f"{dict(self.mesh.shape)} and accumulation cut it into; take e.g. --{field}={near}"
            )


def local_bytes(tree: Any) -> int:
    """Bytes of abstract arrays with layouts on each of their devices."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _shape(row: Batch) -> tuple[int, int, int]:
    return row.image.shape[1], row.text.shape[1], row.text.shape[2]


def _laid_out(tree: Any, layout: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
        dict(tree) if isinstance(tree, Mapping) else tree,
    )


def _lowerable(jitted: Any) -> Any:
    """The same function; its type does not tell that it is jitted."""
    return jitted
