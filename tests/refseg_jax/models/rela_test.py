"""ReLA: its parts put together, and what comes out of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.models import MODELS, ReLA, build_model, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.rela_config import ReLAConfig, rela_config
from refseg_jax.prediction.engines import ParameterEngine

ROWS, IMAGES, EXPRESSIONS, LENGTH = 2, 2, 3, 6
SMALL: dict[str, Any] = {
    "name": "rela",
    "preset": "tiny",
    "image_size": 64,
    "swin_width": 16,
    "swin_depths": (1, 2),
    "swin_heads": (1, 2),
    "pixel_layers": 1,
    "region_layers": 2,
    "text_layers": 1,
    "vocab_size": 40,
    "eos_id": 39,
    "text_width": 16,
    "text_hidden": 24,
    "width": 32,
    "side": 4,
    "region_level": 0,
    "region_hidden": 32,
    "pixel_hidden": 32,
}
FORMS = [
    {"relationship": "official", "gate": "closed"},
    {"relationship": "paper", "gate": "live"},
]


@nnx.jit
def run(rela: ReLA, given: Batch) -> SegOutput:
    return rela(given)


@functools.cache
def model(**fields: Any) -> ReLA:
    """With random numbers for all parameters: zeros would hide what belongs to them."""
    forward = Forward(lambda rngs: build_model({**SMALL, **fields}, rngs=rngs))
    rng = np.random.default_rng(0)
    params = {
        path: ("scale" in path) + rng.normal(0, shape.shape[0] ** -0.5 / 2, shape.shape)
        for path, shape in forward.shapes.items()
    }
    built: Any = forward.bind({path: jnp.asarray(x, jnp.float32) for path, x in params.items()})
    return built


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, (ROWS, EXPRESSIONS, 1))
    valid = np.arange(LENGTH) < lengths
    text = np.where(valid, rng.integers(1, 39, valid.shape), 0).astype(np.int32)
    image = rng.integers(0, 256, (ROWS, IMAGES, 64, 64, 3), np.uint8)
    blank = np.zeros(1)
    return Batch(image, text, valid, blank, blank, blank, blank, blank)


@pytest.mark.parametrize("form", FORMS)
def test_the_head_that_looks_at_the_mask_adds_what_it_sees(form: dict[str, str]):
    headed, given = model(**form, mask_evidence=True), batch()
    blind = nnx.clone(headed)
    blind.evidence = None
    found, without = run(headed, given), run(blind, given)
    np.testing.assert_array_equal(found.mask_logits, without.mask_logits)
    assert headed.evidence is not None
    said = headed.evidence(found.mask_logits.reshape(-1, 32, 32))
    said = said.reshape(ROWS, IMAGES, EXPRESSIONS)
    assert np.ptp(said) > 1e-3
    np.testing.assert_allclose(found.present_logits, without.present_logits + said, atol=1e-4)
    # The pictures of regions tell the same.
    maps = headed.region_maps(given.image, given.text, given.text_valid)
    np.testing.assert_allclose(maps.present, jax.nn.sigmoid(found.present_logits), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_shapes_and_pairs(form: dict[str, str]):
    """Every pair is that of its own image and expression, as if it were alone."""
    rela, given = model(**form), batch()
    whole = run(rela, given)
    pairs = (ROWS, IMAGES, EXPRESSIONS)
    assert whole.mask_logits.shape == (*pairs, 32, 32)
    assert whole.present_logits is not None
    assert whole.present_logits.shape == pairs
    assert whole.aux["minimap_logits"].shape == (*pairs, 4, 4)
    row, image, expression = 1, 0, 2
    other = batch(seed=1)
    fields = {}
    for name, chosen in (("image", image), ("text", expression), ("text_valid", expression)):
        fields[name] = np.array(getattr(other, name))
        fields[name][row, chosen] = np.asarray(getattr(given, name))[row, chosen]
    alone = run(rela, dataclasses.replace(other, **fields))
    for a, b in (
        (alone.mask_logits, whole.mask_logits),
        (alone.present_logits, whole.present_logits),
        (alone.aux["minimap_logits"], whole.aux["minimap_logits"]),
    ):
        chosen, expected = (np.asarray(x)[row, image, expression] for x in (a, b))
        np.testing.assert_allclose(chosen, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3
    assert float(jnp.std(whole.mask_logits, axis=2).mean()) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_mask_is_the_weighted_sum_of_region_masks(form: dict[str, str]):
    rela, given = model(**form), batch()
    maps = nnx.jit(lambda m, g: m.region_maps(g.image, g.text, g.text_valid))(rela, given)
    output = run(rela, given)
    logits = jnp.log(maps.region_masks) - jnp.log1p(-maps.region_masks)
    minimap = jax.nn.sigmoid(output.aux["minimap_logits"])
    np.testing.assert_allclose(maps.minimap, minimap, rtol=1e-4)
    # The public code weighs by the minimap's scores, the paper by its probabilities.
    official = form["relationship"] == "official"
    weights = output.aux["minimap_logits"] if official else minimap
    weights = weights.reshape(*weights.shape[:3], -1)
    total = jnp.einsum("bnkr,bnkrhw->bnkhw", weights, logits)
    assert total.shape[-2:] == (16, 16)
    fine = jax.image.resize(total, output.mask_logits.shape, "linear", antialias=False)
    scale = float(jnp.abs(output.mask_logits).max())
    np.testing.assert_allclose(output.mask_logits, fine, atol=2e-3 * scale)
    assert output.present_logits is not None
    np.testing.assert_allclose(maps.present, jax.nn.sigmoid(output.present_logits), rtol=1e-4)


def test_dropping_needs_a_key():
    rela, given = model(text_dropout=0.5, drop_path=0.5), batch()
    still = run(rela, given).mask_logits
    np.testing.assert_array_equal(run(rela, given).mask_logits, still)
    drop = nnx.jit(lambda m, g, rngs: m(g, rngs=rngs).mask_logits)
    first, again, other = (drop(rela, given, nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 1e-3
    assert np.abs(np.asarray(first) - np.asarray(still)).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient(form: dict[str, str]):
    rela, given = model(**form), batch()

    def total(m: ReLA) -> jax.Array:
        output = m(given)
        pattern = jnp.sin(jnp.arange(output.mask_logits.size)).reshape(output.mask_logits.shape)
        assert output.present_logits is not None
        return (
            (output.mask_logits * pattern).sum()
            + output.present_logits.sum()
            + (output.aux["minimap_logits"] ** 2).sum()
        )

    still = [
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(nnx.jit(nnx.grad(total))(rela))
        if not np.abs(leaf[...]).max() > 0
    ]
    # A key's bias shifts all of a query's scores alike; rounding decides whether it is exactly 0.
    assert [path for path in still if not path.endswith("key.bias")] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "C"}, "unknown preset of model 'rela' 'C'"),
        ({"image_sise": 4}, "did you mean 'image_size'"),
        ({"relationship": "papre"}, "unknown relationship block 'papre': did you mean 'paper'"),
        ({"mask_stride": 8}, "mask_stride=8 is not 1, 2 or 4"),
        ({"image_size": 30}, "image_size=30 is not divisible by 4"),
        ({"relationship": "paper", "region_level": 3}, "levels 0 to 2"),
        ({"heads": 3}, "heads=3 does not divide width=256"),
        ({"gate": "ajar"}, "unknown gate 'ajar'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        rela_config(fields)


def test_a_wrong_image_size_is_named():
    given = batch()
    with pytest.raises(
        ValueError, match=r"images are \(32, 64, 3\), the model takes \(64, 64, 3\)"
    ):
        model().encode_image(np.asarray(given.image)[:, :, :32])


def test_the_size_of_the_public_code():
    """Swin-B (86.9 M), BERT-base without its pooler (108.9 M), and what ReLA adds."""
    assert MODELS["rela"][0] is ReLA
    config = model_config({"name": "rela"})
    assert config == ReLAConfig()
    built: Any = nnx.eval_shape(lambda: ReLA(config, rngs=nnx.Rngs(0)))
    sizes: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(built)):
        sizes[str(path[0])] = sizes.get(str(path[0]), 0) + leaf.size
    assert sizes["text"] == 108_891_648
    assert 86_800_000 < sizes["vision"] < 110_000_000
    assert list(sizes) == ["pixels", "regions", "text", "vision"]


def test_it_has_no_group_tokens_to_draw() -> None:
    """`tools.predict --group_maps` is then one line, not a traceback."""
    shapes = Forward(lambda rngs: build_model(SMALL, rngs=rngs)).shapes
    params = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    engine = ParameterEngine(params, SMALL)
    assert engine.group_assignment(np.zeros((64, 64, 3), np.uint8)) == {}
