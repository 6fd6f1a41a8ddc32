"""The JAX model against its torch twin: features, logits, gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from refseg_jax.batch import Batch
from refseg_jax.models import build_model
from refseg_jax.models.unires import UniRES
from refseg_jax.objectives import MaskObjective
from refseg_jax.train_state import Forward
from tests.parity.torch_loading import load_parameters
from tests.parity.torch_unires import TorchUniRES, mask_loss

pytestmark = pytest.mark.parity

# Every width differs, so that none can be mistaken for another; 17 x 17 patches and the class token
# are more keys than FLASH_MIN_KEYS, so that the kernel for long rows of scores is compared too.
SMALL: dict[str, Any] = {
    "name": "unires",
    "image_size": 136,
    "patch_size": 8,
    "vision_width": 48,
    "vision_layers": 4,
    "vision_heads": 3,
    "embedding_width": 40,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 4,
    "vocab_size": 90,
    "text_positions": 20,
    "eos_id": 89,
    "low_tokens": 6,
    "high_tokens": 3,
    "decoder_width": 24,
    "decoder_heads": 2,
    "decoder_hidden": 56,
    "decoder_layers": 2,
    "mask_stride": 2,
}
B32: dict[str, Any] = {"name": "unires", "preset": "B/32", "image_size": 224}

Params = dict[str, Any]


def make_pair(fields: dict[str, Any]) -> tuple[Forward[UniRES], Params, TorchUniRES]:
    """The JAX model, its parameters, and the twin with the same ones (without dropout)."""
    forward = Forward(lambda rngs: build_model(fields, rngs=rngs))
    params = jax.jit(forward.init)(jax.random.key(0))  # pyright: ignore
    rng = np.random.default_rng(0)
    # Biases of zero and scales of one would hide that they are left out or mixed up.
    params = {
        path: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) if leaf.ndim == 1 else leaf
        for path, leaf in params.items()
    }
    twin = TorchUniRES(forward.model.config).eval()  # pyright: ignore
    load_parameters(twin, params)
    return forward, params, twin  # pyright: ignore


def make_batch(forward: Forward[UniRES], rows: int, ends: list[int], length: int) -> Batch:
    """Random rows; text k of every row has its EOS at `ends[k]` and padding behind it."""
    config = forward.model.config
    rng = np.random.default_rng(1)
    place, end = np.arange(length), np.array(ends)[:, None]
    text = rng.integers(1, config.eos_id, (rows, len(ends), length))
    text = np.where(place < end, text, np.where(place == end, config.eos_id, 0))
    cells = config.image_size // config.mask_stride
    pairs = (rows, 1, len(ends))
    return Batch(
        image=rng.integers(0, 256, (rows, 1, config.image_size, config.image_size, 3), np.uint8),
        text=text.astype(np.int32),
        text_valid=np.broadcast_to(place <= end, text.shape),
        mask=rng.integers(0, 256, (*pairs, cells, cells), np.uint8),
        present=np.ones(pairs, bool),
        valid=np.ones(pairs, bool),
        size=np.full((rows, 1, 2), config.image_size, np.int32),
        affine=np.zeros((rows, 1, 2, 3), np.float32),
    )


def as_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, text and text_valid as the twin takes them."""
    return (
        torch.from_numpy(np.array(batch.image)[:, 0]),
        torch.from_numpy(np.array(batch.text)).long(),
        torch.from_numpy(np.array(batch.text_valid)),
    )


def tower_features(forward: Forward[UniRES]) -> Callable[[Params, Batch], dict[str, Any]]:
    """What both towers of the JAX model give, by name."""

    def features(params: Params, batch: Batch) -> dict[str, Any]:
        model = forward.bind(params)
        seen = model.vision(jnp.asarray(batch.image)[:, 0])
        words, sentence = model.text(jnp.asarray(batch.text).reshape(-1, batch.text.shape[2]))
        return {**seen._asdict(), "words": words, "sentence": sentence}

    return jax.jit(features)


