"""The released UniLSeg through the import table, against its formulas in torch by its own names."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from refseg_jax.batch import Batch
from refseg_jax.decoders import pre_fusion, query_decoder, shrunk_pyramid
from refseg_jax.layers import batch_norm
from refseg_jax.models import UniLSeg
from refseg_jax.models.forward import Forward
from refseg_jax.weights.loader import Plan, load
from refseg_jax.weights.unilseg import open_unilseg
from tests.parity.torch_unilseg import DETR, PIXELS, QUERIES, TorchUniLSeg
from tests.refseg_jax.layers.compiling import quick_jit
from tests.refseg_jax.weights import unilseg_sources
from tests.refseg_jax.weights.clip_sources import Clip

pytestmark = pytest.mark.parity

#: Windows that no map is a multiple of; two heads of text; maps of 3 x 3 cells after the shrinking.
SIZES = unilseg_sources.SMALL._replace(
    swin=16,
    depths=(1, 2, 1, 1),
    heads=(1, 2, 2, 4),
    window=5,
    clip=Clip(32, 16, 16, 1, 24, 128, 1, vocab=60, positions=12),
    width=128,
    layers=3,
)
SIDE, LENGTH = 96, 9
ROWS, IMAGES, EXPRESSIONS = 1, 2, 3

#: Relative, of a whole output or gradient: ours is f32, theirs f64.
BAR, GRADIENT_BAR = 1e-5, 1e-4

Values = dict[str, np.ndarray]
Patch = pytest.MonkeyPatch


class Inputs(NamedTuple):
    """Inputs of the model, and random numbers of the form of its logits."""

    image: np.ndarray
    ids: np.ndarray
    text_valid: np.ndarray
    valid: np.ndarray
    slopes: np.ndarray


@functools.cache
def values() -> Values:
    return unilseg_sources.arrays(unilseg_sources.unilseg(SIZES))


@functools.cache
def inputs() -> Inputs:
    """Two images, each with three expressions, of whose pairs two are padding."""
    rng = np.random.default_rng(1)
    end = np.array([[[LENGTH - 1], [4], [6]]])
    place = np.arange(LENGTH)
    ids = rng.integers(1, SIZES.clip.vocab - 1, (ROWS, EXPRESSIONS, LENGTH))
    ids = np.where(place < end, ids, np.where(place == end, SIZES.clip.vocab - 1, 0))
    pairs = (ROWS, IMAGES, EXPRESSIONS)
    valid = np.ones(pairs, bool)
    valid[0, 0, 2] = valid[0, 1, 0] = False
    return Inputs(
        rng.integers(0, 256, (ROWS, IMAGES, SIDE, SIDE, 3), np.uint8),
        ids.astype(np.int32),
        place <= end,
        valid,
        rng.standard_normal((SIZES.layers, valid.sum(), SIDE // 4, SIDE // 4), np.float32),
    )


def pairs_as_rows() -> list[torch.Tensor]:
    """The arguments of the twin: a row for each valid pair."""
    given = inputs()
    row, image, expression = np.nonzero(given.valid)
    found = (
        given.image[row, image],
        given.ids[row, expression].astype(np.int64),
        given.text_valid[row, expression],
    )
    return [torch.from_numpy(x) for x in found]


def twin_of(training: bool) -> tuple[np.ndarray, TorchUniLSeg]:
    """Logits `[layers, pairs, h, w]`, and the twin with its gradients and running averages."""
    twin = TorchUniLSeg(values(), SIZES)
    twin.training = training
    for name, leaf in twin.state.items():
        leaf.requires_grad = not name.endswith(("running_mean", "running_var"))
    logits = twin(*pairs_as_rows())
    if training:
        (logits * torch.from_numpy(inputs().slopes)).sum().backward()
    return logits.detach().numpy(), twin


@functools.cache
def inferred_by_torch() -> np.ndarray:
    return twin_of(False)[0][-1]


class Ours(NamedTuple):
    """The model with the weights of a file, and the plan by which they came there."""

    forward: Forward[UniLSeg]
    params: dict[str, jax.Array]
    plan: Plan

    @property
    def batch(self) -> Batch:
        given, blank = inputs(), np.zeros(1)
        return Batch(
            given.image, given.ids, given.text_valid, blank, blank, given.valid, blank, blank
        )


def ours(folder: Path, given: Values) -> Ours:
    found = open_unilseg(str(unilseg_sources.checkpoint(folder / "unilseg.pth", given)))
    config = dataclasses.replace(found.config, image_size=SIDE, dropout=0.0, drop_path=0.0)
    forward = Forward(lambda rngs: UniLSeg(config, rngs=rngs))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    plan = found.plan(forward.shapes)
    return Ours(forward, load(plan, found.weights, dict.fromkeys(forward.shapes, here)), plan)


def inferred(model: Ours) -> np.ndarray:
    logits = quick_jit(model.forward.apply)(model.params, model.batch).mask_logits
    return np.asarray(logits, np.float64)[inputs().valid]


def relative(one: Any, other: Any) -> float:
    one, other = (np.asarray(x, np.float64).ravel() for x in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_inference_is_the_public_codes(tmp_path: Path):
    error = relative(inferred(ours(tmp_path, values())), inferred_by_torch())
    print(f"inference: {error:.1e}")
    assert error <= BAR


def pairs_of(layers: Any) -> Any:
    """`[layers, B, N, K, h, w]` to the valid pairs `[layers, pairs, h, w]`."""
    return layers.reshape(layers.shape[0], -1, *layers.shape[4:])[:, inputs().valid.reshape(-1)]


def averages_apart(model: Ours, statistics: Mapping[str, Any], twin: TorchUniLSeg) -> float:
    assert statistics.keys() == model.forward.statistics and len(statistics) == 2 * 11
    theirs = {
        path: twin.state[entry.removeprefix("module.")]
        for entry, ((path, _), *_) in model.plan.reads.items()
    }
    return max(relative(value, theirs[path].numpy()) for path, value in statistics.items())


def test_training_is_torchs_with_its_running_averages(tmp_path: Path):
    """Padding pairs do not count in ours; theirs does not have them."""
    model, (expected, twin) = ours(tmp_path, values()), twin_of(True)
    output, statistics = quick_jit(model.forward.apply_training)(
        model.params, model.batch, jax.random.key(0)
    )
    layers, averages = output.aux["layer_logits"], averages_apart(model, statistics, twin)
    error = relative(pairs_of(layers), expected)
    print(f"training: {error:.1e}, running averages {averages:.1e}")
    assert max(error, averages) <= BAR
    np.testing.assert_array_equal(output.mask_logits, layers[-1])


def test_gradients_are_torchs(tmp_path: Path, monkeypatch: Patch):
    """With Softplus in place of ReLU, in both.

    An input of a ReLU that f32 rounds to the other side of zero would change gradients by a hundredth.
    """
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)
    monkeypatch.setattr(torch.nn.functional, "relu", torch.nn.functional.softplus)
    model, (expected, twin) = ours(tmp_path, values()), twin_of(True)

    def loss(params: Any) -> Any:
        output, statistics = model.forward.apply_training(params, model.batch, jax.random.key(0))
        logits = pairs_of(output.aux["layer_logits"])
        return (logits * inputs().slopes).sum(), (logits, statistics)

    gradients, (logits, statistics) = quick_jit(jax.grad(loss, has_aux=True))(model.params)
    assert relative(logits, expected) <= BAR
    assert averages_apart(model, statistics, twin) <= BAR
    assert not any(np.any(gradients[path]) for path in statistics)

    wanted: dict[str, np.ndarray] = {}
    for entry, writes in model.plan.reads.items():
        leaf = twin.state[entry.removeprefix("module.")]
        for path, change in writes:
            if leaf.grad is not None:
                wanted[path] = np.asarray(change(leaf.grad.numpy(), gradients[path].shape))
    assert wanted.keys() == model.forward.shapes.keys() - statistics.keys()
    # Some have no gradient but rounding errors: the biases of keys, the attention of a lone query to
    # itself, and what a BatchNorm takes away. They are measured by gradients of an ordinary size.
    size = np.median([np.linalg.norm(x) for x in wanted.values()])
    apart = {
        path: np.linalg.norm(gradients[path] - x) / max(np.linalg.norm(x), 0.1 * size)
        for path, x in wanted.items()
    }
    worst = max(apart, key=apart.__getitem__)
    print(f"gradients: {apart[worst]:.1e} ({worst})")
    assert apart[worst] <= GRADIENT_BAR


def test_group_norm_needs_no_statistics_and_reads_the_rest(tmp_path: Path):
    """The same model with the other norm has the same parameters, and no running averages."""
    model = ours(tmp_path, values())
    config = dataclasses.replace(model.forward.model.config, norm="group")
    other = Forward(lambda rngs: UniLSeg(config, rngs=rngs))
    assert not other.statistics
    assert other.shapes.keys() == model.forward.shapes.keys() - model.forward.statistics


BLOCK, TEXT = "backbone_visual.layers.1.blocks.0", "backbone.transformer.resblocks.0"
LEVEL, OTHER, LAYER = f"{PIXELS}.cross_attn_1", f"{PIXELS}.cross_attn_2", f"{DETR}.layers.1"

#: Entries of one shape: nothing but numbers tells that a table takes one for the other.
ALIKE = [
    (f"{BLOCK}.norm1.weight", f"{BLOCK}.norm2.weight"),
    (f"{TEXT}.ln_1.weight", f"{TEXT}.ln_2.weight"),
    (f"{LEVEL}.self_attn.in_proj_weight", f"{LEVEL}.multihead_attn.in_proj_weight"),
    (f"{LEVEL}.norm1.weight", f"{LEVEL}.norm2.weight"),
    (f"{LEVEL}.norm2.bias", f"{LEVEL}.norm3.bias"),
    (f"{LEVEL}.linear1.weight", f"{OTHER}.linear1.weight"),
    (f"{PIXELS}.layer_1.0.weight", f"{PIXELS}.layer_2.0.weight"),
    (f"{PIXELS}.adapter_1.1.weight", f"{PIXELS}.layer_1.1.weight"),
    (f"{PIXELS}.layer_1.1.running_mean", f"{PIXELS}.layer_1.1.bias"),
    (f"{PIXELS}.layer_4.1.running_var", f"{PIXELS}.layer_4.1.weight"),
    (f"{QUERIES}.visual_proj.1.bias", f"{QUERIES}.text_proj.1.bias"),
    (f"{LAYER}.self_attn.out_proj.weight", f"{LAYER}.multihead_attn.out_proj.weight"),
    (f"{LAYER}.linear1.weight", f"{DETR}.layers.2.linear1.weight"),
    (f"{LAYER}.norm3.weight", f"{DETR}.norm.weight"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], float]:
    """The error of inference with entries changed; compiled once."""
    model = ours(tmp_path_factory.mktemp("unilseg"), values())
    apply = quick_jit(model.forward.apply)

    def error(changes: Mapping[str, Any]) -> float:
        params = dict(model.params)
        for entry, value in changes.items():
            for path, change in model.plan.reads[f"module.{entry}"]:
                params[path] = jnp.asarray(change(value, params[path].shape))
        logits = np.asarray(apply(params, model.batch).mask_logits)[inputs().valid]
        return relative(logits, inferred_by_torch())

    return error


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_one_entry_for_another_shows(
    shown: Callable[[Mapping[str, Any]], float], one: str, other: str
):
    given = values()
    error = shown({one: given[other], other: given[one]})
    print(f"{one}: {error:.1e}")
    assert error > 100 * BAR


def positions_at_the_ends_of_cells(patch: Patch) -> None:
    plain = pre_fusion.sine_positions_centred

    def moved(height: int, width: int, channels: int, *, dtype: Any) -> jax.Array:
        return jnp.roll(plain(height, width, channels, dtype=dtype), 1, 0)

    for module in (pre_fusion, shrunk_pyramid, query_decoder):
        patch.setattr(module, "sine_positions_centred", moved)


def words_without_places(patch: Patch) -> None:
    patch.setattr(
        shrunk_pyramid, "sine_positions_words", lambda *sizes: np.zeros(sizes, np.float32)
    )


def words_that_are_padding(patch: Patch) -> None:
    plain = UniLSeg.encode_text

    def all_valid(self: UniLSeg, text: Any, text_valid: Any, **rest: Any) -> Any:
        return plain(self, text, jnp.ones_like(text_valid), **rest)

    patch.setattr(UniLSeg, "encode_text", all_valid)


def antialiased(patch: Patch) -> None:
    def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
        return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")

    patch.setattr(shrunk_pyramid, "resize_bilinear", resize)


def another_epsilon(patch: Patch) -> None:
    plain = batch_norm.BatchNorm.__init__
    patch.setattr(
        batch_norm.BatchNorm,
        "__init__",
        lambda self, width, **rest: plain(self, width, **{**rest, "epsilon": 1e-3}),
    )


@pytest.mark.parametrize(
    "fault",
    [
        positions_at_the_ends_of_cells,
        words_without_places,
        words_that_are_padding,
        antialiased,
        another_epsilon,
    ],
)
def test_a_fault_shows(tmp_path: Path, monkeypatch: Patch, fault: Callable[[Patch], None]):
    fault(monkeypatch)
    error = relative(inferred(ours(tmp_path, values())), inferred_by_torch())
    print(f"{fault.__name__}: {error:.1e}")
    assert error > 10 * BAR
