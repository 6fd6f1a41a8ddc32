"""The JAX model against its torch twin: features, logits, gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from refseg_jax.batch import Batch
from refseg_jax.training.objectives import MaskObjective
from tests.parity.pairs import Pair, Params, as_torch, make_batch, make_pair
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
SMALLER = {"image_size": 32, "vision_layers": 2, "text_layers": 1, "decoder_layers": 1}
B32: dict[str, Any] = {"name": "unires", "preset": "B/32", "image_size": 224}


class Outputs(NamedTuple):
    """By name, what the JAX model gives and what torch expects."""

    ours: dict[str, Any]
    expected: dict[str, Any]


def run_both(pair: Pair, batch: Batch) -> Outputs:
    """Features of both towers, and logits `[B, K, h, w]`."""
    forward, params, twin = pair

    def everything(params: Params, batch: Batch) -> dict[str, Any]:
        model = forward.bind(params)
        seen = model.vision(jnp.asarray(batch.image)[:, 0])
        words, sentence = model.text(jnp.asarray(batch.text).reshape(-1, batch.text.shape[2]))
        logits = jnp.asarray(model(batch).mask_logits)[:, 0]
        return {**seen._asdict(), "words": words, "sentence": sentence, "logits": logits}

    image, text, valid = as_torch(batch)
    with torch.inference_mode():
        patches, low, high = twin.vision(image)
        words, sentence = twin.text(text.flatten(0, 1))
        logits = twin(image, text, valid)
    expected = {"patches": patches, "low": low, "high": high, "words": words}
    expected |= {"sentence": sentence, "logits": logits}
    return Outputs(jax.jit(everything)(params, batch), expected)


def check_features(outputs: Outputs) -> None:
    for name, expected in outputs.expected.items():
        if name != "logits":
            np.testing.assert_allclose(
                outputs.ours[name], expected, rtol=0, atol=1e-5, err_msg=name
            )


def check_logits(outputs: Outputs) -> None:
    expected = outputs.expected["logits"].numpy()
    # Maps without contrast, or the same for all expressions, would leave little to compare.
    assert expected.std((-2, -1)).min() > 0.01
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01
    np.testing.assert_allclose(outputs.ours["logits"], expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small() -> Pair:
    return make_pair(SMALL)


@pytest.fixture(scope="module")
def small_outputs(small: Pair) -> Outputs:
    return run_both(small, make_batch(small.forward, rows=2, ends=[3, 8, 11], length=12))


@pytest.fixture(scope="module")
def b32_outputs() -> Outputs:
    pair = make_pair(B32)
    return run_both(pair, make_batch(pair.forward, rows=1, ends=[5, 16], length=17))


def test_small_towers_give_the_same_features(small_outputs):
    check_features(small_outputs)


def test_small_model_gives_the_same_logits(small_outputs):
    check_logits(small_outputs)


def test_b32_towers_give_the_same_features(b32_outputs):
    check_features(b32_outputs)


def test_b32_gives_the_same_logits(b32_outputs):
    check_logits(b32_outputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "low_tokens": 0},
        {"head": "pixel_shuffle", "high_tokens": 0, "filter_norm": False},
        {"low_tokens": 0, "high_tokens": 0},
        # Without adapters.
        {"embedding_width": 24, "text_width": 24},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_other_choices_give_the_same_logits(changes):
    pair = make_pair({**SMALL, **SMALLER, **changes})
    batch = make_batch(pair.forward, rows=2, ends=[4, 7], length=8)
    check_logits(run_both(pair, batch))


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
