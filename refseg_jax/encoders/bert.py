"""BERT (Devlin et al. 2019) as a reader of expressions, giving every word."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax import naming
from refseg_jax.layers.attention import MultiHeadAttention
from refseg_jax.layers.dropout import dropout, split_key
from refseg_jax.layers.linear import Embedding, gaussian
from refseg_jax.layers.norm import LayerNorm
from refseg_jax.layers.transformer import Mlp, exact_gelu, run_block

#: Standard deviation of fresh kernels and tables.
STDDEV = 0.02

#: BERT's norms; torch's and CLIP's have 1e-5.
EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes; the defaults are BERT-base, uncased.

    Attributes:
        vocab_size, positions, token_types: rows of the three tables that make a word's embedding.
        width, layers, heads, hidden: of the transformer; `hidden` is inside its MLPs.
        dropout: of embeddings and of what a branch adds, in training. Attention weights are not
            dropped (BERT drops those too; flash kernels have no weights to drop).
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: compute the layers' insides again in the backward pass instead of storing them.
    """

    vocab_size: int = 30522
    positions: int = 512
    token_types: int = 2
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks what would else fail late.

        Raises:
            ValueError: sizes that do not fit together, or an unknown name.
        """
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(naming.unknown("dtype", self.dtype, ("float32", "bfloat16")))
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")
        for field in dataclasses.fields(self):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is less than 1")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")


#: Fields that differ from BERT-base, by the name of the size.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "tiny": {"vocab_size": 64, "positions": 24, "width": 32, "layers": 2, "heads": 4, "hidden": 64},
}


def bert_config(fields: Mapping[str, Any]) -> BertConfig:
    """A config from a mapping; `preset` (default `base`) gives the fields that the rest overrides.

    Raises:
        ValueError: an unknown preset or field (the nearest is named), or sizes that do not fit.
    """
    given = dict(fields)
    preset = given.pop("preset", "base")
    if preset not in PRESETS:
        raise ValueError(naming.unknown("preset of text tower 'bert'", preset, PRESETS))
    return naming.construct(BertConfig, {**PRESETS[preset], **given}, what="text tower 'bert'")


class Bert(nnx.Module):
    """Embeddings and post-norm layers; the last hidden state of every word (no pooler)."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)

        def table(count: int) -> Embedding:
            return Embedding(count, config.width, stddev=STDDEV, dtype=dtype, rngs=rngs)

        self.word_embedding = table(config.vocab_size)
        self.position_embedding = table(config.positions)
        self.type_embedding = table(config.token_types)
        self.embedding_norm = LayerNorm(config.width, dtype=dtype, epsilon=EPSILON)
        self.layers = nnx.List([BertLayer(config, rngs=rngs) for _ in range(config.layers)])
        self.config = config

    def __call__(
        self,
        ids: jax.Array,
        valid: jax.Array,
        *,
        types: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Reads texts.

        Args:
            ids: i32 `[B, L]`, with [CLS] and [SEP].
            valid: bool `[B, L]`, false for padding, which no word looks at.
            types: i32 `[B, L]`, of which sentence of a pair a word is; all of the first if absent.
            key: for dropout; without it, it is inference.

        Returns:
            Words `[B, L, width]`. Those of padding mean nothing.

        Raises:
            ValueError: more words than positions.
        """
        length = ids.shape[1]
        if length > self.config.positions:
            raise ValueError(
                f"{length} text positions asked for, but the table has {self.config.positions}"
            )
        types = jnp.zeros_like(ids) if types is None else types
        embedding_key, *keys = split_key(key, 1 + len(self.layers))
        x = self.word_embedding(ids) + self.type_embedding(types)
        x = self.embedding_norm(x + self.position_embedding(jnp.arange(length)))
        x = dropout(x, self.config.dropout, embedding_key)
        for layer, own in zip(self.layers, keys, strict=True):
            x = run_block(layer, x, valid, own, remat=self.config.remat)
        return x


class BertLayer(nnx.Module):
    """`x = norm(x + attention(x)); x = norm(x + mlp(x))`: the norms stand behind the sums."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        dtype, init = jnp.dtype(config.dtype), gaussian(STDDEV)
        self.attention = MultiHeadAttention(
            config.width, config.heads, dtype=dtype, rngs=rngs, kernel_init=init, output_init=init
        )
        self.attention_norm = LayerNorm(config.width, dtype=dtype, epsilon=EPSILON)
        self.mlp = Mlp(
            config.width,
            config.hidden,
            activation=exact_gelu,
            up_init=init,
            down_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(config.width, dtype=dtype, epsilon=EPSILON)
        self.dropout = config.dropout

    def __call__(self, x: jax.Array, valid: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`[B, L, width]` to the same shape; `valid` bool `[B, L]`."""
        attention_key, mlp_key = split_key(key, 2)
        mixed = self.attention(x, x, x, key_valid=valid)
        x = self.attention_norm(x + dropout(mixed, self.dropout, attention_key))
        return self.mlp_norm(x + dropout(self.mlp(x), self.dropout, mlp_key))
