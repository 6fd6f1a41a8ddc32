"""The public code's relationship block."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.decoders.masked_attention import visible_cells
from refseg_jax.decoders.masked_relationship import (
    MaskedRelationship,
    MaskedRelationshipConfig,
)
from refseg_jax.decoders.pixel_decoder import PixelFeatures
from refseg_jax.images.resize import resize_bilinear

CONFIG = MaskedRelationshipConfig(width=16, side=3, heads=2, hidden=24, layers=4)
PAIRS, LENGTH, TEXT_WIDTH, MASK_WIDTH = 2, 6, 10, 12


def block(config: MaskedRelationshipConfig = CONFIG, *, fresh: bool = False) -> MaskedRelationship:
    module = MaskedRelationship(
        config,
        levels=2,
        text_width=TEXT_WIDTH,
        mask_width=MASK_WIDTH,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    if not fresh:
        # Zeros would hide what they are multiplied with.
        rng = np.random.default_rng(0)
        state = nnx.state(module)
        nnx.update(module, jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), state))
    return module


def inputs() -> tuple[PixelFeatures, jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    levels = (draw(PAIRS, 4, 4, CONFIG.width), draw(PAIRS, 8, 8, CONFIG.width))
    pixels = PixelFeatures(draw(PAIRS, 16, 16, MASK_WIDTH), levels)
    valid = jnp.asarray(np.arange(LENGTH) < np.array([[LENGTH], [2]]))
    return pixels, draw(PAIRS, LENGTH, TEXT_WIDTH), valid


def step_by_step(module: MaskedRelationship, pixels: PixelFeatures, words: Any) -> jax.Array:
    """The queries behind the last layer, with whole masks resized, as the public code does it."""
    x = jnp.broadcast_to(module.queries[...], (PAIRS, *module.queries.shape))
    for number, layer in enumerate(module.layers):
        level = pixels.levels[number % 2]
        filters = module.filter(module.norm(x))
        masks = jnp.einsum("grc,ghwc->grhw", filters, pixels.masks)
        visible = visible_cells(masks, level.shape[1:3])
        memory, memory_places = module._memory(level, number % 2)
        x = layer.look_at_memory(x, module.places[...], memory, memory_places, visible)
        if number == 0:
            projected = module.words(words)
            seen = module.words_attention(x, projected, projected)
            gate = 0.1 / (1 + jnp.exp(-module.words_gate[...]))
            x = x + gate * module.words_norm(x + seen)
        x = layer.think(layer.look_at_queries(x, module.places[...]))
    return module.norm(x)


def test_masks_at_each_levels_size_change_nothing():
    module, (pixels, words, valid) = block(), inputs()
    features = step_by_step(module, pixels, words)
    found = module(pixels, words, valid)
    filters = module.filter(features)
    np.testing.assert_allclose(found.filters, filters, rtol=2e-4, atol=2e-5)
    minimap = module.minimap(features)
    np.testing.assert_allclose(
        found.minimap_logits, minimap[..., 1] - minimap[..., 0], rtol=2e-4, atol=2e-5
    )
    np.testing.assert_array_equal(found.weights, found.minimap_logits)
    absent = module.presence(features).mean(1)
    np.testing.assert_allclose(
        found.present_logits, absent[:, 0] - absent[:, 1], rtol=2e-4, atol=2e-5
    )
    whole = resize_bilinear(jnp.einsum("grc,ghwc->ghwr", filters, pixels.masks), (4, 4))
    small = jnp.einsum("grc,ghwc->ghwr", filters, resize_bilinear(pixels.masks, (4, 4)))
    np.testing.assert_allclose(whole, small, rtol=1e-4, atol=1e-5)


def test_two_filters_of_two_classes_are_one_of_their_difference():
    """The public code has a mask for each of two classes and takes the argmax."""
    module, (pixels, words, valid) = block(), inputs()
    found = module(pixels, words, valid)
    features = step_by_step(module, pixels, words)
    minimap, filters = module.minimap(features), module.filter(features)
    targets = jnp.einsum("gra,grc->gac", minimap, filters)
    masks = jnp.einsum("gac,ghwc->gahw", targets, pixels.masks)
    ours = jnp.einsum("gc,ghwc->ghw", found.target_filter(), pixels.masks)
    np.testing.assert_allclose(ours, masks[:, 1] - masks[:, 0], rtol=2e-3, atol=2e-3)


def test_padding_counts_as_in_the_public_code_unless_it_is_masked():
    pixels, words, valid = inputs()
    other = jnp.where(valid[..., None], words, 9.0)
    for masked in (False, True):
        module = block(dataclasses.replace(CONFIG, mask_padding=masked))
        same = np.array_equal(
            module(pixels, words, valid).filters, module(pixels, other, valid).filters
        )
        assert same == masked


def test_words_are_silent_at_first_and_can_be_learnt():
    module, (pixels, words, valid) = block(fresh=True), inputs()
    found = module(pixels, words, valid)
    np.testing.assert_array_equal(found.filters, module(pixels, words[::-1], valid).filters)
    gradient = nnx.grad(lambda m: m(pixels, words, valid).target_filter()[:, 0].sum())(module)
    assert np.abs(gradient.words.kernel[...]).max() > 0
    assert np.abs(gradient.words_gate[...]).max() > 0


def test_every_parameter_gets_a_gradient_and_remat_changes_none():
    given = inputs()

    def gradients(remat: bool) -> dict[Any, Any]:
        module = block(dataclasses.replace(CONFIG, remat=remat))

        def total(m: MaskedRelationship) -> jax.Array:
            found = m(*given)
            named = (found.target_filter() * jnp.arange(MASK_WIDTH)).sum()
            return named + found.minimap_logits.sum() + found.present_logits.sum()

        return dict(nnx.to_flat_state(nnx.grad(total)(module)))

    plain, again = gradients(False), gradients(True)
    for path, leaf in plain.items():
        assert np.abs(leaf[...]).max() > 0 or path[-2:] == ("key", "bias"), path
        np.testing.assert_allclose(leaf[...], again[path][...], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"heads": 3}, "heads=3 does not divide width=256"), ({"layers": 0}, "layers=0 is less")],
)
def test_sizes_that_do_not_fit(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MaskedRelationshipConfig(**fields)


def test_zero_filters_start_with_undecided_masks_and_change_no_other_parameter():
    config = dataclasses.replace(CONFIG, zero_filters=True)
    plain, zero = (
        dict(nnx.to_flat_state(nnx.state(block(c, fresh=True)))) for c in (CONFIG, config)
    )
    differ = {path for path in plain if (plain[path][...] != zero[path][...]).any()}
    assert differ == {("filter", "layers", 2, "kernel")}
    found = block(config, fresh=True)(*inputs())
    assert not found.target_filter().any()
    assert found.minimap_logits.std() > 0.1
