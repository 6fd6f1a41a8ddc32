"""Batch normalisation inside UniLSeg: which pairs count, and that every form trains with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch
from refseg_jax.models.graphs import forward_of
from refseg_jax.models.unilseg_config import FORMS
from tests.refseg_jax.layers.compiling import quick_jit
from tests.refseg_jax.models.small_unilseg import SMALL
from tests.refseg_jax.training.tiny_run import random_params

ROWS, IMAGES, EXPRESSIONS, LENGTH = 3, 2, 3, 6


def _batch() -> Batch:
    rng = np.random.default_rng(0)
    pairs = (ROWS, IMAGES, EXPRESSIONS)
    cells = SMALL["image_size"] // SMALL["mask_stride"]
    text = rng.integers(1, SMALL["eos_id"], (ROWS, EXPRESSIONS, LENGTH), np.int32)
    text[:, :, -1] = SMALL["eos_id"]
    return Batch(
        image=rng.integers(0, 256, (ROWS, IMAGES, *[SMALL["image_size"]] * 2, 3), np.uint8),
        text=text,
        text_valid=np.ones(text.shape, bool),
        mask=rng.integers(0, 256, (*pairs, cells, cells), np.uint8),
        present=np.ones(pairs, bool),
        valid=np.ones(pairs, bool),
        size=np.full((ROWS, IMAGES, 2), SMALL["image_size"], np.int32),
        affine=np.tile(np.eye(2, 3, dtype=np.float32), (ROWS, IMAGES, 1, 1)),
    )


@pytest.mark.parametrize("form", FORMS)
def test_pairs_that_do_not_count_change_nothing(form: str) -> None:
    forward = forward_of({**SMALL, "form": form})
    params, key = random_params(forward), jax.random.key(0)
    run = quick_jit(forward.apply_training)
    batch = _batch()
    # A row of padding, an image of which no pair counts, and an expression that no image counts.
    batch.valid[2] = False
    batch.valid[0, 1] = False
    batch.valid[1, :, 2] = False
    other = jax.tree.map(np.copy, batch)
    other.image[2] = 255
    other.image[0, 1] = 7
    other.text[2, :, :-1] = 3
    other.text[1, 2, :-1] = 5
    (output, averages), (output_of_other, averages_of_other) = (
        run(params, batch, key),
        run(params, other, key),
    )
    assert averages.keys() == forward.statistics
    for path, average in averages.items():
        np.testing.assert_array_equal(average, averages_of_other[path], err_msg=path)
        assert (np.asarray(average) != params[path]).any()
    logits = [np.asarray(each.mask_logits)[batch.valid] for each in (output, output_of_other)]
    np.testing.assert_array_equal(*logits)
    assert logits[0].std() > 0.01
    # They do count where they are valid: else this test would say nothing.
    batch.valid[:] = True
    other.valid[:] = True
    one, two = run(params, batch, key)[1], run(params, other, key)[1]
    assert all((one[path] != two[path]).any() for path in forward.statistics)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "changes",
    [
        {"remat": True, "dtype": "bfloat16", "presence_head": True},
        {"pre_fusion": False, "vision_path": False, "language_path": False},
    ],
)
def test_every_form_trains_with_batch_norm(form: str, changes: dict[str, Any]) -> None:
    """Recomputation would refuse to move an average inside of it."""
    forward = forward_of({**SMALL, "form": form, **changes})

    def loss(params: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        output, averages = forward.apply_training(params, _batch(), jax.random.key(0))
        return jnp.square(output.mask_logits).mean(), averages

    gradient, averages = jax.eval_shape(jax.grad(loss, has_aux=True), forward.shapes)
    assert gradient.keys() == forward.shapes.keys()
    assert averages.keys() == forward.statistics
    for path in forward.statistics:
        assert averages[path] == forward.shapes[path]
