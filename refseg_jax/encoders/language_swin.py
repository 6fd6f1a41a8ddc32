"""LAVT's backbone (Yang et al. 2022): a Swin that fuses the words of an expression at each stage."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from refseg_jax import naming
from refseg_jax.encoders.swin import STDDEV, Swin, SwinConfig
from refseg_jax.layers.attention import attention
from refseg_jax.layers.dropout import split_key
from refseg_jax.layers.linear import Linear, gaussian
from refseg_jax.layers.norm import instance_norm
from refseg_jax.layers.rows import repeat_rows
from refseg_jax.layers.transformer import recomputed_gelu, run_block

#: Kinds of gates between two stages, see `LanguageSwinConfig.gate`.
GATES = ("live", "closed")


@dataclasses.dataclass(frozen=True)
class LanguageSwinConfig(SwinConfig):
    """The fields of `SwinConfig`, and those of the fusion with words.

    Attributes:
        word_width: channels of the words (768 for BERT-base).
        gate: `live`: the fused map of a stage enters the next stage through a learned gate, as in
            LAVT. `closed`: the stages are those of a plain Swin, only the returned features depend on
            the words, and there are no gate parameters. ReLA's public code trains with a closed gate:
            both kernels of its gate `down(relu(up(x)))` start at zero, so their gradients stay zero.
    """

    word_width: int = 768
    gate: str = "live"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: the sizes do not fit together, or a name is unknown.
        """
        super().__post_init__()
        if self.gate not in GATES:
            raise ValueError(naming.unknown("gate", self.gate, GATES))
        if self.word_width < 1:
            raise ValueError(f"word_width={self.word_width} is less than 1")


