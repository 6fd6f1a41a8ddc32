"""The state of training, and the jitted step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from refseg_jax import sharding
from refseg_jax.batch import Batch, Objective
from refseg_jax.errors import UserError
from refseg_jax.models.forward import Forward, Params
from refseg_jax.training import optim
from refseg_jax.training.arithmetic import count_flops


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes.

    Attributes:
        step: i32 `[]`, number of updates done.
        params: path -> f32 parameter or running average (of batch normalisation).
        opt_state: the optimiser's state, of the parameters that are not frozen.
        ema: path -> f32 exponential average of each of `params`, or `None` without averaging.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters for evaluation and prediction: the average, where there is one."""
        return self.params if self.ema is None else self.ema

    def as_dict(self) -> dict[str, Any]:
        """The state as a dictionary with the attributes as keys, for checkpoints."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Makes and updates train states; holds what stays the same from step to step.

    Attributes:
        forward: the model.
        objective: the loss.
        config: the optimiser's fields.
        steps: updates of the whole training, for the schedule and the objective's `progress`.
        mesh: the devices.
        layouts: ordered pairs (regular expression over paths, layout) that say how parameters are
            sharded, see `refseg_jax.sharding`.
        seed: seed of initialisation and dropout.

    Raises:
        UserError: the config accumulates gradients and the model does not allow it, see
            `check_accumulation`.
    """

    forward: Forward
    objective: Objective
    config: optim.OptimConfig
    steps: int
    mesh: Mesh
    layouts: tuple[tuple[str, str], ...] = sharding.DEFAULT_LAYOUTS
    seed: int = 0

    def __post_init__(self) -> None:
        check_accumulation(self.forward, self.config)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser over the trainable parameters."""
        return optim.make_optimizer(self.config, self.steps)

    @property
    def trainable(self) -> frozenset[str]:
        """Paths that get gradients."""
        return optim.unfrozen(self.forward.shapes, self.config) - self.forward.statistics

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state, as a pure function that can be jitted; `create` makes it sharded."""
        return self._start(self.forward.init(key))

    def shardings(self) -> TrainState:
        """The layout of every leaf of the state."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        params = sharding.param_shardings(shapes.params, self.mesh, self.layouts)
        return sharding.state_shardings(shapes, params, self.mesh)

    def abstract(self) -> TrainState:
        """Shapes, dtypes and layouts of the state, to restore into."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            shapes,
            self.shardings(),
        )

    def create(self) -> TrainState:
        """A fresh state, created directly sharded: no sharded array is ever whole on one device."""
        init = jax.jit(self.init, out_shardings=self.shardings())
        return init(jax.random.key(self.seed))

    def create_from(self, params: Params) -> TrainState:
        """A fresh state with given parameters, to fine-tune them.

        Args:
            params: path -> f32 parameter or running average, already laid out. Those that are missing
                are drawn (running averages start at 0 and 1) and created directly sharded.
        """
        missing = self.forward.shapes.keys() - params.keys()
        if missing:
            layouts = self.shardings().params

            def draw(key: jax.Array) -> Params:
                drawn = self.forward.init(key)
                return {path: drawn[path] for path in missing}

            fresh = jax.jit(draw, out_shardings={path: layouts[path] for path in missing})
            params = {**params, **fresh(jax.random.key(self.seed))}
        return jax.jit(self._start, out_shardings=self.shardings())(params)

    def compile_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
        """`step`, jitted. It donates its state, which cannot be used afterwards."""
        state = self.shardings()
        return jax.jit(
            sharding.tracing_over(self.mesh)(self.step),
            in_shardings=(state, sharding.batch_sharding(self.mesh)),
            out_shardings=(state, sharding.replicated(self.mesh)),
            donate_argnums=0,
        )

    def step_flops(self, batch: Batch) -> float:
        """Arithmetic of a step on all devices together, in FLOP; shapes and dtypes suffice."""
        return count_flops(self.step, self.abstract(), batch)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update.

        Returns:
            The next state, and f32 scalars: `loss`, each `loss/<term>` (times its coefficient),
            `grad_norm` (before clipping) and `pairs` (valid ones).

        Raises:
            ValueError: `config.accumulation` does not divide the rows of the batch.
        """
        learn = self.trainable
        moving = {path: leaf for path, leaf in state.params.items() if path in learn}
        still = {path: leaf for path, leaf in state.params.items() if path not in learn}
        gradients, terms, statistics = self._gradients(moving, still, state.step, batch)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, moving)  # pyright: ignore
        moved: Params = optax.apply_updates(moving, updates)  # pyright: ignore
        params = {**still, **moved, **statistics}
        ema = state.ema
        if ema is not None:
            ema = optim.update_average(ema, params, state.step, self.config.ema_decay)
        metrics = {
            "loss": sum(terms.values(), start=jnp.float32(0.0)),
            **{f"loss/{name}": value for name, value in terms.items()},
            "grad_norm": optax.tree.norm(gradients),
            "pairs": batch.valid.sum().astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    def _start(self, params: Params) -> TrainState:
        learn = self.trainable
        moving = {path: leaf for path, leaf in params.items() if path in learn}
        ema = jax.tree.map(jnp.copy, params) if self.config.ema_decay else None
        return TrainState(jnp.int32(0), params, self.optimizer.init(moving), ema)

    def _gradients(
        self, moving: Params, still: Params, step: jax.Array, batch: Batch
    ) -> tuple[Params, dict[str, jax.Array], Params]:
        """Gradients, values of all terms, and the next running averages.

        Accumulation changes neither gradients nor values (of a model without running averages). A first
        pass adds up the weights of all microbatches. They depend on the batch alone, so the compiler
        removes the model from that pass. Running averages go from each microbatch to the next.
        """
        parts = self.config.accumulation
        progress = jnp.minimum(step / max(self.steps, 1), 1.0)
        key = jax.random.fold_in(jax.random.key(self.seed + 1), step)
        frozen = frozen_statistics(self.forward, self.config)
        first = {path: still[path] for path in self.forward.statistics}

        def terms_of(
            moving: Params, statistics: Params, part: Batch, number: jax.Array
        ) -> tuple[Mapping[str, Any], Params]:
            params = {**moving, **still, **statistics}
            part_key = jax.random.fold_in(key, number)
            output, after = self.forward.apply_training(params, part, part_key, frozen=frozen)
            return self.objective(output, part, progress), after

        def weights_of(part: Batch, number: jax.Array) -> dict[str, jax.Array]:
            terms, _ = terms_of(moving, first, part, number)
            return {name: term.weight * jnp.float32(1) for name, term in terms.items()}

        def share(
            moving: Params,
            statistics: Params,
            part: Batch,
            number: jax.Array,
            weights: Mapping[str, jax.Array] | None = None,
        ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Params]]:
            values = {}
            terms, after = terms_of(moving, statistics, part, number)
            for name, term in terms.items():
                weight = term.weight if weights is None else weights[name]
                values[name] = term.coefficient * term.sum / jnp.maximum(weight, 1e-12)
            return jnp.stack(list(values.values())).sum(), (values, after)

        gradient = jax.grad(share, has_aux=True)
        if parts == 1:
            gradients, (values, statistics) = gradient(moving, first, batch, jnp.int32(0))
            return gradients, values, statistics

        stacked = jax.tree.map(lambda x: _microbatches(x, parts), batch)
        numbers = jnp.arange(parts)
        weights = jax.lax.map(lambda args: weights_of(*args), (stacked, numbers))
        totals = {name: w.sum() for name, w in weights.items()}

        def add(carry: Any, args: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            total, statistics = carry
            gradients, (values, after) = gradient(moving, statistics, *args, totals)
            return (jax.tree.map(jnp.add, total, (gradients, values)), after), None

        zeros = jax.tree.map(jnp.zeros_like, (moving, totals))
        ((gradients, values), statistics), _ = jax.lax.scan(add, (zeros, first), (stacked, numbers))
        return gradients, values, statistics


def frozen_statistics(forward: Forward, config: optim.OptimConfig) -> frozenset[str]:
    """Paths of the running averages whose layers are frozen, see `refseg_jax.training.optim`."""
    return forward.statistics - optim.unfrozen(forward.shapes, config)


def check_accumulation(forward: Forward, config: optim.OptimConfig) -> None:
    """Checks that accumulation keeps its promise, to change neither loss nor update.

    Batch normalisation breaks it, because its statistics would be those of a microbatch.
    `config.microbatch_statistics` allows that; frozen layers use no statistics of the batch.

    Raises:
        UserError: one line that names the fields.
    """
    allowed = config.accumulation == 1 or config.microbatch_statistics
    if not allowed and forward.statistics - frozen_statistics(forward, config):
        raise UserError(
            f"config.optim.accumulation={config.accumulation}: the model has batch normalisation, whose "
            "statistics would be those of a microbatch, not of the batch; set it to 1, or allow "
            "this with --config.optim.microbatch_statistics=True"
        )


def _microbatches(x: jax.Array, parts: int) -> jax.Array:
    """`[B, ...]` to `[parts, B / parts, ...]`, so that every device keeps its own rows."""
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} rows cannot be cut into {parts} microbatches")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
