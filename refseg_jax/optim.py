"""The optimiser: AdamW with a warm-up and cosine schedule, and a table of rates per parameter.

The table is ordered (regular expression over dotted paths, multiplier); the first match wins, every
path must be matched, and a multiplier of 0 freezes: such a parameter gets no gradient and no
moments.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        lr: peak learning rate.
        end_lr_share: share of the peak that is left at the end of the cosine.
        warmup: share of training over which the rate grows linearly from 0.
        weight_decay: AdamW's decoupled decay (times the rate); not for vectors and scalars, as is
            usual for transformers. UniRES: 5e-4 (supplement A.3).
        b1, b2, eps: Adam's constants.
        clip_norm: bound on the global norm of the gradient, 0 for none.
        lr_multipliers: ordered (regular expression, multiplier); 0 freezes.
        accumulation: microbatches that are added up for one update.
        ema_decay: decay of an exponential average of the parameters that evaluation and prediction
            then use, 0 for none. Early on the decay is `(1 + step) / (10 + step)` where less.
    """

    lr: float = 1e-4
    end_lr_share: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 5e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    lr_multipliers: tuple[tuple[str, float], ...] = ((r".*", 1.0),)
    accumulation: int = 1
    ema_decay: float = 0.0


def multipliers(paths: Iterable[str], table: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The multiplier of every path.

    Raises:
        ValueError: a path that no row matches, or a row that decides no path (a mistyped pattern).
    """
    decided = {}
    used = set()
    for path in paths:
        for number, (pattern, multiplier) in enumerate(table):
            if re.fullmatch(pattern, path):
                decided[path] = float(multiplier)
                used.add(number)
                break
        else:
            raise ValueError(f"no row of optim.lr_multipliers matches parameter {path!r}")
    for number, (pattern, _) in enumerate(table):
        if number not in used:
            raise ValueError(f"optim.lr_multipliers: {pattern!r} decides no parameter")
    return decided


def trainable(paths: Iterable[str], config: OptimConfig) -> frozenset[str]:
    """The paths that are not frozen."""
    rates = multipliers(paths, config.lr_multipliers)
    return frozenset(path for path, multiplier in rates.items() if multiplier)


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to `lr`, then a cosine down to `end_lr_share * lr` at `steps`."""
    warmup = round(config.warmup * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.lr,
        peak_value=config.lr,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.lr * config.end_lr_share,
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The update of trainable parameters (a flat dict of paths), for `steps` updates."""

    def decayed(params: Params) -> dict[str, bool]:
        return {path: jnp.ndim(leaf) > 1 for path, leaf in params.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        _scale_by_path(config.lr_multipliers),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


def update_average(average: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """One step of the exponential average.

    a' = d a + (1 - d) p,  d = min(decay, (1 + step) / (10 + step))
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {path: d * average[path] + (1.0 - d) * leaf for path, leaf in params.items()}


def _scale_by_path(table: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        return {
            path: leaf if (m := _multiplier(path, table)) == 1.0 else m * leaf
            for path, leaf in updates.items()
        }

    return optax.stateless(update)  # pyright: ignore[reportArgumentType]


def _multiplier(path: str, table: Sequence[tuple[str, float]]) -> float:
    return next(float(m) for pattern, m in table if re.fullmatch(pattern, path))
