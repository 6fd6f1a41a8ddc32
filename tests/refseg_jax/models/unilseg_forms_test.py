"""The parts of UniLSeg that Table 8 of the paper switches, in both forms."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import UniLSeg, build_model
from refseg_jax.models.forward import Forward
from refseg_jax.training.objectives import PromptObjective
from tests.refseg_jax.models.micro import EOS, micro_batch, micro_params
from tests.refseg_jax.models.small_unilseg import SMALL

FORMS = ("official", "paper")
PARTS = ("pre_fusion", "vision_path", "language_path")
#: The rows of Table 8: the baseline, and the parts that are added one after the other.
ROWS = {
    "baseline": (False, False, False),
    "+PF": (True, False, False),
    "+PF, +LP": (True, False, True),
    "+PF, +LP, +VP": (True, True, True),
}
#: The vocabulary is that of `micro_batch`.
FIELDS: dict[str, Any] = {**SMALL, "norm": "group", "vocab_size": EOS + 1, "eos_id": EOS}


@functools.cache
def forward(form: str, *parts: bool, **changes: Any) -> Forward[UniLSeg]:
    config = {**FIELDS, "form": form, **dict(zip(PARTS, parts, strict=False)), **changes}
    return Forward(lambda rngs: build_model(config, rngs=rngs))  # pyright: ignore


def params(model: Forward[UniLSeg]) -> dict[str, jax.Array]:
    return micro_params(model)  # pyright: ignore[reportArgumentType]


def run(model: Forward[UniLSeg], batch: Batch, *, training: bool = False) -> SegOutput:
    key = jax.random.key(0) if training else None
    return jax.jit(model.apply)(params(model), batch, key)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_table_8_has_its_parts_and_no_others(form: str, row: str) -> None:
    model = forward(form, *ROWS[row])
    heads = {path.split(".")[0] for path in model.shapes}
    assert ("pre_fusion" in heads) == ROWS[row][0]
    attentions = {
        path.split(".")[0]
        for path in model.shapes
        if "attention" in path and not path.startswith(("vision.", "text."))
    }
    assert attentions == {part for part, on in zip(PARTS, ROWS[row], strict=True) if on}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_every_parameter_of_a_row_learns(form: str, row: str) -> None:
    """And the masks have the shapes of the contract."""
    model, batch = forward(form, *ROWS[row]), micro_batch()
    layers = 2 if ROWS[row][2] else 1

    def loss(weights: Any) -> tuple[jax.Array, SegOutput]:
        output = model.apply(weights, batch, jax.random.key(0))
        terms = PromptObjective()(output, batch, jnp.float32(0))
        return sum(jnp.asarray(t.sum) for t in terms.values()), output  # pyright: ignore

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params(model))
    assert output.mask_logits.shape == (2, 1, 3, 16, 16)
    assert output.aux["layer_logits"].shape == (layers, 2, 1, 3, 16, 16)
    np.testing.assert_array_equal(output.aux["layer_logits"][-1], output.mask_logits)
    still = {path for path, leaf in gradients.items() if not np.any(leaf)}
    # Biases of keys move all scores of a softmax alike. In the official language path a single query
    # attends to itself: neither query nor key matter, and the first layer's value is its bias.
    alone = "language_path.layers" if form == "official" else "none"
    assert not {
        path
        for path in still
        if not path.endswith("key.bias")
        and not (path.startswith(alone) and ".self_attention." in path)
    }


@pytest.mark.parametrize("row", ROWS)
def test_the_paper_s_form_depends_on_image_and_words_but_not_on_the_other_pairs(row: str) -> None:
    model, batch = forward("paper", *ROWS[row]), micro_batch()
    found = np.asarray(run(model, batch).mask_logits)
    text = np.array(batch.text)
    text[0, 0, 1] += 1
    other = np.asarray(run(model, dataclasses.replace(batch, text=text)).mask_logits)
    assert np.abs(found[0, :, 0] - other[0, :, 0]).max() > 1e-4
    np.testing.assert_allclose(found[0, :, 1:], other[0, :, 1:], atol=1e-6)
    np.testing.assert_allclose(found[1], other[1], atol=1e-6)
    image = np.array(batch.image)
    image[1, 0, :16] = 255 - image[1, 0, :16]
    other = np.asarray(run(model, dataclasses.replace(batch, image=image)).mask_logits)
    assert np.abs(found[1] - other[1]).max() > 1e-4
    np.testing.assert_allclose(found[0], other[0], atol=1e-6)


def test_equation_1_has_no_residual_unless_it_is_asked_for() -> None:
    batch = micro_batch()
    with_map = forward("paper", fusion_residual=True)
    without = forward("paper")
    assert with_map.shapes == without.shapes
    assert not np.allclose(run(with_map, batch).mask_logits, run(without, batch).mask_logits)


def test_the_paper_s_form_has_a_presence_head_that_sees_the_mask() -> None:
    model = forward("paper", presence_head=True, mask_evidence=True)
    output = run(model, micro_batch(images=2))
    assert output.mask_logits.shape == (2, 2, 3, 16, 16)
    assert output.present_logits is not None
    assert output.present_logits.shape == (2, 2, 3)


def test_an_unknown_form_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        forward("papr")
