"""UniLSeg in its public form: parts apart and together, presets, fields that do not fit."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import UniLSeg, UniLSegConfig, build_model, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.unilseg_config import PRESETS
from tests.refseg_jax.models.micro import EOS, micro_batch, micro_params
from tests.refseg_jax.models.small_unilseg import SMALL

#: The vocabulary is that of `micro_batch`.
FIELDS: dict[str, Any] = {**SMALL, "vocab_size": EOS + 1, "eos_id": EOS}


@functools.cache
def forward(**changes: Any) -> Forward[UniLSeg]:
    return Forward(lambda rngs: build_model({**FIELDS, **changes}, rngs=rngs))  # pyright: ignore


@functools.cache
def params() -> dict[str, jax.Array]:
    """With running variances that are positive."""
    model = forward()
    drawn = micro_params(model)  # pyright: ignore[reportArgumentType]
    return {
        path: jnp.abs(leaf) + 0.5 if path in model.statistics and "variance" in path else leaf
        for path, leaf in drawn.items()
    }


@functools.cache
def whole() -> SegOutput:
    return jax.jit(forward().apply)(params(), micro_batch())


def test_masks_of_pairs_have_the_stride_that_is_asked_for() -> None:
    output = whole()
    assert output.mask_logits.shape == (2, 1, 3, 16, 16)
    assert output.mask_logits.dtype == jnp.float32
    assert output.present_logits is None and not output.aux
    # Bilinear between the cells of stride 4: a factor of 2 keeps their means.
    coarse = jax.jit(forward(mask_stride=4).apply)(params(), micro_batch()).mask_logits
    assert coarse.shape == (2, 1, 3, 8, 8)
    np.testing.assert_allclose(output.mask_logits.mean(), coarse.mean(), rtol=0.1)


def test_encoders_and_decoder_apart_are_the_model() -> None:
    """An image is encoded once: its features do not know of the expressions."""
    model, batch = forward(), micro_batch()
    image = jax.jit(model.encode_image)(params(), batch.image)
    assert [x.shape for x in image.maps] == [(2, 1, 8, 8, 16), (2, 1, 4, 4, 32)]
    text = jax.jit(model.encode_text)(params(), batch.text, batch.text_valid)
    found = jax.jit(model.decode)(params(), image, text)
    np.testing.assert_allclose(found.mask_logits, whole().mask_logits, atol=1e-4)


def test_an_expression_has_the_same_mask_alone() -> None:
    batch = micro_batch()
    one = dataclasses.replace(
        batch,
        text=batch.text[:, 1:2],
        text_valid=batch.text_valid[:, 1:2],
        valid=batch.valid[:, :, 1:2],
    )
    alone = jax.jit(forward().apply)(params(), one).mask_logits
    np.testing.assert_allclose(alone[:, :, 0], whole().mask_logits[:, :, 1], atol=1e-4)
    assert np.abs(whole().mask_logits[:, :, 0] - whole().mask_logits[:, :, 1]).max() > 1e-2


def test_longer_padding_moves_only_the_places_of_words() -> None:
    """Words have places relative to the length with padding, as in the public code; the rest has not."""
    batch = micro_batch()
    wider = [
        np.pad(np.asarray(x), ((0, 0), (0, 0), (0, 2))) for x in (batch.text, batch.text_valid)
    ]
    longer = dataclasses.replace(batch, text=wider[0], text_valid=wider[1])
    plain = forward(vision_path=False)
    own = {path: params()[path] for path in plain.shapes if path in params()}
    run = jax.jit(plain.apply)
    np.testing.assert_allclose(run(own, batch).mask_logits, run(own, longer).mask_logits, atol=1e-5)
    moved = jax.jit(forward().apply)(params(), longer).mask_logits
    assert 1e-4 < np.abs(moved - whole().mask_logits).max() < 1.0


def test_bf16_is_close_to_f32() -> None:
    half = jax.jit(forward(dtype="bfloat16").apply)(params(), micro_batch()).mask_logits
    full = whole().mask_logits
    assert half.dtype == jnp.float32
    assert np.linalg.norm(half - full) < 0.1 * np.linalg.norm(full)


@pytest.mark.long
def test_training_gives_the_masks_of_all_layers_and_remat_changes_no_gradient() -> None:
    batch, key = micro_batch(), jax.random.key(0)

    def loss(model: Forward[UniLSeg], weights: Any) -> Any:
        output, statistics = model.apply_training(weights, batch, key)
        return jnp.mean(jnp.square(output.aux["layer_logits"])), statistics

    found = []
    for remat in (False, True):
        model = forward(remat=remat)
        run = jax.jit(jax.grad(functools.partial(loss, model), has_aux=True))
        gradients, statistics = run(params())
        assert statistics.keys() == model.statistics
        found.append((gradients, statistics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found[0], found[1]
    )


def test_a_presence_head_reads_the_coarsest_map_and_the_sentence() -> None:
    model, batch = forward(presence_head=True), micro_batch()
    own = micro_params(model)  # pyright: ignore[reportArgumentType]
    own |= params()
    output = jax.jit(model.apply)(own, batch)
    assert output.present_logits is not None and output.present_logits.shape == (2, 1, 3)
    assert len(np.unique(np.round(output.present_logits, 5))) == 6
    np.testing.assert_allclose(output.mask_logits, whole().mask_logits, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_trace_to_the_grid_they_promise(preset: str) -> None:
    config = common.unilseg(preset).to_dict()
    assert model_config(config) == model_config({"name": "unilseg", "preset": preset})
    model: Forward[UniLSeg] = Forward(lambda rngs: build_model(config, rngs=rngs))  # pyright: ignore
    size, length = model.model.image_size, 17
    pairs = (1, 1, 2)
    shaped = jax.ShapeDtypeStruct
    batch = Batch(
        shaped((1, 1, size, size, 3), np.uint8),  # pyright: ignore[reportArgumentType]
        *(shaped((1, 2, length), kind) for kind in (np.int32, np.bool_)),  # pyright: ignore
        *(shaped((1,), np.uint8) for _ in range(2)),  # pyright: ignore
        shaped(pairs, np.bool_),  # pyright: ignore
        *(shaped((1,), np.float32) for _ in range(2)),  # pyright: ignore
    )
    cells = size // model.model.mask_stride
    output = jax.eval_shape(model.apply, model.shapes, batch)
    assert output.mask_logits.shape == (*pairs, cells, cells)
    has_norms = model.model.config.norm == "batch"
    assert bool(model.statistics) == has_norms


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"preset": "tniy"}, "unknown preset of model 'unilseg' 'tniy': did you mean 'tiny'"),
        ({"norm": "layer"}, "unknown norm 'layer': there are: batch, group"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"mask_stride": 8}, "mask_stride=8 is not 1, 2 or 4"),
        ({"mask_evidence": True}, "mask_evidence is of the presence head: set presence_head, too"),
        ({"image_size": 16}, "image_size=16 is less than 32, the stride of the last stage, or not"),
        (
            {"image_size": 482},
            "image_size=482 is less than 32, the stride of the last stage, or not",
        ),
        ({"width": 100}, "a width of the decoder is 100; it must be divisible by heads=8 and"),
        ({"text_heads": 5}, "text_heads=5 does not divide text_width=512"),
        ({"dropout": 1.0}, r"dropout=1.0 is not in \[0, 1\)"),
        ({"query_layers": 0}, "query_layers=0 is less than 1"),
        ({"window": 1}, "window at least 2"),
        ({"pixels": "clp"}, "did you mean 'clip'"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_config({"name": "unilseg", **fields})


def test_images_of_another_size_are_refused() -> None:
    batch = micro_batch()
    with pytest.raises(
        ValueError, match=r"images are \(16, 16, 3\), the model takes \(32, 32, 3\)"
    ):
        jax.eval_shape(forward().encode_image, params(), batch.image[:, :, :16, :16])


def test_the_towers_are_below_the_prefixes_that_starts_fill() -> None:
    for prefix in UniLSeg.TOWERS.values():
        assert any(path.startswith(prefix) for path in forward().shapes)
    assert UniLSegConfig().image_tower.pixels == "clip"
