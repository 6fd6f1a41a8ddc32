"""The masked decoder layer with the weights of transformers' Mask2Former, and its masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskPredictor

from refseg_jax.decoders import masked_attention
from refseg_jax.decoders.masked_attention import MaskedAttentionLayer, visible_cells
from refseg_jax.models.forward import Forward
from tests.parity.mask2former import copied, layer_table, their_layer
from tests.parity.towers import BAR, errors

pytestmark = pytest.mark.parity

WIDTH, HEADS, HIDDEN, ROWS, QUERIES, SIZE = 64, 4, 96, 2, 10, (6, 9)
CELLS = SIZE[0] * SIZE[1]


def our_layer() -> Forward[MaskedAttentionLayer]:
    return Forward(
        lambda rngs: MaskedAttentionLayer(WIDTH, HEADS, HIDDEN, dtype=jnp.float32, rngs=rngs)
    )


def inputs() -> list[np.ndarray]:
    """Queries, their places, the memory, its places."""
    rng = np.random.default_rng(0)
    shapes = (ROWS, QUERIES, WIDTH), (QUERIES, WIDTH), (ROWS, CELLS, WIDTH), (CELLS, WIDTH)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def mask_logits() -> np.ndarray:
    """At four times the map's resolution; one query's mask is empty, one is full."""
    logits = np.random.default_rng(1).standard_normal((ROWS, QUERIES, 24, 36), np.float32)
    logits[0, 3], logits[1, 4] = -1.0, 1.0
    return logits


def their_blocked(logits: np.ndarray) -> torch.Tensor:
    """bool `[B * heads, Q, S]`, of their predictor and of the decoder's care for empty masks."""
    predictor = Mask2FormerMaskPredictor(4, HEADS, torch.tensor(QUERIES))
    # Its product of embeddings and pixels is the logits if the embeddings are a unit matrix.
    predictor.mask_embedder = torch.nn.Identity()  # pyright: ignore
    embeddings = torch.eye(QUERIES)[:, None].expand(-1, ROWS, -1)
    made, blocked = predictor(embeddings, torch.from_numpy(logits), SIZE)
    np.testing.assert_array_equal(made.numpy(), logits)
    some = (blocked.sum(-1) != blocked.shape[-1]).to(blocked.dtype)
    return blocked * some[..., None]


def run_theirs(module: Any, blocked: torch.Tensor | None) -> torch.Tensor:
    x, places, memory, memory_places = (torch.from_numpy(a) for a in inputs())
    with torch.inference_mode():
        (result,) = module(
            x.transpose(0, 1),
            level_index=0,
            position_embeddings=[memory_places[:, None]],
            query_position_embeddings=places[:, None].expand(-1, ROWS, -1),
            encoder_hidden_states=[memory.transpose(0, 1)],
            encoder_attention_mask=blocked,
        )
    return result.transpose(0, 1).contiguous()


def compare(folder: Path, masked: bool) -> float:
    module, forward = their_layer(WIDTH, HEADS, HIDDEN), our_layer()
    params = copied(module, layer_table, forward, folder)
    visible = visible_cells(jnp.asarray(mask_logits()), SIZE) if masked else None
    ours = jax.jit(lambda *x: forward.bind(params)(*x))(*inputs(), visible)
    theirs = run_theirs(module, their_blocked(mask_logits()) if masked else None)
    return max(errors([ours], [theirs]))


@pytest.mark.parametrize("masked", [False, True])
def test_the_layer_is_mask2formers(tmp_path: Path, masked: bool):
    found = compare(tmp_path, masked)
    print(f"masked={masked}: {found:.1e}")
    assert found <= BAR


@pytest.mark.parametrize("size", [SIZE, (3, 5), (24, 36), (7, 11), (48, 72)])
def test_visible_cells_are_those_that_mask2former_does_not_block(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(globals(), "SIZE", size)
    visible = np.asarray(visible_cells(jnp.asarray(mask_logits()), size))
    blocked = their_blocked(mask_logits()).reshape(ROWS, HEADS, QUERIES, -1).numpy()
    assert visible[0, 3].all() and 0.2 < visible.mean() < 0.8
    for head in range(HEADS):
        np.testing.assert_array_equal(visible, ~blocked[:, head])


def everything_visible(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "visible_cells", lambda logits, size: None)


def antialiased(patch: pytest.MonkeyPatch) -> None:
    def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
        return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "linear")

    patch.setattr(masked_attention, "resize_bilinear", resize)


def self_attention_first(patch: pytest.MonkeyPatch) -> None:
    def call(self: Any, x: Any, places: Any, *rest: Any) -> Any:
        return self.think(self.look_at_memory(self.look_at_queries(x, places), places, *rest))

    patch.setattr(MaskedAttentionLayer, "__call__", call)


def values_with_places(patch: pytest.MonkeyPatch) -> None:
    def look(self: Any, x: Any, places: Any, memory: Any, there: Any, visible: Any = None) -> Any:
        placed = memory + there
        mixed = self.cross_attention(x + places, placed, placed, visible=visible)
        return self.cross_attention_norm(x + mixed)

    patch.setattr(MaskedAttentionLayer, "look_at_memory", look)


@pytest.mark.parametrize(
    "fault", [everything_visible, antialiased, self_attention_first, values_with_places]
)
def test_a_fault_shows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
):
    fault(monkeypatch)
    found = compare(tmp_path, masked=True)
    print(f"{fault.__name__}: {found:.1e}")
    assert found > 100 * BAR
