"""ReLA's objective against plain numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.training import losses
from refseg_jax.training.objectives import MaskObjective, RelationObjective, build_objective

SHAPE = (2, 2, 3, 12, 12)
SIDE = 4


def case(seed: int = 0) -> tuple[SegOutput, Batch]:
    rng = np.random.default_rng(seed)
    masks = np.where(rng.random(SHAPE) < 0.8, 255, rng.integers(0, 256, SHAPE)).astype(np.uint8)
    present = rng.random(SHAPE[:3]) < 0.6
    masks[~present] = 0
    valid = rng.random(SHAPE[:3]) < 0.7
    blank = np.zeros(1)
    draw = lambda *shape: rng.normal(0, 2, shape).astype(np.float32)  # noqa: E731
    output = SegOutput(
        draw(*SHAPE), draw(*SHAPE[:3]), {"minimap_logits": draw(*SHAPE[:3], SIDE, SIDE)}
    )
    return output, Batch(blank, blank, blank, masks, present, valid, blank, blank)


def two_classes(logits: np.ndarray, targets: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Weighted cross entropy over a softmax of (0, logit), number by number."""
    total = weights = 0.0
    for place in np.argwhere(valid):
        x, t = logits[tuple(place)].astype(float), targets[tuple(place)]
        for value, target in zip(np.ravel(x), np.ravel(t), strict=True):
            weight = 1.1 if target else 0.9
            scores = np.array([0.0, value])
            total -= weight * (scores[int(target)] - np.logaddexp.reduce(scores))
            weights += weight
    return total, weights


def test_the_three_terms():
    output, batch = case()
    terms = RelationObjective()(output, batch, jnp.float32(0))
    masks = np.asarray(batch.mask) >= 128
    valid = np.asarray(batch.valid)
    minimap = np.zeros((*SHAPE[:3], SIDE, SIDE), bool)
    for row in range(SIDE):
        for column in range(SIDE):
            # Cells of 3 x 3 pixels have a middle pixel.
            minimap[..., row, column] = masks[..., 3 * row + 1, 3 * column + 1]
    expected = {
        "mask": (two_classes(np.asarray(output.mask_logits), masks, valid), 5.0),
        "minimap": (two_classes(np.asarray(output.aux["minimap_logits"]), minimap, valid), 0.5),
        "presence": (
            two_classes(-np.asarray(output.present_logits), ~np.asarray(batch.present), valid),
            0.5,
        ),
    }
    assert terms.keys() == expected.keys()
    # Sum and weight are means over a pair's cells, which leaves their ratio as it is.
    cells = {"mask": masks[0, 0, 0].size, "minimap": SIDE**2, "presence": 1}
    for name, ((total, weight), coefficient) in expected.items():
        assert float(terms[name].sum) == pytest.approx(total / cells[name], rel=1e-5)
        assert float(terms[name].weight) == pytest.approx(weight / cells[name], rel=1e-5)
        assert terms[name].coefficient == coefficient


def test_dice_is_of_pairs_with_a_target():
    output, batch = case()
    term = RelationObjective(dice=0.4)(output, batch, jnp.float32(0))["dice"]
    found = 0.0
    targeted = np.asarray(batch.valid) & np.asarray(batch.present)
    assert 0 < targeted.sum() < np.asarray(batch.valid).sum()
    for place in np.argwhere(targeted):
        logits, target = (np.asarray(x)[tuple(place)] for x in (output.mask_logits, batch.mask))
        p, t = 1 / (1 + np.exp(-logits.astype(float))), target >= 128
        found += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert float(term.sum) == pytest.approx(found, rel=1e-5)
    assert float(term.weight) == targeted.sum()
    assert term.coefficient == pytest.approx(5 * 0.4)


def test_the_minimap_samples_the_middle_of_cells():
    masks = np.ones((8, 8), np.float32)
    np.testing.assert_array_equal(losses.minimap_target(jnp.asarray(masks), 2), np.ones((2, 2)))
    # Any of the four pixels around the middle of the first cell, and no other, empties it.
    for row in range(4):
        for column in range(4):
            holed = masks.copy()
            holed[row, column] = 0
            found = np.asarray(losses.minimap_target(jnp.asarray(holed), 2))
            middle = row in (1, 2) and column in (1, 2)
            assert found.tolist() == [[float(not middle), 1.0], [1.0, 1.0]]


def test_padding_counts_in_no_term():
    output, batch = case()
    hidden = dataclasses.replace(
        output,
        mask_logits=np.where(batch.valid[..., None, None], output.mask_logits, 99.0),
        present_logits=np.where(batch.valid, output.present_logits, 99.0),
        aux={
            "minimap_logits": np.where(
                batch.valid[..., None, None], output.aux["minimap_logits"], 99.0
            )
        },
    )
    for name, term in RelationObjective()(output, batch, jnp.float32(0)).items():
        other = RelationObjective()(hidden, batch, jnp.float32(0))[name]
        assert (float(other.sum), float(other.weight)) == (float(term.sum), float(term.weight))


def test_any_model_with_the_head_can_be_trained_by_the_presence_term():
    output, batch = case()
    alone = MaskObjective(presence=0.5)(output, batch, jnp.float32(0))["presence"]
    of_rela = RelationObjective()(output, batch, jnp.float32(0))["presence"]
    assert (float(alone.sum), alone.coefficient) == (float(of_rela.sum), of_rela.coefficient)
    with pytest.raises(ValueError, match=r"no presence head; set config\.model\.presence_head"):
        MaskObjective(presence=0.5)(SegOutput(output.mask_logits), batch, jnp.float32(0))
    with pytest.raises(ValueError, match=r"nothing trains it; set config\.objective\.presence"):
        MaskObjective()(output, batch, jnp.float32(0))


def test_the_minimap_can_be_left_out_and_the_presence_of_a_model_with_the_head_cannot():
    output, batch = case()
    objective = build_objective({"name": "relation", "minimap": 0.0})
    assert set(objective(output, batch, jnp.float32(0))) == {"mask", "presence"}
    objective = build_objective({"name": "relation", "minimap": 0.0, "presence": 0.0})
    headless = dataclasses.replace(output, present_logits=None)
    assert set(objective(headless, batch, jnp.float32(0))) == {"mask"}
    with pytest.raises(
        ValueError, match=r"untrained.*config\.objective\.presence \(0\.1"
    ) as caught:
        objective(output, batch, jnp.float32(0))
    assert "config.eval.min_pixels" in str(caught.value)
