"""BERT (Devlin et al. 2019) as an encoder of expressions that returns a feature for every word."""

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

#: Standard deviation of initial kernels and tables.
STDDEV = 0.02

#: Epsilon of BERT's norms; torch's and CLIP's have 1e-5.
EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes; the defaults are BERT-base, uncased.

    Attributes:
        vocab_size, positions, token_types: rows of the three tables whose sum embeds a word.
        width, layers, heads: of the transformer.
        hidden: width inside the MLPs.
        dropout: rate in training, for the embeddings and the output of each residual branch. BERT also
            drops attention weights; this code does not, because flash kernels never store them.
        dtype: compute type, `float32` or `bfloat16`; sums, norms and softmax are in f32.
        remat: recompute activations inside the layers in the backward pass instead of storing them.
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
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
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


#: Preset -> the fields that differ from BERT-base.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "tiny": {"vocab_size": 64, "positions": 24, "width": 32, "layers": 2, "heads": 4, "hidden": 64},
}


def bert_config(fields: Mapping[str, Any]) -> BertConfig:
    """Builds a config from a `preset` (default `base`) and the fields that override it.

    Raises:
        ValueError: a preset or field is unknown (the message names the nearest), or the sizes do not
            fit together.
    """
    given = dict(fields)
    preset = given.pop("preset", "base")
    if preset not in PRESETS:
        raise ValueError(naming.unknown("preset of text tower 'bert'", preset, PRESETS))
    return naming.construct(BertConfig, {**PRESETS[preset], **given}, what="text tower 'bert'")


class Bert(nnx.Module):
    """Embeddings and post-norm layers; returns the last hidden state of every word (no pooler)."""

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
        """Encodes texts.

        Args:
            ids: i32 `[B, L]`, with [CLS] and [SEP].
            valid: bool `[B, L]`, false for padding, to which no word attends.
            types: i32 `[B, L]`, the number of a word's sentence in a pair of sentences; 0 if absent.
            key: random key for dropout; `None` means inference.

        Returns:
            Words `[B, L, width]` of the compute type; those of padding are meaningless.

        Raises:
            ValueError: L is more than the number of positions.
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
    """A post-norm block: `x = norm(x + attention(x)); x = norm(x + mlp(x))`."""

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
