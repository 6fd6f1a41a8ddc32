"""The training objective of each system, as sums and weights of named terms."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refseg_jax.batch import Array, Batch, Objective, SegOutput, Term
from refseg_jax.naming import from_mapping, unknown
from refseg_jax.training import losses


@dataclasses.dataclass(frozen=True)
class MaskObjective:
    """UniRES's objective: binary cross entropy of the mask cells, and Dice as an option.

    The loss is not stated in the paper. The default is that of CRIS's code, from which UniRES
    descends: the mean binary cross entropy at the stride of the masks. Dice is an option because
    small parts are a small share of the cells.

    Attributes:
        cross_entropy: coefficient of the cross entropy, averaged over cells and pairs.
        dice: coefficient of the Dice loss, averaged over pairs.
        presence: coefficient of `presence_term`; positive if the model has a presence head, else 0.
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
            # The answers of an untrained head would clear masks at random.
            raise ValueError(
                "config.model.presence_head is set, but nothing trains it; set "
                "config.objective.presence (e.g. 0.5), or config.model.presence_head=False"
            )
        return terms


@dataclasses.dataclass(frozen=True)
class PromptObjective:
    """UniLSeg's objective: cross entropy and Dice of the masks after each layer of the language path.

        cross_entropy CE(mask) + dice Dice(mask)
            + earlier * sum over earlier layers [ cross_entropy CE(mask) + dice Dice(mask) ]
            + presence CE(no target)

    Liu et al. 2024 (section 4.1) name cross entropy and Dice. Not stated in the paper: their weights,
    which are equal here; and deep supervision, which the public code has an option for (`aux_loss`).
    All layers weigh the same by default, as in DETR.

    Attributes:
        cross_entropy: coefficient of the cross entropy, averaged over cells and pairs.
        dice: coefficient of the Dice loss, averaged over pairs.
        earlier: weight of each earlier layer, relative to the last; 0 trains the last one alone.
        presence: coefficient of `presence_term`; positive if the model has a presence head, else 0.
    """

    cross_entropy: float = 1.0
    dice: float = 1.0
    earlier: float = 1.0
    presence: float = 0.0

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> dict[str, Term]:
        """Sums over valid pairs; reads `aux["layer_logits"]`, f32 `[layers, B, N, K, h, w]`.

        The last of the layers is `mask_logits`. Terms of the others begin with `earlier/`.

        Raises:
            ValueError: `presence` is set for a model without the head, or not set for one with it.
        """
        masks = MaskObjective(self.cross_entropy, self.dice, self.presence)
        terms = masks(output, batch, progress)
        earlier = jnp.asarray(output.aux["layer_logits"])[:-1]
        if not (self.earlier and len(earlier)):
            return terms
        found = [
            MaskObjective(self.cross_entropy, self.dice)(SegOutput(logits), batch, progress)
            for logits in earlier
        ]
        for name, (first, *others) in ((n, [t[n] for t in found]) for n in found[0]):
            total = sum((term.sum for term in others), start=first.sum)
            terms[f"earlier/{name}"] = Term(total, first.weight, self.earlier * first.coefficient)
        return terms


#: ReLA's class weights: of background and "present", and of foreground and "absent".
_BACKGROUND, _FOREGROUND = 0.9, 1.1


