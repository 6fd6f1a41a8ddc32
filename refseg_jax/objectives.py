"""One objective per system: what its training minimises, as sums and weights per term."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from refseg_jax import losses
from refseg_jax.batch import Array, Batch, Objective, SegOutput, Term
from refseg_jax.naming import from_mapping


@dataclasses.dataclass(frozen=True)
class MaskObjective:
    """Cross entropy per mask cell, and Dice per pair: UniRES.

    The loss of UniRES is not stated in the paper. Its lineage (CRIS, section 3.4 and its code)
    minimises the mean binary cross entropy at the mask's stride, hence the default; Dice is offered
    because small parts are a small share of the cells.

    Attributes:
        cross_entropy: coefficient of the cross entropy, averaged over cells and pairs.
        dice: coefficient of the Dice loss, averaged over pairs.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> dict[str, Term]:
        """Sums over valid pairs; see `refseg_jax.batch.Objective`."""
        del progress
        logits = jnp.asarray(output.mask_logits, jnp.float32)
        targets = jnp.asarray(batch.mask, jnp.float32) / 255.0
        valid = jnp.asarray(batch.valid, jnp.float32)
        pairs = valid.sum()
        terms = {}
        if self.cross_entropy:
            cells = losses.sigmoid_cross_entropy(logits, targets).mean(axis=(-2, -1))
            terms["cross_entropy"] = Term((cells * valid).sum(), pairs, self.cross_entropy)
        if self.dice:
            overlaps = losses.dice(logits, targets)
            terms["dice"] = Term((overlaps * valid).sum(), pairs, self.dice)
        return terms


_OBJECTIVES: dict[str, Callable[..., Objective]] = {"mask": MaskObjective}


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective of `config["name"]` with the rest of `config` as its fields.

    Raises:
        ValueError: an unknown name or field; the message names the nearest.
    """
    return from_mapping(_OBJECTIVES, config, what="objective")