class LanguageSwin(nnx.Module):
    """A Swin with a fusion after each stage: `fused = fusion(x, words)`, `feature = norm(fused)`.

    The input of the next stage is `x + gate(fused)`, or `x` if the gate is closed, before the
    downsampling. The norms belong to `swin`, which can therefore be filled with the weights of a plain
    Swin.
    """

    def __init__(self, config: LanguageSwinConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.swin = Swin(config, rngs=rngs)
        self.fusions = nnx.List(
            [
                WordFusion(width, config.word_width, dtype=dtype, rngs=rngs)
                for width in config.widths
            ]
        )
        # Nothing follows the last stage.
        gated = config.widths[:-1] if config.gate == "live" else ()
        self.gates = nnx.List([LanguageGate(width, dtype=dtype, rngs=rngs) for width in gated])
        self.config = config

    def __call__(
        self,
        image: jax.Array,
        words: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """Computes features for dense prediction.

        Each image is encoded once for its K expressions until the words enter the stages: after the
        first stage with a live gate, never with a closed one.

        Args:
            image: u8 `[G, H, W, 3]`.
            words: `[G * K, L, word_width]`, the K expressions of an image one after the other.
            valid: bool `[G * K, L]`, false for padding, to which no pixel attends.
            key: random key for stochastic depth; `None` means inference.

        Returns:
            For each stage s = 0, 1, ...: `[G * K, h, w, width * 2^s]` at stride `4 * 2^s`, with h and
            w rounded up.
        """
        return self.fuse(self.look(image, key), words, valid, key)

    def look(self, image: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Computes the part that does not depend on the words, as `fuse` takes it.

        Args:
            image: u8 `[G, H, W, 3]`.
            key: as in `__call__`.

        Returns:
            `[G, h, w, C]`: the outputs of all stages, or only the embedded patches if the gate is live.
        """
        x = self.swin.embed(image)
        if self.gates:
            return (x,)
        maps = []
        for stage, own in zip(self.swin.stages, split_key(key, len(self.fusions)), strict=True):
            x = stage(x, own)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)

    def fuse(
        self,
        seen: Sequence[jax.Array],
        words: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """Completes the features.

        Args:
            seen: the output of `look`.
            words, valid, key: as in `__call__`.

        Returns:
            The features, as in `__call__`.
        """
        if self.gates:
            return self._fuse_between(seen[0], words, valid, key)
        remat = self.config.remat
        fused = (
            run_block(fusion, x, words, valid, remat=remat)
            for x, fusion in zip(seen, self.fusions, strict=True)
        )
        return tuple(norm(x) for norm, x in zip(self.swin.norms, fused, strict=True))

    def _fuse_between(
        self, x: jax.Array, words: jax.Array, valid: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Runs the stages with a live gate: the fused map of each stage enters the next."""
        remat = self.config.remat
        keys = split_key(key, len(self.fusions))
        features = []
        for number, (stage, fusion) in enumerate(zip(self.swin.stages, self.fusions, strict=True)):
            x = stage(x, keys[number])
            fused = run_block(fusion, x, words, valid, remat=remat)
            features.append(self.swin.norms[number](fused))
            if stage.downsample is None:
                break
            x = repeat_rows(x, fused.shape[0] // x.shape[0])
            x = stage.downsample(x + run_block(self.gates[number], fused, remat=remat))
        return tuple(features)


class WordFusion(nnx.Module):
    """LAVT's pixel-word attention module (PWAM): each pixel attends to the words.

        found = attention(q = instance_norm(query(x)), k = key(words), v = value(words))
        gelu(join(gelu(vision(x)) * instance_norm(out(found))))

    The attention has one head, as wide as the map. Instance norms run over the area of the map and
    have no parameters.
    """

    def __init__(self, width: int, word_width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.vision = Linear(width, width, dtype=dtype, rngs=rngs)
        self.query = Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = Linear(word_width, width, dtype=dtype, rngs=rngs)
        self.value = Linear(word_width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)
        self.join = Linear(width, width, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array, words: jax.Array, valid: jax.Array) -> jax.Array:
        """Fuses a map with words; padding has no effect, even if all words are padding.

        Args:
            x: `[G, h, w, width]`.
            words: `[G * K, L, word_width]`.
            valid: bool `[G * K, L]`, false for padding.

        Returns:
            `[G * K, h, w, width]`.
        """
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])
        repeats = words.shape[0] // x.shape[0]
        query = repeat_rows(instance_norm(self.query(pixels), dtype=jnp.float32), repeats)
        key = self.key(words).astype(jnp.float32)
        value = _centred(self.value(words).astype(jnp.float32), valid)
        heads = (y[:, :, None] for y in (query, key, value))
        found = attention(*heads, key_valid=valid)[:, :, 0]
        language = instance_norm(self.out(found), dtype=self.dtype)
        seen = repeat_rows(recomputed_gelu(self.vision(pixels)), repeats)
        fused = recomputed_gelu(self.join(seen * language))
        return fused.reshape(-1, *x.shape[1:])


def _centred(words: jax.Array, valid: jax.Array) -> jax.Array:
    """Subtracts the mean of the valid words from `[B, L, C]`; zero for padding.

    This shifts the result of the attention by the same vector for all pixels, which the second instance
    norm removes. It only improves the rounding: pixels that attend to the words nearly alike would
    differ by less than bf16 can represent.
    """
    shown = valid[..., None]
    count = jnp.maximum(jnp.sum(shown, 1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(shown, words, 0.0), 1, keepdims=True) / count
    return jnp.where(shown, words - mean, 0.0)


class LanguageGate(nnx.Module):
    """LAVT's gate between fusion and next stage: `tanh(down(relu(up(x)))) * x`, without biases."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        def linear() -> Linear:
            return Linear(
                width,
                width,
                dtype=dtype,
                rngs=rngs,
                use_bias=False,
                kernel_init=gaussian(STDDEV),
            )

        self.up = linear()
        self.down = linear()

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same shape."""
        return jnp.tanh(self.down(jax.nn.relu(self.up(x)))) * x
