"""BERT, loaded by the table, against transformers, layer by layer; and faults that must show."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig as TheirConfig
from transformers import BertForPreTraining, BertModel

from refseg_jax.encoders import bert
from refseg_jax.encoders.bert import Bert, BertConfig
from refseg_jax.layers import norm
from refseg_jax.models.forward import Forward
from refseg_jax.weights import bert as tables
from tests.parity.towers import BAR, errors, loaded, scatter

pytestmark = pytest.mark.parity

SIZES: dict[str, int] = {"width": 64, "layers": 3, "heads": 4, "hidden": 160}
VOCAB, POSITIONS = 96, 24

LENGTHS = np.array([[20], [7], [2]])
VALID = np.arange(20) < LENGTHS

Patch = pytest.MonkeyPatch


@functools.cache
def their_model() -> BertForPreTraining:
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=VOCAB,
        max_position_embeddings=POSITIONS,
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["hidden"],
    )
    model = BertForPreTraining(config).eval()
    scatter(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    their_model().save_pretrained(path)
    return path


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Ids, with other words than padding behind the end, and types of a pair of sentences."""
    rng = np.random.default_rng(0)
    return rng.integers(1, VOCAB, VALID.shape), rng.integers(0, 2, VALID.shape)


def our_tower() -> Forward[Bert]:
    config = BertConfig(vocab_size=VOCAB, positions=POSITIONS, **SIZES)
    return Forward(lambda rngs: Bert(config, rngs=rngs))


def states(tower: Bert, types: np.ndarray | None) -> list[Any]:
    """What enters each layer and what comes out of the last, of the words that are no padding."""
    ids, _ = texts()
    seen: list[Any] = []
    plain = bert.run_block

    def run_block(*call: Any, **options: Any) -> Any:
        seen.append(call[1])
        return plain(*call, **options)

    def run(ids: jax.Array, types: jax.Array | None) -> list[jax.Array]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bert, "run_block", run_block)
            last = tower(ids, jax.numpy.asarray(VALID), types=types)
        return [*seen, last]

    types = None if types is None else types.astype(np.int32)
    return [np.asarray(x)[VALID] for x in jax.jit(run)(ids.astype(np.int32), types)]


@functools.cache
def expected(typed: bool) -> list[torch.Tensor]:
    ids, types = texts()
    with torch.inference_mode():
        read = their_model().bert(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(VALID.astype(np.int64)),
            token_type_ids=torch.from_numpy(types) if typed else None,
            output_hidden_states=True,
        )
    return [x[torch.from_numpy(VALID)] for x in read.hidden_states]


def compare(path: Path, typed: bool = True) -> list[float]:
    forward = our_tower()
    params, _ = loaded(path, tables.hf_bert, forward)
    types = texts()[1] if typed else None
    return errors(states(forward.bind(params), types), expected(typed))


@pytest.mark.parametrize("typed", [False, True])
def test_every_layer_is_transformers(folder: Path, typed: bool):
    found = compare(folder / "model.safetensors", typed)
    assert len(found) == 1 + SIZES["layers"]
    print("words: " + " ".join(f"{e:.1e}" for e in found))
    assert max(found) <= BAR, found


def bare(folder: Path, target: Path) -> Path:
    """Of a `BertModel`."""
    config = their_model().config
    model = BertModel(config).eval()
    model.load_state_dict(their_model().bert.state_dict())
    model.save_pretrained(target)
    return target / "model.safetensors"


def from_tensorflow(folder: Path, target: Path) -> Path:
    """With the norms' old names and the positions' numbers, as on the hub."""
    entries = {}
    for entry, value in load_file(folder / "model.safetensors").items():
        entry = entry.replace("LayerNorm.weight", "LayerNorm.gamma")
        entries[entry.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    entries["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(entries, target / "old.safetensors")
    return target / "old.safetensors"


def of_torch(folder: Path, target: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), target / "pytorch_model.bin")
    return target / "pytorch_model.bin"


@pytest.mark.parametrize("write", [bare, from_tensorflow, of_torch])
def test_every_way_of_naming_gives_the_same_parameters(
    folder: Path, tmp_path: Path, write: Callable[[Path, Path], Path]
):
    forward = our_tower()
    ours, plan = loaded(write(folder, tmp_path), tables.hf_bert, forward)
    same, _ = loaded(folder / "model.safetensors", tables.hf_bert, forward)
    assert ours.keys() == same.keys() == forward.shapes.keys() and not plan.unwritten
    assert any("pooler" in entry for entry in plan.unread)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, same[path], err_msg=path)


def other_epsilon(patch: Patch) -> None:
    plain = norm._normalise
    patch.setattr(norm, "_normalise", lambda *given: plain(*given[:4], 1e-5, given[5]))


def tanh_gelu(patch: Patch) -> None:
    patch.setattr(bert, "exact_gelu", functools.partial(jax.nn.gelu, approximate=True))


def padding_is_seen(patch: Patch) -> None:
    plain = bert.MultiHeadAttention.__call__
    patch.setattr(
        bert.MultiHeadAttention, "__call__", lambda self, q, k, v, key_valid: plain(self, q, k, v)
    )


def norms_before_the_branches(patch: Patch) -> None:
    def call(self: Any, x: jax.Array, valid: jax.Array, key: Any = None) -> jax.Array:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, key_valid=valid)
        return x + self.mlp(self.mlp_norm(x))

    patch.setattr(bert.BertLayer, "__call__", call)


def permuted_qkv(patch: Patch) -> None:
    plain = tables.linear

    def swapped(source: str, target: str) -> Any:
        names = {"attention.query": "attention.value", "attention.value": "attention.query"}
        for ours, other in names.items():
            if target.endswith(ours):
                return plain(source, target.replace(ours, other))
        return plain(source, target)

    patch.setattr(tables, "linear", swapped)


@pytest.mark.parametrize(
    "fault",
    [other_epsilon, tanh_gelu, padding_is_seen, norms_before_the_branches, permuted_qkv],
)
def test_a_fault_shows(folder: Path, monkeypatch: Patch, fault: Callable[[Patch], None]):
    expected(True)
    fault(monkeypatch)
    found = compare(folder / "model.safetensors")
    print(f"{fault.__name__}: {max(found):.1e}")
    assert max(found) > 2 * BAR, found


def test_types_of_words_that_are_left_out_show(folder: Path):
    forward = our_tower()
    params, _ = loaded(folder / "model.safetensors", tables.hf_bert, forward)
    found = errors(states(forward.bind(params), None), expected(True))
    assert max(found) > 2 * BAR
