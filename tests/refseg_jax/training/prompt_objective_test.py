"""UniLSeg's objective: the terms of every layer of the language path, against numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.training.objectives import MaskObjective, PromptObjective, build_objective

LAYERS, SHAPE = 3, (2, 1, 4, 6, 5)


def case() -> tuple[SegOutput, Batch]:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, SHAPE, np.uint8)
    valid = rng.random(SHAPE[:3]) < 0.7
    present = rng.random(SHAPE[:3]) < 0.5
    blank = np.zeros(1)
    logits = rng.normal(0, 3, (LAYERS, *SHAPE)).astype(np.float32)
    batch = Batch(blank, blank, blank, masks, present, valid, blank, blank)
    return SegOutput(logits[-1], None, {"layer_logits": logits}), batch


def expected(logits: np.ndarray, batch: Batch) -> tuple[float, float]:
    """Sums over valid pairs of the mean cross entropy and of the Dice loss, in f64."""
    cross_entropy = overlap = 0.0
    for place in np.argwhere(np.asarray(batch.valid)):
        x = logits[tuple(place)].astype(np.float64)
        t = np.asarray(batch.mask)[tuple(place)] / 255.0
        p = 1 / (1 + np.exp(-x))
        cross_entropy -= (t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        overlap += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    return cross_entropy, overlap


def test_all_layers_have_the_same_terms() -> None:
    output, batch = case()
    terms = PromptObjective(2.0, 3.0, earlier=0.5)(output, batch, jnp.float32(0))
    layers = [expected(x, batch) for x in output.aux["layer_logits"]]
    pairs = np.asarray(batch.valid).sum()
    for number, (name, coefficient) in enumerate((("cross_entropy", 2.0), ("dice", 3.0))):
        last, earlier = terms[name], terms[f"earlier/{name}"]
        assert float(last.sum) == pytest.approx(layers[-1][number], rel=1e-4)
        assert float(earlier.sum) == pytest.approx(sum(x[number] for x in layers[:-1]), rel=1e-4)
        assert float(last.weight) == float(earlier.weight) == pairs
        assert (last.coefficient, earlier.coefficient) == (coefficient, 0.5 * coefficient)


def test_without_deep_supervision_it_is_the_objective_of_the_last_masks() -> None:
    output, batch = case()
    one = dataclasses.replace(output, aux={"layer_logits": output.aux["layer_logits"][-1:]})
    masks = MaskObjective(1.0, 1.0)(output, batch, jnp.float32(0))
    for found in (
        PromptObjective(earlier=0.0)(output, batch, jnp.float32(0)),
        PromptObjective()(one, batch, jnp.float32(0)),
    ):
        assert found == masks


def test_presence_is_of_the_last_masks_alone() -> None:
    output, batch = case()
    answers = np.random.default_rng(1).normal(size=SHAPE[:3]).astype(np.float32)
    answering = dataclasses.replace(output, present_logits=answers)
    terms = PromptObjective(presence=0.5)(answering, batch, jnp.float32(0))
    alone = MaskObjective(presence=0.5)(answering, batch, jnp.float32(0))
    assert terms["presence"] == alone["presence"]
    assert set(terms) == {"presence"} | {
        prefix + name for name in ("cross_entropy", "dice") for prefix in ("", "earlier/")
    }
    with pytest.raises(ValueError, match="no presence head"):
        PromptObjective(presence=0.5)(output, batch, jnp.float32(0))
    with pytest.raises(ValueError, match="nothing trains it"):
        PromptObjective()(answering, batch, jnp.float32(0))


def test_it_is_built_by_name() -> None:
    found = build_objective({"name": "prompt", "earlier": 0.0})
    assert found == PromptObjective(cross_entropy=1.0, dice=1.0, earlier=0.0)