def torch_features(twin: TorchUniRES, batch: Batch) -> dict[str, torch.Tensor | None]:
    image, text, _ = as_torch(batch)
    with torch.inference_mode():
        patches, low, high = twin.vision(image)
        words, sentence = twin.text(text.flatten(0, 1))
    return {"patches": patches, "low": low, "high": high, "words": words, "sentence": sentence}


def check_features(forward: Forward[UniRES], params: Params, twin: TorchUniRES, batch: Batch):
    ours = tower_features(forward)(params, batch)
    for name, expected in torch_features(twin, batch).items():
        assert expected is not None
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-5, err_msg=name)


def check_logits(forward: Forward[UniRES], params: Params, twin: TorchUniRES, batch: Batch):
    ours = np.asarray(jax.jit(forward.apply)(params, batch).mask_logits)[:, 0]
    with torch.inference_mode():
        expected = twin(*as_torch(batch)).numpy()
    # The comparison says nothing about a map without contrast.
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    return make_pair(SMALL)


@pytest.fixture(scope="module")
def b32():
    return make_pair(B32)


def test_small_towers_give_the_same_features(small):
    check_features(*small, make_batch(small[0], rows=2, ends=[3, 8, 11], length=12))


def test_small_model_gives_the_same_logits(small):
    check_logits(*small, make_batch(small[0], rows=2, ends=[3, 8, 11], length=12))


def test_b32_towers_give_the_same_features(b32):
    check_features(*b32, make_batch(b32[0], rows=1, ends=[5, 16], length=17))


def test_b32_gives_the_same_logits(b32):
    check_logits(*b32, make_batch(b32[0], rows=1, ends=[5, 16], length=17))


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear"},
        {"low_tokens": 0},
        {"high_tokens": 0, "filter_norm": False},
        {"low_tokens": 0, "high_tokens": 0},
        # Without adapters.
        {"embedding_width": 24, "text_width": 24, "decoder_layers": 1},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_other_choices_give_the_same_logits(changes):
    pair = make_pair({**SMALL, "image_size": 32, **changes})
    check_logits(*pair, make_batch(pair[0], rows=2, ends=[4, 7], length=8))


def test_gradients_of_the_loss_agree(small):
    forward, params, twin = small
    batch = make_batch(forward, rows=2, ends=[3, 8, 11], length=12)
    objective = MaskObjective(cross_entropy=1.0, dice=0.5)

    def loss_of(params: Params) -> jax.Array:
        terms = objective(forward.apply(params, batch), batch, jnp.float32(0))
        return jnp.stack([t.coefficient * t.sum / t.weight for t in terms.values()]).sum()

    ours, gradients = jax.jit(jax.value_and_grad(loss_of))(params)
    twin.zero_grad()
    mask = torch.from_numpy(np.array(batch.mask)[:, 0])
    loss = mask_loss(twin(*as_torch(batch)), mask, cross_entropy=1.0, dice=0.5)
    loss.backward()
    assert float(ours) == pytest.approx(loss.item(), rel=1e-6)

    # Gradients have their parameter's path and layout, hence a twin can hold ours.
    holder = TorchUniRES(forward.model.config)
    load_parameters(holder, gradients)
    largest = max(float(p.grad.abs().max()) for p in twin.parameters())
    for (name, parameter), held in zip(twin.named_parameters(), holder.parameters(), strict=True):
        assert parameter.grad is not None, name
        # Relative to the parameter's largest; what is zero but for rounding (the biases of keys,
        # which a softmax takes out) has no digits to compare.
        scale = float(parameter.grad.abs().max())
        np.testing.assert_allclose(
            held.detach(),
            parameter.grad,
            rtol=1e-3,
            atol=1e-4 * scale + 1e-7 * largest,
            err_msg=name,
        )
