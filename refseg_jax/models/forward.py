"""A model as pure functions of its variables."""

from collections.abc import Callable, Mapping, Set
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from refseg_jax.batch import Batch, SegOutput
from refseg_jax.layers.batch_norm import BatchNorm, Statistic

#: Dotted path -> array, for the parameters of a model and its running averages.
Params = dict[str, jax.Array]

M = TypeVar("M", bound=nnx.Module)


class Forward(Generic[M]):
    """A model as pure functions of its variables, a flat dict of dotted path -> array.

    The variables are the parameters (`nnx.Param`) and the running averages of batch normalisation
    (`refseg_jax.layers.batch_norm.Statistic`), side by side in one dict: a checkpoint, an average or an
    export of `params` has both. Gradients move the parameters, `apply_training` returns the next
    running averages.

    The module is built once under `eval_shape`, which allocates nothing; `init` creates the actual
    arrays. All methods are pure and may be jitted, differentiated and sharded.

    Attributes:
        shapes: path -> shape and dtype of every variable.
        statistics: the paths that are running averages.
        model: the abstract module, for its static fields.
    """

    def __init__(self, build: Callable[[nnx.Rngs], M]):
        """Builds the abstract module.

        Args:
            build: makes the module from random streams.

        Raises:
            ValueError: the module holds variables that are neither parameters nor statistics.
        """
        self._build = build
        self.model: M = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graph, variables = nnx.split(self.model)
        flat = dict(nnx.to_flat_state(variables))
        strange = [_dotted(p) for p, v in flat.items() if not isinstance(v, nnx.Param | Statistic)]
        if strange:
            raise ValueError(
                f"variables that are neither parameters nor statistics: {', '.join(strange)}"
            )
        self._paths = {_dotted(path): path for path in flat}
        self._variables = {_dotted(path): variable for path, variable in flat.items()}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            path: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
            for path, variable in self._variables.items()
        }
        self.statistics: frozenset[str] = frozenset(
            path for path, variable in self._variables.items() if isinstance(variable, Statistic)
        )

    def init(self, key: jax.Array) -> Params:
        """Random parameters, and running averages at 0 and 1.

        Jit this with `out_shardings` to create them already sharded.
        """
        return _arrays(self._build(nnx.Rngs(params=key)))

    def bind(self, params: Mapping[str, Any]) -> M:
        """The module with the given variables."""
        flat = {
            self._paths[path]: variable.replace(params[path])
            for path, variable in self._variables.items()
        }
        return nnx.merge(self._graph, nnx.from_flat_state(flat))

    def apply(
        self, params: Mapping[str, Any], batch: Batch, dropout_key: jax.Array | None = None
    ) -> SegOutput:
        """Runs the whole model; without a dropout key, this is inference.

        With a key, batch normalisation uses the statistics of the batch; see `apply_training` for the
        running averages that follow.
        """
        return self.bind(params)(batch, rngs=_dropout(dropout_key))  # pyright: ignore

    def apply_training(
        self,
        params: Mapping[str, Any],
        batch: Batch,
        key: jax.Array,
        *,
        frozen: Set[str] = frozenset(),
    ) -> tuple[SegOutput, Params]:
        """Runs the whole model in training.

        Args:
            params: path -> array, of every variable.
            batch: the batch; pairs that are not `valid` do not count in batch statistics.
            key: key of dropout.
            frozen: paths of `statistics` whose layers normalise by their running averages, as at
                inference, and do not move them.

        Returns:
            The output, and path -> next running average for all of `statistics`.
        """
        model = self.bind(params)
        if frozen:
            for path, module in nnx.iter_modules(model):
                if isinstance(module, BatchNorm):
                    own = {_dotted((*path, name)) for name in ("mean", "variance")}
                    module.frozen = not own.isdisjoint(frozen)
        output = model(batch, rngs=_dropout(key))  # pyright: ignore
        return output, _arrays(model, Statistic)

    def encode_image(self, params: Mapping[str, Any], image: jax.Array) -> Any:
        """Image features of a separable model, at inference."""
        return self.bind(params).encode_image(image)  # pyright: ignore

    def encode_text(
        self,
        params: Mapping[str, Any],
        text: jax.Array,
        text_valid: jax.Array,
        anti_text: jax.Array | None = None,
    ) -> Any:
        """Text features of a separable model, at inference; `anti_text` if the model reads it."""
        anti = () if anti_text is None else (anti_text,)
        return self.bind(params).encode_text(text, text_valid, *anti)  # pyright: ignore

    def decode(self, params: Mapping[str, Any], image: Any, text: Any) -> SegOutput:
        """Masks from the features of a separable model, at inference."""
        return self.bind(params).decode(image, text)  # pyright: ignore


def _arrays(model: nnx.Module, kind: type[nnx.Variable] = nnx.Variable) -> Params:
    """Path -> array of the variables of a kind."""
    return {_dotted(path): v[...] for path, v in nnx.to_flat_state(nnx.state(model, kind))}


def _dropout(key: jax.Array | None) -> nnx.Rngs | None:
    return None if key is None else nnx.Rngs(dropout=key)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
