"""The registry of models, the presets, and that building allocates nothing."""

import math

import jax
import pytest
from flax import nnx

from refseg_jax.models import build_model, difference, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires_config import PRESETS
from tests.refseg_jax.models.micro import FIELDS

#: Parameters of CLIP's own vision tower (with projection) at its native number of positions.
CLIP_VISION = {"B/32": 87_849_216, "B/16": 86_192_640, "L/14": 303_966_208}
#: Parameters of CLIP's own text tower.
CLIP_TEXT = {"B/32": 63_428_096, "B/16": 63_428_096, "L/14": 123_650_304}
CLIP_POSITIONS = {"B/32": 1 + 7 * 7, "B/16": 1 + 14 * 14, "L/14": 1 + 16 * 16}


def _count(shapes, prefix):
    return sum(math.prod(s.shape) for path, s in shapes.items() if path.startswith(prefix))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_without_allocating(preset):
    before = len(jax.live_arrays())
    forward = Forward(lambda rngs: build_model({"name": "unires", "preset": preset}, rngs=rngs))
    assert len(jax.live_arrays()) <= before
    config, shapes = forward.model.config, forward.shapes  # pyright: ignore
    print(preset, {p: _count(shapes, p) for p in ("vision", "text", "decoder", "head", "")})
    width = config.vision_width
    groups = _count(shapes, "vision.low_tokens") + _count(shapes, "vision.high_tokens")
    assert groups == (config.low_tokens + config.high_tokens) * width
    if preset in CLIP_VISION:
        more = (1 + config.grid**2 - CLIP_POSITIONS[preset]) * width
        assert _count(shapes, "vision.") - groups - more == CLIP_VISION[preset]
        # The tower here has no logit scale, and CLIP's 1.
        assert _count(shapes, "text.") == CLIP_TEXT[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_trace_to_the_grid_they_promise(preset):
    config = {"name": "unires", "preset": preset}
    model = nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    size, stride = model.config.image_size, model.config.mask_stride  # pyright: ignore

    def run(state, image, text, valid):
        model = nnx.merge(graph, state)
        return model.decode(model.encode_image(image), model.encode_text(text, valid))  # pyright: ignore

    output = jax.eval_shape(
        run,
        state,
        jax.ShapeDtypeStruct((1, 2, size, size, 3), "uint8"),
        jax.ShapeDtypeStruct((1, 3, 17), "int32"),
        jax.ShapeDtypeStruct((1, 3, 17), "bool"),
    )
    assert output.mask_logits.shape == (1, 2, 3, size // stride, size // stride)


def test_paths_are_dotted_and_named_in_the_fields_terms():
    config = {
        "name": "unires",
        "preset": "tiny",
        "stem_width": 0,
        "decoder_layers": 2,
        "head": "projector",
    }
    shapes = Forward(lambda rngs: build_model(config, rngs=rngs)).shapes
    for path in (
        "vision.patch_embedding.kernel",
        "vision.class_token",
        "vision.position_embedding",
        "vision.low_tokens",
        "vision.high_tokens",
        "vision.input_norm.scale",
        "vision.blocks.0.attention.query.kernel",
        "vision.blocks.3.mlp.down.bias",
        "vision.projection.kernel",
        "text.token_embedding.embedding",
        "text.position_embedding",
        "text.final_norm.bias",
        "low_filter.attention.out.kernel",
        "high_filter.up.kernel",
        "decoder.layers.1.cross_attention.key.kernel",
        "group_decoder.layers.0.mlp.norm.scale",
        "head.convolutions.0.kernel",
        "head.text.kernel",
    ):
        assert path in shapes, path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "unirse"}, "unknown model 'unirse': did you mean 'unires'"),
        ({"name": "unires", "vision_witdh": 8}, "did you mean 'vision_width'"),
        ({"name": "unires", "preset": "tniy"}, "did you mean 'tiny'"),
        ({"name": "unires", "head": "projecter"}, "did you mean 'projector'"),
        ({"name": "unires", "activation": "relu"}, "unknown activation 'relu'"),
        ({"name": "unires", "dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"name": "unires", "image_size": 400, "patch_size": 32}, "does not divide"),
        ({"name": "unires", "vision_layers": 11}, "no halves"),
        ({"name": "unires", "preset": "tiny", "low_tokens": -1}, "low_tokens=-1"),
    ],
)
def test_a_bad_config_says_what_is_wrong(config, message):
    with pytest.raises(ValueError, match=message):
        model_config(config)


def test_a_projector_that_cannot_reach_its_stride_names_the_cure():
    config = {"name": "unires", "preset": "L/14", "head": "projector"}
    with pytest.raises(ValueError, match="another mask_stride or head 'pixel_shuffle'"):
        nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ({"preset": "tiny", "dropout": 0.2}, "is of preset 'tiny', this run's of 'B/16'"),
        ({"high_tokens": 0, "remat": True}, "config.model.high_tokens is 0 there, 8 here, config"),
        ({**FIELDS, "vision_width": 64}, "config.model.image_size is 32 there, 416 here"),
        ({"name": "unirse"}, "its model is 'unirse', this run's 'unires'"),
        # Written by another version of the code: nothing can be said.
        ({"depth": 3}, None),
        ({"vision_width": "wide"}, None),
        ({}, None),
    ],
)
def test_what_two_models_differ_in_is_told_in_words(theirs, told):
    words = difference({"name": "unires", **theirs}, {"name": "unires", "preset": "B/16"})
    assert words == "" if told is None else told in words
