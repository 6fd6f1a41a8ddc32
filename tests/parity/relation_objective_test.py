"""ReLA's terms beside torch's cross entropy with class weights and its bilinear resize."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.training import losses
from refseg_jax.training.objectives import RelationObjective

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("size", "side"), [(480, 10), (120, 10), (240, 8), (30, 10)])
def test_the_minimap_is_torchs_bilinear_resize_rounded_down(size: int, side: int):
    rng = np.random.default_rng(size)
    masks = (rng.random((5, size // 5, size // 5)) < 0.9).repeat(5, 1).repeat(5, 2)
    masks &= rng.random(masks.shape) < 0.97
    resized = functional.interpolate(
        torch.from_numpy(masks[:, None].astype(np.float32)), (side, side), mode="bilinear"
    )
    expected = resized.long()[:, 0].numpy()
    assert 0.1 < expected.mean() < 0.9
    found = losses.minimap_target(jnp.asarray(masks, jnp.float32), side)
    np.testing.assert_array_equal(found, expected)


def test_terms_are_torchs_weighted_cross_entropies():
    rng = np.random.default_rng(0)
    pairs, size, side = 6, 40, 10
    masks = np.where(rng.random((1, 1, pairs, size, size)) < 0.6, 255, 0).astype(np.uint8)
    present = np.array([[[True, True, False, True, False, True]]])
    masks[~present] = 0
    two = {
        "mask": rng.normal(0, 3, (pairs, 2, size, size)).astype(np.float32),
        "minimap": rng.normal(0, 3, (pairs, 2, side, side)).astype(np.float32),
        "presence": rng.normal(0, 3, (pairs, 2)).astype(np.float32),
    }
    target = torch.from_numpy(masks[0, 0].astype(np.float32) / 255)
    minimap = functional.interpolate(target[:, None], (side, side), mode="bilinear")[:, 0]
    targets = {
        "mask": target.long(),
        "minimap": minimap.long(),
        "presence": torch.from_numpy(~present[0, 0]).long(),
    }
    one = {name: (x[:, 1] - x[:, 0])[None, None] for name, x in two.items()}
    blank = np.zeros(1)
    batch = Batch(blank, blank, blank, masks, present, np.ones_like(present), blank, blank)
    output = SegOutput(one["mask"], -one["presence"], {"minimap_logits": one["minimap"]})
    terms = RelationObjective()(output, batch, jnp.float32(0))
    for name, logits in two.items():
        expected = functional.cross_entropy(
            torch.from_numpy(logits), targets[name], weight=torch.tensor([0.9, 1.1])
        )
        found = float(terms[name].sum) / float(terms[name].weight)
        assert found == pytest.approx(float(expected), rel=2e-6)
