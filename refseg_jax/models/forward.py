"""A model as pure functions of its parameters."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from refseg_jax.batch import Batch, SegOutput

Params = dict[str, jax.Array]


M = TypeVar("M", bound=nnx.Module)


class Forward(Generic[M]):
    """A model as pure functions of its parameters, a flat dict of dotted path -> array.

    The module is built once under `eval_shape`, which allocates nothing; `init` creates the actual
    parameters. All methods are pure and may be jitted, differentiated and sharded.

    Attributes:
        shapes: path -> shape and dtype of every parameter.
        model: the abstract module, for its static fields.
    """

    def __init__(self, build: Callable[[nnx.Rngs], M]):
        """Builds the abstract module.

        Args:
            build: makes the module from random streams.

        Raises:
            ValueError: the module holds variables other than parameters.
        """
        self._build = build
        self.model: M = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graph, variables = nnx.split(self.model)
        flat = dict(nnx.to_flat_state(variables))
        strange = [_dotted(p) for p, v in flat.items() if not isinstance(v, nnx.Param)]
        if strange:
            raise ValueError(f"variables that are not parameters: {', '.join(strange)}")
        self._paths = {_dotted(path): path for path in flat}
        self._variables = {_dotted(path): variable for path, variable in flat.items()}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            path: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
            for path, variable in self._variables.items()
        }

    def init(self, key: jax.Array) -> Params:
        """Random parameters; jit this with `out_shardings` to create them already sharded."""
        _, variables = nnx.split(self._build(nnx.Rngs(params=key)))
        return {_dotted(path): v[...] for path, v in nnx.to_flat_state(variables)}

    def bind(self, params: Mapping[str, Any]) -> M:
        """The module with the given parameters."""
        flat = {
            self._paths[path]: variable.replace(params[path])
            for path, variable in self._variables.items()
        }
        return nnx.merge(self._graph, nnx.from_flat_state(flat))

    def apply(
        self, params: Mapping[str, Any], batch: Batch, dropout_key: jax.Array | None = None
    ) -> SegOutput:
        """Runs the whole model; without a dropout key, this is inference."""
        return self.bind(params)(batch, rngs=_dropout(dropout_key))  # pyright: ignore

    def encode_image(self, params: Mapping[str, Any], image: jax.Array) -> Any:
        """Image features of a separable model, at inference."""
        return self.bind(params).encode_image(image)  # pyright: ignore

    def encode_text(self, params: Mapping[str, Any], text: jax.Array, text_valid: jax.Array) -> Any:
        """Text features of a separable model, at inference."""
        return self.bind(params).encode_text(text, text_valid)  # pyright: ignore

    def decode(self, params: Mapping[str, Any], image: Any, text: Any) -> SegOutput:
        """Masks from the features of a separable model, at inference."""
        return self.bind(params).decode(image, text)  # pyright: ignore


def _dropout(key: jax.Array | None) -> nnx.Rngs | None:
    return None if key is None else nnx.Rngs(dropout=key)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
