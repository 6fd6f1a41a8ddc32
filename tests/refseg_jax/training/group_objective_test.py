"""GRSer's objective: its terms against loops in numpy, written from equations 5 and 6."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.training.objectives import GroupObjective, build_objective

PAIRS, CELLS = (2, 4, 2), (6, 5)


def case(present: float = 0.5, valid: float = 0.8) -> tuple[SegOutput, Batch]:
    """Logits and distances, with these shares of positive and of valid pairs."""
    rng = np.random.default_rng(0)
    there = rng.random(PAIRS) < present
    masks = rng.integers(0, 256, (*PAIRS, *CELLS), np.uint8) * there[..., None, None]
    draw = lambda *shape: rng.normal(0, 3, (*PAIRS, *shape)).astype(np.float32)  # noqa: E731
    aux = {"d_pos": np.abs(draw()), "d_neg": np.abs(draw()), "mirror_logits": draw(*CELLS)}
    output = SegOutput(draw(*CELLS), aux["d_neg"] - aux["d_pos"] - 1.0, aux)
    counted = rng.random(PAIRS) < valid
    blank = np.zeros(1)
    return output, Batch(blank, blank, blank, masks.astype(np.uint8), there, counted, blank, blank)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def dice(logits: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return float(1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1))


def triplet(output: SegOutput, batch: Batch, place: tuple[int, ...], margin: float) -> float:
    near, far = (float(output.aux[name][place]) for name in ("d_pos", "d_neg"))
    if not batch.present[place]:
        near, far = far, near
    return max(near - far + margin, 0.0)


@pytest.mark.parametrize("present", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("valid", [0.0, 0.8, 1.0])
def test_terms_are_those_of_the_equations(present: float, valid: float) -> None:
    output, batch = case(present, valid)
    objective = GroupObjective(mirror=0.5, margin=1.5, triplet=3.0, dice=2.0)
    terms = objective(output, batch, jnp.float32(0.25))
    counted = [tuple(x) for x in np.argwhere(batch.valid)]
    positive = [place for place in counted if batch.present[place]]
    masks = np.asarray(batch.mask) / 255.0
    mirrored = np.asarray(output.aux["mirror_logits"])
    logits = np.asarray(output.mask_logits)
    expected = {
        "cross_entropy": (sum(cross_entropy(logits[p], masks[p]) for p in positive), 1.0),
        "dice": (sum(dice(logits[p], masks[p]) for p in positive), 2.0),
        "mirror/cross_entropy": (
            sum(cross_entropy(mirrored[p], 1 - masks[p]) for p in positive),
            0.5,
        ),
        "mirror/dice": (sum(dice(mirrored[p], 1 - masks[p]) for p in positive), 1.0),
        "triplet": (sum(triplet(output, batch, p, 1.5) for p in counted), 3.0 * 0.25),
    }
    assert terms.keys() == expected.keys()
    for name, (total, coefficient) in expected.items():
        assert float(terms[name].sum) == pytest.approx(total, rel=1e-6, abs=1e-6), name
        assert float(terms[name].coefficient) == pytest.approx(coefficient, rel=1e-6)
        assert float(terms[name].weight) == len(counted if name == "triplet" else positive)


def test_known_triplets() -> None:
    """A positive image beyond its margin costs nothing; the same distances of a negative cost most."""
    blank = np.zeros(1)
    shape = (1, 4, 1)
    aux = {
        "d_pos": np.float32([0.1, 1.0, 0.1, 1.4]).reshape(shape),
        "d_neg": np.float32([1.3, 1.0, 1.3, 0.2]).reshape(shape),
        "mirror_logits": np.zeros((*shape, 2, 2), np.float32),
    }
    present = np.array([True, True, False, False]).reshape(shape)
    masks, valid = np.zeros((*shape, 2, 2), np.uint8), np.ones(shape, bool)
    batch = Batch(blank, blank, blank, masks, present, valid, blank, blank)
    output = SegOutput(np.zeros((*shape, 2, 2), np.float32), None, aux)
    costs = []
    for n in range(4):
        alone = dataclasses.replace(batch, valid=np.arange(4).reshape(shape) == n)
        costs.append(float(GroupObjective()(output, alone, jnp.float32(1))["triplet"].sum))
    assert costs == pytest.approx([0.0, 1.0, 2.2, 0.0], abs=1e-6)


def test_options_leave_terms_out_or_change_what_counts() -> None:
    output, batch = case()
    now = jnp.float32(0.0)
    # What is off needs no outputs.
    bare = SegOutput(output.mask_logits, None, {})
    assert set(GroupObjective(mirror=0.0, triplet=0.0)(bare, batch, now)) == {"cross_entropy"}
    growing, constant = (
        GroupObjective(schedule=name)(output, batch, now)["triplet"]
        for name in ("growing", "constant")
    )
    assert float(growing.sum) == float(constant.sum)
    assert (float(growing.coefficient), float(constant.coefficient)) == (0.0, 1.0)
    usual = GroupObjective()(output, batch, now)["mirror/cross_entropy"]
    every = GroupObjective(mirror_negatives=True)(output, batch, now)["mirror/cross_entropy"]
    assert float(usual.weight) == (batch.present & batch.valid).sum() < float(every.weight)
    assert float(every.weight) == np.asarray(batch.valid).sum()
    # The mask of a negative image is empty, so that its mirror is everywhere.
    negatives = np.argwhere(np.asarray(batch.valid) & ~np.asarray(batch.present))
    cells = np.asarray(output.aux["mirror_logits"])
    expected = sum(cross_entropy(cells[tuple(p)], np.ones(CELLS)) for p in negatives)
    assert float(every.sum) - float(usual.sum) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_positive_images_gives_no_nan() -> None:
    output, batch = case(present=0.0)
    terms = GroupObjective(dice=1.0)(output, batch, jnp.float32(0.5))
    assert all(math.isfinite(float(term.sum)) for term in terms.values())
    assert float(terms["cross_entropy"].sum) == float(terms["cross_entropy"].weight) == 0.0
    assert float(terms["triplet"].weight) > 0


def test_it_is_built_by_name() -> None:
    assert build_objective({"name": "group", "mirror": 0.0}) == GroupObjective(mirror=0.0)
    with pytest.raises(ValueError, match=r"unknown objective\.schedule 'grow'"):
        build_objective({"name": "group", "schedule": "grow"})
