"""One objective per system: what its training minimises, as sums and weights per term."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refseg_jax.batch import Array, Batch, Objective, SegOutput, Term
from refseg_jax.naming import from_mapping
from refseg_jax.training import losses


@dataclasses.dataclass(frozen=True)
class MaskObjective:
    """Cross entropy per mask cell, and Dice per pair: UniRES.

    The loss of UniRES is not stated in the paper. Its lineage (CRIS, section 3.4 and its code)
    minimises the mean binary cross entropy at the mask's stride, hence the default; Dice is offered
    because small parts are a small share of the cells.

    Attributes:
        cross_entropy: coefficient of the cross entropy, averaged over cells and pairs.
        dice: coefficient of the Dice loss, averaged over pairs.
        presence: coefficient of the presence head's term, ReLA's (see `presence_term`); for a model
            that has the head.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
    presence: float = 0.0

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> dict[str, Term]:
        """Sums over valid pairs; see `refseg_jax.batch.Objective`.

        Raises:
            ValueError: `presence` is set for a model without the head, or not set for one with it.
        """
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
        if self.presence:
            terms["presence"] = presence_term(output, batch, self.presence)
        elif output.present_logits is not None:
            # Its answers would clear masks at random.
            raise ValueError(
                "config.model.presence_head is set, but nothing trains it; set "
                "config.objective.presence (e.g. 0.5), or config.model.presence_head=False"
            )
        return terms


#: ReLA's weights of background (and "there is something") and foreground ("there is nothing").
_BACKGROUND, _FOREGROUND = 0.9, 1.1


@dataclasses.dataclass(frozen=True)
class RelationObjective:
    """ReLA (Liu, Ding and Jiang 2023, section 4.4; weights and coefficients from its public code).

        5 [ CE(mask) + 0.1 CE(minimap) + 0.1 CE(no target) + dice * Dice(mask) ]

    Each cross entropy is of two classes with weights 0.9 and 1.1 and is divided by the sum of the
    weights of its targets. Pairs without a target count in all three, as background.

    Attributes:
        scale: of the whole.
        minimap, presence: shares of the second and the third term; `presence` may be 0 only for a
            model without the head.
        dice: share of the Dice loss, averaged over the pairs with a target; ReLA has none. From random
            weights it teaches small targets in far fewer steps.
    """

    scale: float = 5.0
    minimap: float = 0.1
    presence: float = 0.1
    dice: float = 0.0

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> dict[str, Term]:
        """Sums over valid pairs; reads `aux["minimap_logits"]`, f32 `[B, N, K, side, side]`.

        Raises:
            ValueError: `presence` is set for a model without the head, or 0 for one with it.
        """
        del progress
        valid = jnp.asarray(batch.valid, jnp.float32)
        masks = jnp.asarray(jnp.asarray(batch.mask) >= 128, jnp.float32)
        cells = output.aux["minimap_logits"]
        terms = {"mask": _weighted(output.mask_logits, masks, valid, self.scale)}
        if self.dice:
            targeted = jnp.asarray(batch.valid & batch.present, jnp.float32)
            overlaps = losses.dice(jnp.asarray(output.mask_logits, jnp.float32), masks)
            terms["dice"] = Term(
                (overlaps * targeted).sum(), targeted.sum(), self.scale * self.dice
            )
        if self.minimap:
            target = losses.minimap_target(masks, cells.shape[-1])
            terms["minimap"] = _weighted(cells, target, valid, self.scale * self.minimap)
        if self.presence:
            terms["presence"] = presence_term(output, batch, self.scale * self.presence)
        elif output.present_logits is not None:
            raise ValueError(
                "config.objective.presence=0 leaves the presence head untrained, and its answers "
                "would clear masks at random; set config.objective.presence (0.1 is ReLA's), and "
                "config.eval.min_pixels to score without the head"
            )
        return terms


def presence_term(output: SegOutput, batch: Batch, coefficient: float) -> Term:
    """The weighted cross entropy of "is there anything at all", ReLA's no-target term.

    Raises:
        ValueError: the model has no presence head.
    """
    if output.present_logits is None:
        raise ValueError(
            "objective.presence is set, but the model has no presence head; set "
            "config.model.presence_head, or config.objective.presence=0"
        )
    absent = 1.0 - jnp.asarray(batch.present, jnp.float32)
    valid = jnp.asarray(batch.valid, jnp.float32)
    return _weighted(-jnp.asarray(output.present_logits), absent, valid, coefficient)


def _weighted(logits: Array, targets: jax.Array, valid: jax.Array, coefficient: float) -> Term:
    """Cross entropy with ReLA's class weights, over the cells of valid pairs.

    Args:
        logits, targets: `[B, N, K, ...]`, what follows are a pair's cells.
        valid: f32 `[B, N, K]`.
        coefficient: of the term.
    """
    weights = losses.class_weights(targets, _BACKGROUND, _FOREGROUND)
    values = losses.sigmoid_cross_entropy(jnp.asarray(logits, jnp.float32), targets)
    loss, weight = values * weights, weights
    # Axis by axis, and pairs last: one f32 sum over thousands of cells is some 1e-6 off, and by
    # something else for each layout of the devices.
    for _ in range(targets.ndim - valid.ndim):
        loss, weight = loss.mean(-1), weight.mean(-1)
    return Term((loss * valid).sum(), (weight * valid).sum(), coefficient)


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "mask": MaskObjective,
    "relation": RelationObjective,
}


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective of `config["name"]` with the rest of `config` as its fields.

    Raises:
        ValueError: an unknown name or field; the message names the nearest.
    """
    return from_mapping(_OBJECTIVES, config, what="objective")
