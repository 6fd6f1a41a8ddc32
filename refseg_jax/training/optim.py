"""The optimiser: AdamW (or Muon) with a warm-up and cosine schedule, and rates per parameter.

The table is ordered (regular expression over dotted paths, multiplier); the first match wins, every
path must be matched, and a multiplier of 0 freezes: such a parameter gets no gradient and no
moments.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        lr: peak learning rate.
        end_lr_share: share of the peak that is left at the end of the cosine.
        drops: shares of training at which the rate falls to a tenth, in place of the cosine.
        warmup: share of training over which the rate grows linearly from 0.
        weight_decay: AdamW's decoupled decay (times the rate). UniRES: 5e-4 (supplement A.3).
        undecayed: regular expression of the paths without decay; "" leaves out vectors and scalars,
            as is usual for transformers.
        b1, b2, eps: Adam's constants.
        muon: regular expression of the paths of kernels that move by Muon and not by Adam, "" for
            none. Far fewer steps are needed from random weights; not in the paper.
        clip_norm: bound on the global norm of the gradient, 0 for none.
        lr_multipliers: ordered (regular expression, multiplier); 0 freezes.
        accumulation: microbatches that are added up for one update.
        ema_decay: decay of an exponential average of the parameters that evaluation and prediction
            then use, 0 for none. Early on the decay is `(1 + step) / (10 + step)` where less.
    """

    lr: float = 1e-4
    end_lr_share: float = 0.0
    drops: tuple[float, ...] = ()
    warmup: float = 0.05
    weight_decay: float = 5e-4
    undecayed: str = ""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    muon: str = ""
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
    """Linear warm-up to `lr`, then a cosine down to `end_lr_share * lr` at `steps`, or drops.

    Raises:
        ValueError: drops that are not shares of training, or an end of the cosine beside them.
    """
    warmup = round(config.warmup * steps)
    if config.drops:
        return _dropping(config, steps, warmup)
    cosine = optax.cosine_decay_schedule(
        config.lr, decay_steps=max(steps - warmup, 1), alpha=config.end_lr_share
    )
    if not warmup:
        # A warm-up of no steps would do the same, and have optax log that it is one.
        return cosine
    rise = optax.linear_schedule(0.0, config.lr, transition_steps=warmup)
    return optax.join_schedules([rise, cosine], [warmup])


def _dropping(config: OptimConfig, steps: int, warmup: int) -> optax.Schedule:
    if config.end_lr_share or not all(0.0 < share < 1.0 for share in config.drops):
        raise ValueError(
            f"optim.drops={config.drops}: shares of training in (0, 1), with optim.end_lr_share=0"
        )
    constant = optax.piecewise_constant_schedule(
        config.lr, {round(share * steps): 0.1 for share in config.drops}
    )
    return lambda step: constant(step) * jnp.minimum(1.0, step / warmup if warmup else 1.0)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The update of trainable parameters (a flat dict of paths), for `steps` updates."""

    def decayed(params: Params) -> dict[str, bool]:
        if not config.undecayed:
            return {path: jnp.ndim(leaf) > 1 for path, leaf in params.items()}
        return {path: not re.fullmatch(config.undecayed, path) for path in params}

    return optax.chain(
        _clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        _directions(config),
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


def _clip_by_global_norm(bound: float) -> optax.GradientTransformation:
    """`g * min(1, bound / (||g|| + 1e-6))`, torch's formula.

    One factor, which XLA merges into Adam's update: `optax.clip_by_global_norm` chooses number by
    number and so stores all gradients once more, which doubled the optimiser's time on a CPU.
    """

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        factor = jnp.minimum(1.0, bound / (optax.tree.norm(updates) + 1e-6))
        return {path: leaf * factor for path, leaf in updates.items()}

    return optax.stateless(update)  # pyright: ignore[reportArgumentType]


def _directions(config: OptimConfig) -> optax.GradientTransformation:
    """Adam's direction, or Muon's for the kernels that `config.muon` names.

    Muon (Jordan et al. 2024) makes the momentum of a kernel `[..., I, O]`, seen as a matrix of O
    columns, orthogonal. Times `0.2 sqrt(max(rows, O))` its entries are as large as Adam's (Liu et
    al. 2025, "Muon is scalable", section 2.2), so that both share a learning rate and a decay.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if not config.muon:
        return adam

    def axes(kernels: Params) -> dict[str, contrib.MuonDimensionNumbers]:
        return {
            path: contrib.MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), kernel.ndim - 1)
            for path, kernel in kernels.items()
        }

    def as_large_as_adam(updates: Params, params: Params | None = None) -> Params:
        del params
        return {
            path: update * (0.2 * math.sqrt(max(update.shape[-1], update[..., 0].size)))
            for path, update in updates.items()
        }

    muon = optax.chain(
        contrib.scale_by_muon(weight_dimension_numbers=axes),  # pyright: ignore[reportArgumentType]
        optax.stateless(as_large_as_adam),  # pyright: ignore[reportArgumentType]
    )

    def init(params: Params) -> dict[str, Any]:
        chosen, others = _split(params, config.muon)
        return {"muon": muon.init(chosen), "adam": adam.init(others)}  # pyright: ignore

    def update(
        updates: Params, state: dict[str, Any], params: Params | None = None
    ) -> tuple[Params, dict[str, Any]]:
        del params
        chosen, others = _split(updates, config.muon)
        moved, muon_state = muon.update(chosen, state["muon"])  # pyright: ignore
        rest, adam_state = adam.update(others, state["adam"])  # pyright: ignore
        directions: Params = {**moved, **rest}  # pyright: ignore
        return {p: directions[p] for p in updates}, {"muon": muon_state, "adam": adam_state}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _split(params: Params, pattern: str) -> tuple[Params, Params]:
    """Kernels that the pattern names, and the rest.

    Raises:
        ValueError: the pattern names none, or something that is no kernel.
    """
    chosen = {path: leaf for path, leaf in params.items() if re.fullmatch(pattern, path)}
    flat = [path for path, leaf in chosen.items() if leaf.ndim < 2]
    if flat or not chosen:
        raise ValueError(f"optim.muon: {pattern!r} names {flat[0] if flat else 'no parameter'}")
    return chosen, {path: leaf for path, leaf in params.items() if path not in chosen}


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
