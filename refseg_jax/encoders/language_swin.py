"""LAVT's backbone (Yang et al. 2022): a Swin whose stages look at the words of an expression."""

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
from refseg_jax.layers.transformer import exact_gelu, run_block

#: What the gate between two stages does, by the name that configs use.
GATES = ("live", "closed")


@dataclasses.dataclass(frozen=True)
class LanguageSwinConfig(SwinConfig):
    """A Swin's sizes and choices (see `SwinConfig`), and of its fusion with words.

    Attributes:
        word_width: of the words (BERT-base has 768).
        gate: `live` lets what a stage fused with the words into the next stage, through a learned
            gate (LAVT). `closed` does not: words act on the features alone, the stages are those
            of a plain Swin, and there is no gate. ReLA's official code trains so, because its gate
            is `down(relu(up(x)))` with both kernels zero, which no gradient ever moves.
    """

    word_width: int = 768
    gate: str = "live"

    def __post_init__(self) -> None:
        """Checks what would else fail late.

        Raises:
            ValueError: sizes that do not fit together, or an unknown name.
        """
        super().__post_init__()
        if self.gate not in GATES:
            raise ValueError(naming.unknown("gate", self.gate, GATES))
        if self.word_width < 1:
            raise ValueError(f"word_width={self.word_width} is less than 1")


class LanguageSwin(nnx.Module):
    """After each stage, `fused = fusion(x, words)`; features are `norm(fused)`.

    The next stage gets `x + gate(fused)`, or `x` where the gate is closed. The norms are those of
    the Swin's stages, so that `swin` is filled from a plain Swin's weights.
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
        """Features for dense prediction.

        Several expressions of one image stand one after the other; until words enter the stages,
        which with a closed gate they never do, an image is worked on once for all of them.

        Args:
            image: u8 `[G, H, W, 3]`.
            words: `[G * K, L, word_width]`.
            valid: bool `[G * K, L]`, false for padding, which no pixel looks at.
            key: for stochastic depth; without it, it is inference.

        Returns:
            For each stage s: `[G * K, h, w, width * 2^s]` at stride `4 * 2^s` (h and w rounded up).
        """
        return self.fuse(self.look(image, key), words, valid, key)

    def look(self, image: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """What does not depend on words, for `fuse`: all stages, or with a live gate the patches.

        Args:
            image: u8 `[G, H, W, 3]`.
            key: as in `__call__`.

        Returns:
            `[G, h, w, C]` each.
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
        """Features out of what `look` gave; the other arguments and the result as in `__call__`."""
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
        """The stages, with what each fused let into the next."""
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
    """Every pixel collects what the words say to it (LAVT's pixel-word attention).

        found = attention(q = instance_norm(query(x)), k = key(words), v = value(words))
        join(gelu(vision(x)) * instance_norm(out(found))), with a gelu behind

    One head as wide as the map; instance norms over the map's area, without parameters.
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
        """`x` `[G, h, w, width]`, `words` `[G * K, L, word_width]`, `valid` bool `[G * K, L]` to
        `[G * K, h, w, width]`; padding says nothing, even where all words are padding.
        """
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])
        repeats = words.shape[0] // x.shape[0]
        query = repeat_rows(instance_norm(self.query(pixels), dtype=jnp.float32), repeats)
        key = self.key(words).astype(jnp.float32)
        value = _centred(self.value(words).astype(jnp.float32), valid)
        heads = (y[:, :, None] for y in (query, key, value))
        found = attention(*heads, key_valid=valid)[:, :, 0]
        language = instance_norm(self.out(found), dtype=self.dtype)
        seen = repeat_rows(exact_gelu(self.vision(pixels)), repeats)
        fused = exact_gelu(self.join(seen * language))
        return fused.reshape(-1, *x.shape[1:])


def _centred(words: jax.Array, valid: jax.Array) -> jax.Array:
    """`[B, L, C]` less the mean of the valid words, zero for the others.

    The second instance norm takes away what all pixels find, so that this changes nothing but the
    rounding: pixels that look at the words nearly alike differ by less than bf16 tells apart.
    """
    shown = valid[..., None]
    count = jnp.maximum(jnp.sum(shown, 1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(shown, words, 0.0), 1, keepdims=True) / count
    return jnp.where(shown, words - mean, 0.0)


class LanguageGate(nnx.Module):
    """`tanh(down(relu(up(x)))) * x`, without biases: how much of what was fused goes on."""

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
