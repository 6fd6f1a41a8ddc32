"""An opened weight file of a tower or of a whole model, with the table and the config that fit it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import jax
from flax import nnx

from refseg_jax.models.forward import Forward
from refseg_jax.weights import loader
from refseg_jax.weights.loader import Plan, Weights
from refseg_jax.weights.table import Table

C = TypeVar("C")
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Opened(Generic[C, M]):
    """An opened weight file.

    Attributes:
        weights: its arrays.
        table: the table for its names.
        config: config of the model, with the sizes in the file.
        build: makes the model, `build(config, rngs=rngs)`.
    """

    weights: Weights
    table: Table
    config: C
    build: Callable[..., M]

    @property
    def forward(self) -> Forward[M]:
        """The model as pure functions of its parameters."""
        return Forward(lambda rngs: self.build(self.config, rngs=rngs))

    def plan(self, target: Mapping[str, jax.ShapeDtypeStruct]) -> Plan:
        """`loader.plan` for the whole model.

        Args:
            target: parameter -> shape and dtype.

        Raises:
            UserError: the weights do not fit.
        """
        return loader.plan(self.table, self.weights.shapes, target, name=self.weights.name)