@dataclasses.dataclass(frozen=True)
class RelationObjective:
    """ReLA's objective (Liu, Ding and Jiang 2023, section 4.1, "Outputs and Loss").

        scale [ CE(mask) + minimap CE(minimap) + presence CE(no target) + dice Dice(mask) ]

    The paper names the three cross entropies only; their weights and coefficients are those of its
    public code. Each has two classes with weights 0.9 and 1.1, and is divided by the sum of its
    targets' weights. Pairs without a target count in all three: for both maps, they are all
    background.

    Attributes:
        scale: factor of all terms.
        minimap: coefficient of the minimap's cross entropy; 0 leaves it out.
        presence: coefficient of `presence_term`; positive if the model has a presence head, else 0.
        dice: coefficient of the Dice loss, averaged over the pairs with a target. ReLA has none; from
            random weights, Dice teaches small targets in far fewer steps.
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


#: How the weight of the triplet term follows training, see `GroupObjective.schedule`.
SCHEDULES = ("growing", "constant")


@dataclasses.dataclass(frozen=True)
class GroupObjective:
    """GRSer's objective (Wu et al. 2023, section 3.4, equations 5 and 6).

        CE(mask, Y) + mirror CE(mask of the anti-expression, 1 - Y) + triplet (t / T) L_tri

    Both cross entropies count positive pairs alone (the note under equation 6): a negative image is
    told by its distances, not by an empty mask. The triplet loss counts all valid pairs:

        positive: max(d_pos - d_neg + margin, 0)        negative: max(d_neg - d_pos + margin, 0)

    Attributes:
        mirror: lambda of equation 6, coefficient of the mirror cross entropy; 0 leaves it out. Its value
            is not stated in the paper; 1 gives target and background the same weight.
        mirror_negatives: whether negative pairs count in the mirror cross entropy, with a mask that is 1
            everywhere: all of such an image is background. The paper says that they do not.
        margin: m of the triplet loss (1, section 5.2). That of the decision is a field of the model.
        triplet: coefficient of the triplet loss at the end of training; 0 leaves it out.
        schedule: `growing`: the coefficient is multiplied by the completed share of training, the t / T
            of the paper, which counts epochs. `constant`: it is not.
        dice: coefficient of the Dice loss of positive pairs, of both masks. The paper has none; from
            random weights, Dice teaches small targets in far fewer steps.
    """

    mirror: float = 1.0
    mirror_negatives: bool = False
    margin: float = 1.0
    triplet: float = 1.0
    schedule: str = "growing"
    dice: float = 0.0

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the schedule is unknown.
        """
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown("objective.schedule", self.schedule, SCHEDULES))

    def __call__(self, output: SegOutput, batch: Batch, progress: Array) -> dict[str, Term]:
        """Sums over valid pairs; reads `d_pos`, `d_neg` and `mirror_logits` of `aux`."""
        masks = jnp.asarray(batch.mask, jnp.float32) / 255.0
        valid = jnp.asarray(batch.valid, jnp.float32)
        present = valid * jnp.asarray(batch.present, jnp.float32)
        logits = jnp.asarray(output.mask_logits, jnp.float32)
        terms = self._masks("", logits, masks, present, 1.0)
        if self.mirror:
            pairs = valid if self.mirror_negatives else present
            mirrored = jnp.asarray(output.aux["mirror_logits"], jnp.float32)
            terms |= self._masks("mirror/", mirrored, 1.0 - masks, pairs, self.mirror)
        if self.triplet:
            gap = jnp.asarray(output.aux["d_pos"]) - jnp.asarray(output.aux["d_neg"])
            loss = jnp.maximum(jnp.where(jnp.asarray(batch.present), gap, -gap) + self.margin, 0.0)
            share = progress if self.schedule == "growing" else 1.0
            terms["triplet"] = Term((loss * valid).sum(), valid.sum(), self.triplet * share)
        return terms

    def _masks(
        self, prefix: str, logits: jax.Array, masks: jax.Array, pairs: jax.Array, factor: float
    ) -> dict[str, Term]:
        """Cross entropy and Dice of the pairs that count, f32 `[B, N, K]`, times a factor."""
        cells = losses.sigmoid_cross_entropy(logits, masks).mean(-1).mean(-1)
        terms = {f"{prefix}cross_entropy": Term((cells * pairs).sum(), pairs.sum(), factor)}
        if self.dice:
            overlaps = losses.dice(logits, masks)
            total = (overlaps * pairs).sum()
            terms[f"{prefix}dice"] = Term(total, pairs.sum(), factor * self.dice)
        return terms


def presence_term(output: SegOutput, batch: Batch, coefficient: float) -> Term:
    """ReLA's no-target term: class-weighted cross entropy of "absent", over valid pairs.

    Args:
        output: its `present_logits` f32 `[B, N, K]` are trained.
        batch: its `present` and `valid` are read.
        coefficient: of the term.

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
        logits, targets: `[B, N, K, ...]`; the axes after `K` are the cells of a pair.
        valid: f32 `[B, N, K]`.
        coefficient: of the term.
    """
    weights = losses.class_weights(targets, _BACKGROUND, _FOREGROUND)
    values = losses.sigmoid_cross_entropy(jnp.asarray(logits, jnp.float32), targets)
    loss, weight = values * weights, weights
    # Axis by axis, and pairs last: one f32 sum over thousands of cells has a relative error of some
    # 1e-6, which differs between layouts of the devices.
    for _ in range(targets.ndim - valid.ndim):
        loss, weight = loss.mean(-1), weight.mean(-1)
    return Term((loss * valid).sum(), (weight * valid).sum(), coefficient)


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "group": GroupObjective,
    "mask": MaskObjective,
    "prompt": PromptObjective,
    "relation": RelationObjective,
}


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective named by `config["name"]`, with the rest of `config` as its fields.

    Raises:
        ValueError: an unknown name or field; the message names the nearest.
    """
    return from_mapping(_OBJECTIVES, config, what="objective")
