"""The optimiser: AdamW (or Muon) with warm-up, a decay or drops, and learning rates by parameter.

The table of multipliers holds ordered pairs (regular expression over dotted paths, multiplier). The
first match wins and every path must be matched. A multiplier of 0 freezes a parameter: it gets
neither a gradient nor moments.

The running averages of batch normalisation are paths of the table, too. Where their multiplier is 0,
the layer is frozen: it normalises by its running averages in training as well. So a row that freezes a
whole tower freezes what the tower computes. With any other multiplier they follow the batches, also
where `scale` and `bias` are frozen, as in torch.
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
    """Fields of the optimiser and of its schedule.

    Attributes:
        lr: peak learning rate. UniRES: 1e-5 (supplement A.3), from CLIP's weights.
        end_lr_share: learning rate at the end of the cosine, as a share of the peak in [0, 1].
        drops: shares of training in (0, 1) at which the rate falls to a tenth; they replace the
            cosine.
        power: exponent of a polynomial decay `(1 - t)^power` over the share t of training after the
            warm-up, which replaces the cosine; 0 keeps the cosine. LAVT: 0.9. GRSer's paper (section
            5.2) says "polynomial" and follows LAVT.
        warmup: share of training over which the rate grows linearly from 0. UniRES: one epoch of 15
            in fine-tuning, 5 of 50 in pre-training (supplement A.3).
        weight_decay: AdamW's decoupled decay, times the rate. UniRES: 5e-4 (supplement A.3).
        undecayed: regular expression of the paths without decay. `""` exempts vectors and scalars, as
            is usual for transformers.
        b1, b2, eps: Adam's constants; not stated in the papers, the defaults are Adam's own.
        muon: regular expression of the paths of kernels that Muon updates instead of Adam, `""` for
            none. Not in the papers; from random weights, Muon needs far fewer steps.
        clip_norm: bound on the global norm of the gradient, 0 for none. Not stated in the papers.
        lr_multipliers: ordered pairs (regular expression, multiplier of the rate); 0 freezes.
        accumulation: number of microbatches whose gradients make one update.
        microbatch_statistics: allows accumulation for a model with batch normalisation, whose
            statistics are then those of a microbatch: loss and update are not those of the whole
            batch, and the running averages move once for each microbatch, in order.
        ema_decay: decay of an exponential average of the parameters, which evaluation and prediction
            then use; 0 for none. Bounded early in training, see `update_average`.
    """

    lr: float = 1e-4
    end_lr_share: float = 0.0
    drops: tuple[float, ...] = ()
    power: float = 0.0
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
    microbatch_statistics: bool = False
    ema_decay: float = 0.0


def multipliers(paths: Iterable[str], table: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The multiplier of every path.

    Args:
        paths: dotted paths of all parameters.
        table: `OptimConfig.lr_multipliers`.

    Raises:
        ValueError: no row matches a path, or no path takes a row (its pattern is mistyped, or
            earlier rows match all its paths).
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


def unfrozen(paths: Iterable[str], config: OptimConfig) -> frozenset[str]:
    """The paths of `paths` that are not frozen."""
    rates = multipliers(paths, config.lr_multipliers)
    return frozenset(path for path, multiplier in rates.items() if multiplier)


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Update -> learning rate: a linear warm-up to `lr`, then the cosine, the polynomial or the drops.

    Cosine and polynomial reach `end_lr_share * lr` at update `steps`. Drops are counted from the start
    of training, warm-up included.

    Args:
        config: the optimiser's fields.
        steps: updates of the whole training.

    Raises:
        ValueError: a drop is not in (0, 1), `power` is negative, or `drops` is set together with
            `end_lr_share` or `power`.
    """
    warmup = round(config.warmup * steps)
    if config.power < 0:
        raise ValueError(f"optim.power={config.power}: an exponent above 0, or 0 for the cosine")
    if config.drops:
        return _dropping(config, steps, warmup)
    decay, left = config.end_lr_share, max(steps - warmup, 1)
    if config.power:
        fall = optax.polynomial_schedule(config.lr, decay * config.lr, config.power, left)
    else:
        fall = optax.cosine_decay_schedule(config.lr, decay_steps=left, alpha=decay)
    if not warmup:
        # A warm-up of no steps would give the same rates, but optax would log a message about it.
        return fall
    rise = optax.linear_schedule(0.0, config.lr, transition_steps=warmup)
    return optax.join_schedules([rise, fall], [warmup])


def _dropping(config: OptimConfig, steps: int, warmup: int) -> optax.Schedule:
    inside = all(0.0 < share < 1.0 for share in config.drops)
    if config.end_lr_share or config.power or not inside:
        raise ValueError(
            f"optim.drops={config.drops}: shares of training in (0, 1), with optim.end_lr_share=0 and "
            "optim.power=0"
        )
    constant = optax.piecewise_constant_schedule(
        config.lr, {round(share * steps): 0.1 for share in config.drops}
    )
    return lambda step: constant(step) * jnp.minimum(1.0, step / warmup if warmup else 1.0)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of the trainable parameters, a flat dict by paths, for `steps` updates."""

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
    """One step of the exponential average of the parameters.

        a' = d a + (1 - d) p,  d = min(decay, (1 + step) / (10 + step))

    The bound, TensorFlow's for its moving averages, lets the average forget the first parameters.

    Args:
        average: path -> f32 average `a`.
        params: path -> f32 parameter `p` after the update.
        step: i32 `[]`, number of updates done before this one.
        decay: in (0, 1).
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {path: d * average[path] + (1.0 - d) * leaf for path, leaf in params.items()}


def _clip_by_global_norm(bound: float) -> optax.GradientTransformation:
    """`g * min(1, bound / (||g|| + 1e-6))`, torch's formula.

    XLA merges this one factor into Adam's update. `optax.clip_by_global_norm` selects elementwise
    instead and so stores all gradients once more, which doubled the optimiser's time on a CPU.
    """

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        factor = jnp.minimum(1.0, bound / (optax.tree.norm(updates) + 1e-6))
        return {path: leaf * factor for path, leaf in updates.items()}

    return optax.stateless(update)  # pyright: ignore[reportArgumentType]


def _directions(config: OptimConfig) -> optax.GradientTransformation:
    """Adam's direction, or Muon's for the kernels that `config.muon` names.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a kernel `[..., I, O]`, taken as a matrix
    of O columns. The factor `0.2 sqrt(max(rows, O))` makes its entries as large as Adam's (Liu et
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
    """Parameters whose path matches the pattern, and the rest.

    Raises:
        ValueError: no path matches, or a match is not a kernel (fewer than two axes).
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
