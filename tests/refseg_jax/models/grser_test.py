"""GRSer: its parts put together, what its answers depend on, and what they must not depend on."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.decoders.heatmap_hierarchy import ranks_of_channels
from refseg_jax.models import GRSer, build_model, model_config
from refseg_jax.models.forward import Forward
from refseg_jax.models.grser_config import PRESETS
from refseg_jax.training.objectives import GroupObjective
from tests.devices import run_on_devices
from tests.refseg_jax.layers.compiling import FLAGS
from tests.refseg_jax.models.micro import micro_params
from tests.refseg_jax.models.small_grser import SMALL, group_batch

ROWS, IMAGES, EXPRESSIONS = 2, 4, 2
PAIRS = (ROWS, IMAGES, EXPRESSIONS)


@functools.cache
def forward(**changes: Any) -> Forward[GRSer]:
    return Forward(lambda rngs: build_model({**SMALL, **changes}, rngs=rngs))  # pyright: ignore


@functools.cache
def params(**changes: Any) -> dict[str, jax.Array]:
    return micro_params(forward(**changes))  # pyright: ignore[reportArgumentType]


@functools.cache
def run(**changes: Any) -> Any:
    """Inference of the small model, jitted."""
    return functools.partial(jax.jit(forward(**changes).apply), params(**changes))


@functools.cache
def whole() -> SegOutput:
    return run()(group_batch())


def moved(batch: Batch, order: Any) -> Batch:
    """The same groups, with their images in another order."""
    fields = ("image", "mask", "present", "valid", "size", "affine")
    return dataclasses.replace(
        batch, **{name: getattr(batch, name)[:, jnp.asarray(order)] for name in fields}
    )


def test_answers_of_pairs() -> None:
    output = whole()
    assert output.mask_logits.shape == (*PAIRS, 16, 16)
    assert output.present_logits is not None and output.present_logits.shape == PAIRS
    aux = output.aux
    assert "mirror_logits" not in aux
    assert aux["language_heatmap"].shape == (*PAIRS, 8, 8)
    assert aux["vision_heatmaps"].shape == (*PAIRS, 8, 8, 5)
    for name in ("language_heatmap", "vision_heatmaps"):
        assert np.abs(aux[name]).max() <= 1 + 1e-5 and np.ptp(aux[name]) > 0.1
    np.testing.assert_array_equal(np.sort(aux["expert_order"], 1)[0, :, 0], range(IMAGES))
    # Padding is the least trusted.
    assert (np.asarray(aux["expert_order"])[0, -1] == IMAGES - 1).all()
    expected = aux["d_neg"] - aux["d_pos"] - 1.0
    np.testing.assert_allclose(output.present_logits, expected, atol=1e-6)
    assert len(np.unique(np.round(output.present_logits, 5))) == np.prod(PAIRS)


def test_the_margin_moves_the_decision_alone() -> None:
    bold = run(margin=0.25)(group_batch())
    np.testing.assert_allclose(bold.present_logits, whole().present_logits + 0.75, atol=1e-5)
    np.testing.assert_array_equal(bold.mask_logits, whole().mask_logits)


def test_the_order_of_images_changes_no_answer() -> None:
    """Ranks by one distance have no ties; those of sums fall to the place, see `expert_order`."""
    batch, answer = group_batch(), run(inference_rank="positive")
    found = answer(batch)
    for order in itertools.islice(itertools.permutations(range(IMAGES)), 1, None, 5):
        other = answer(moved(batch, order))
        chosen = jnp.asarray(order)
        for name in ("mask_logits", "present_logits"):
            a, b = getattr(other, name), getattr(found, name)[:, chosen]
            np.testing.assert_allclose(a, b, atol=1e-5)
        for name in ("d_pos", "language_heatmap", "vision_heatmaps"):
            np.testing.assert_allclose(other.aux[name], found.aux[name][:, chosen], atol=1e-5)
        np.testing.assert_array_equal(
            chosen[other.aux["expert_order"]][0, :-1], found.aux["expert_order"][0, :-1]
        )


def test_padding_and_other_rows_change_no_answer() -> None:
    """What an image that is no expert shows, and what other groups and expressions are."""
    batch, found = group_batch(), whole()
    noise = jax.random.randint(jax.random.key(0), (32, 32, 3), 0, 256).astype(jnp.uint8)
    image = batch.image.at[0, -1].set(noise).at[1].set(255 - batch.image[1])
    text = batch.text.at[:, 1, 1:3].set(5)
    other = run()(dataclasses.replace(batch, image=image, text=text))
    for name in ("mask_logits", "present_logits"):
        a, b = (np.asarray(getattr(x, name)) for x in (other, found))
        np.testing.assert_allclose(a[0, :-1, 0], b[0, :-1, 0], atol=1e-5)
        assert np.abs(a[0, :-1, 1] - b[0, :-1, 1]).max() > 1e-4
    # The row is that of the same images without the padding.
    fields = ("image", "mask", "present", "valid", "size", "affine")
    cut = {name: getattr(batch, name)[:1, :-1] for name in fields}
    texts = ("text", "text_valid", "anti_text")
    alone = run()(
        dataclasses.replace(batch, **cut, **{name: getattr(batch, name)[:1] for name in texts})
    )
    np.testing.assert_allclose(alone.mask_logits[0], found.mask_logits[0, :-1], atol=1e-5)


def test_the_other_images_of_a_group_matter() -> None:
    batch, found = group_batch(), whole()
    other = run()(dataclasses.replace(batch, image=batch.image.at[1, 2].set(7)))
    gap = np.abs(np.asarray(other.mask_logits - found.mask_logits)).max((-1, -2))
    assert (gap[1, [0, 1, 3]] > 1e-4).all() and (gap[0] < 1e-5).all()


def test_one_image_is_a_group_of_itself() -> None:
    output = run()(group_batch(images=1))
    assert output.mask_logits.shape == (ROWS, 1, EXPRESSIONS, 16, 16)
    heatmaps = output.aux["vision_heatmaps"]
    np.testing.assert_array_equal(heatmaps, jnp.broadcast_to(heatmaps[..., :1], heatmaps.shape))
    assert not np.asarray(output.aux["expert_order"]).any()


def test_a_group_may_have_more_images_than_channels() -> None:
    output = run()(group_batch(rows=1, images=7))
    assert output.mask_logits.shape == (1, 7, EXPRESSIONS, 16, 16)
    assert np.isfinite(output.mask_logits).all()


def test_heatmaps_are_in_the_order_of_the_experts() -> None:
    """Equations 1 to 4 once more, from the features of the decoder."""
    batch, model = group_batch(), forward().bind(params())
    text = model.encode_text(batch.text, batch.text_valid, batch.anti_text)
    language = model.decoder.query.embed(model._pool(text.words, text.valid))
    anti = model.decoder.query.embed(model._pool(text.anti_words, text.anti_valid))
    visual = model._look(model.encode_image(batch.image), text.words, text.valid, None)
    v = np.asarray(visual, np.float64).reshape(*PAIRS, 64, -1)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    near, far = (unit(np.asarray(x, np.float64)) for x in (language, anti))
    heatmap = np.einsum("bnkpc,bkc->bnkp", unit(v), near)
    prototypes = unit(np.einsum("bnkp,bnkpc->bnkc", heatmap, v))
    aux = whole().aux
    np.testing.assert_allclose(aux["language_heatmap"].reshape(*PAIRS, 64), heatmap, atol=1e-4)
    order = np.asarray(aux["expert_order"])
    for b, k in np.ndindex(ROWS, EXPRESSIONS):
        count = int(batch.valid[b, :, k].sum())
        positive = np.linalg.norm(prototypes[b, :count, k] - near[b, k], axis=-1)
        negative = np.linalg.norm(prototypes[b, :count, k] - far[b, k], axis=-1)
        total = positive.argsort().argsort() + (-negative).argsort().argsort()
        assert order[b, :count, k].tolist() == sorted(range(count), key=lambda i: (total[i], i))
        places = ranks_of_channels(batch.valid[b : b + 1, :, k : k + 1], 5, "spread")[0, :, 0]
        shown = prototypes[b, order[b, places, k], k]
        seen = np.einsum("npc,gc->npg", unit(v[b, :, k]), shown)
        found = aux["vision_heatmaps"][b, :, k].reshape(IMAGES, 64, 5)
        np.testing.assert_allclose(found, seen, atol=1e-4)


def test_ranks_of_training_and_of_inference_are_apart() -> None:
    batch, key = group_batch(), jax.random.key(3)
    order = whole().aux["expert_order"]
    chance = run(inference_rank="random")(batch).aux["expert_order"]
    assert (chance != order).any()
    same = run(rank="random")(batch)
    np.testing.assert_array_equal(same.mask_logits, whole().mask_logits)
    for one, other in (({}, {"inference_rank": "random"}), ({}, {"rank": "random"})):
        a, b = (jax.jit(forward(**x).apply)(params(), batch, key).mask_logits for x in (one, other))
        assert np.array_equal(a, b) == ("rank" not in other)


def test_the_mirror_branch_swaps_the_roles() -> None:
    """It is the branch of a model whose expressions and anti-expressions have changed places."""
    batch, key = group_batch(), jax.random.key(0)
    model = forward(mirror_encodes=True)
    full = jnp.ones_like(batch.text_valid)
    batch = dataclasses.replace(batch, text_valid=full)
    swapped = dataclasses.replace(batch, text=batch.anti_text, anti_text=batch.text)
    a, b = (jax.jit(model.apply)(params(), x, key) for x in (batch, swapped))
    assert set(a.aux) == {"d_pos", "d_neg", "mirror_logits"}
    np.testing.assert_allclose(a.aux["mirror_logits"], b.mask_logits, atol=1e-5)
    np.testing.assert_allclose(b.aux["mirror_logits"], a.mask_logits, atol=1e-5)
    shared = jax.jit(forward().apply)(params(), batch, key)
    np.testing.assert_allclose(shared.mask_logits, a.mask_logits, atol=1e-5)
    assert np.abs(shared.aux["mirror_logits"] - a.aux["mirror_logits"]).max() > 1e-3


def test_an_anti_expression_has_one_word_more() -> None:
    batch, model = group_batch(), forward()
    encode = jax.jit(model.encode_text)
    text = encode(params(), batch.text, batch.text_valid, batch.anti_text)
    counts = np.asarray(batch.text_valid).sum(-1)
    assert counts.min() < 7
    np.testing.assert_array_equal(text.anti_valid.sum(-1), np.minimum(counts + 1, 7))
    np.testing.assert_array_equal(text.anti_valid, np.asarray(batch.anti_text) != 0)
    blank = encode(
        params(), jnp.zeros_like(batch.text), jnp.zeros_like(batch.text_valid), batch.text
    )
    assert not np.asarray(blank.anti_valid).any()
    with pytest.raises(ValueError, match=r"set config.data.anti_prefix"):
        forward().apply(params(), dataclasses.replace(batch, anti_text=None))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_of_texts_changes_no_answer(pooling: str) -> None:
    batch = group_batch()
    wide = {
        name: jnp.pad(getattr(batch, name), ((0, 0), (0, 0), (0, 3)))
        for name in ("text", "text_valid", "anti_text")
    }
    # A text that fills all places has a shorter anti-expression.
    full = np.asarray(batch.text_valid).all((-1, -2))
    rows = np.flatnonzero(~full)
    assert rows.size
    a, b = (run(text_pooling=pooling)(x) for x in (batch, dataclasses.replace(batch, **wide)))
    fits = ~np.asarray(batch.text_valid).all(-1)
    for name in ("mask_logits", "present_logits"):
        one, other = (np.asarray(getattr(x, name)).swapaxes(1, 2)[fits] for x in (a, b))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_bf16_is_close_to_f32() -> None:
    half, full = run(dtype="bfloat16")(group_batch()), whole()
    assert half.mask_logits.dtype == jnp.float32
    # A near tie of experts may fall the other way.
    gap = np.linalg.norm(half.mask_logits - full.mask_logits)
    assert gap < 0.2 * np.linalg.norm(full.mask_logits)
    np.testing.assert_allclose(half.aux["d_pos"], full.aux["d_pos"], atol=0.1)


FORMS: list[dict[str, Any]] = [
    {"pooling": ("mean", "mask", "max"), "language_heatmap": False},
    {"distance": "raw", "channels": "last", "mirror_encodes": True},
]


@functools.cache
def gradients(number: int) -> Any:
    """Loss and gradients of a form in training, jitted."""
    model = forward(**FORMS[number])

    def loss(weights: Any, batch: Batch) -> jax.Array:
        output = model.apply(weights, batch, jax.random.key(0))
        objective = GroupObjective(margin=9.0, schedule="constant", dice=1.0)
        terms = objective(output, batch, jnp.float32(0)).values()
        return sum((t.sum / jnp.maximum(t.weight, 1e-12) for t in terms), start=jnp.float32(0))

    return functools.partial(jax.jit(jax.value_and_grad(loss)), params(**FORMS[number]))


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.long)])
def test_every_parameter_gets_a_gradient(number: int) -> None:
    value, found = gradients(number)(group_batch())
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in found.values())
    still = {path for path, leaf in found.items() if not np.any(leaf)}
    # Keys have a bias that a softmax removes.
    assert not {path for path in still if not path.endswith("key.bias")}


def test_a_blank_group_has_finite_gradients() -> None:
    """A quarantined row: black images, no words, no valid pair."""
    value, found = gradients(0)(jax.tree.map(jnp.zeros_like, group_batch()))
    assert value == 0 and all(np.isfinite(leaf).all() for leaf in found.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_trace_to_the_grid_they_promise(preset: str) -> None:
    config = {"name": "grser", "preset": preset}
    model: Forward[GRSer] = Forward(lambda rngs: build_model(config, rngs=rngs))  # pyright: ignore
    size, shaped = model.model.image_size, jax.ShapeDtypeStruct
    texts = [shaped((1, 1, 17), kind) for kind in (np.int32, np.bool_, np.int32)]
    blank = shaped((1,), np.uint8)
    batch: Any = Batch(
        shaped((1, 8, size, size, 3), np.uint8),  # pyright: ignore[reportArgumentType]
        *texts[:2],  # pyright: ignore[reportArgumentType]
        *(blank, blank, shaped((1, 8, 1), np.bool_), blank, blank),  # pyright: ignore
        anti_text=texts[2],  # pyright: ignore[reportArgumentType]
    )
    cells = size // model.model.mask_stride
    output = jax.eval_shape(model.apply, model.shapes, batch)
    assert output.mask_logits.shape == (1, 8, 1, cells, cells)
    if preset == "B":
        assert output.aux["vision_heatmaps"].shape == (1, 8, 1, 104, 104, 8)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"preset": "tniy"}, "unknown preset of model 'grser' 'tniy': did you mean 'tiny'"),
        ({"rank": "booth"}, "unknown rank 'booth': did you mean 'both'"),
        ({"inference_rank": "none"}, "unknown rank 'none'"),
        ({"text_pooling": "max"}, "unknown text_pooling 'max'"),
        ({"pooling": ("mask", "maximum")}, "unknown pooling 'maximum'"),
        ({"pooling": ()}, "pooling=.*name at least one"),
        ({"channels": "first"}, "unknown channels 'first'"),
        ({"distance": "cosine"}, "unknown distance 'cosine'"),
        ({"mask_stride": 8}, "mask_stride=8 is not 1, 2 or 4"),
        ({"image_size": 418}, "image_size=418 is not divisible by 4"),
        ({"group_size": 0}, "group_size=0 is less than 1"),
        ({"text_heads": 5}, "heads=5 does not divide width=768"),
        ({"pixels": "clp"}, "did you mean 'clip'"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_config({"name": "grser", **fields})


def test_images_of_another_size_are_refused() -> None:
    batch = group_batch()
    with pytest.raises(ValueError, match=r"images are \(16, 16, 3\), the model takes"):
        jax.eval_shape(forward().encode_image, params(), batch.image[:, :, :16, :16])


def test_the_towers_are_below_the_prefixes_that_starts_fill() -> None:
    for prefix in GRSer.TOWERS.values():
        assert any(path.startswith(prefix) for path in forward().shapes)


CODE = """
import re
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.refseg_jax.models.grser_test import forward, group_batch

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
params, batch = (
    jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree
    )
    for tree, spec in (
        (dict(forward().shapes), PartitionSpec()), (group_batch(rows=8), PartitionSpec("data"))
    )
)
texts = lambda p, b: forward().encode_text(p, b.text, b.text_valid, b.anti_text)
for part in (texts, forward().apply):
    text = jax.jit(part).lower(params, batch).compile().as_text()
    assert not re.search(r"all-|collective|reduce-scatter", text), part
"""


def test_devices_that_share_a_batch_answer_without_talking_to_each_other() -> None:
    """Else each of them would encode the texts of all."""
    run_on_devices(4, CODE, flags=FLAGS)
